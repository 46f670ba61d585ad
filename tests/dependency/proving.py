"""The proof, written without the program's own masking: force the planned positions to zero in the model as given, or
to the lowest number where tokens choose experts by them.

A cut must agree with that to rounding. Removing terms that are zero may change the order of a sum, so results
differ by some units in the last place of the largest element: 3e-5 of it is some 250 such units for float32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from prunecli.dependency.analysis import Analysis, analyse
from prunecli.dependency.catalogue import Catalogue, catalogue
from prunecli.dependency.cut import Removed, remove
from prunecli.dependency.neutral import neutral_of
from prunecli.dependency.prepare import plan_names, prepare

ort.set_default_logger_severity(4)
TOLERANCE = {"float32": 3e-5, "float64": 1e-10, "float16": 2e-2}
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


@dataclass
class Proof:
    """One cut and how far it is from the masked original, relative to the largest element."""

    removed: Removed
    model: onnx.ModelProto
    error: float
    effect: float  # how far the cut is from the original without masks


def free_units(analysis: Analysis, approximate: bool = False) -> int:
    """Units that can be cut exactly (or, with `approximate`, at all), over all families."""
    return sum(int(_free(f, approximate).sum()) for f in analysis.families)


def _free(family: Any, approximate: bool) -> np.ndarray:
    return (family.frozen < 0) & ((family.approximate < 0) | approximate)


def choose(analysis: Analysis, seed: int, share: float = 0.4) -> Removed:
    """Random units of families that do not overlap; every axis keeps at least one position, and as many as it has to."""
    rng, solved = np.random.default_rng(seed), analysis.components
    taken, gone = np.zeros(solved.count, bool), np.zeros(solved.count, bool)
    for number in rng.permutation(len(analysis.families)):
        family = analysis.families[number]
        if taken[family.components].any() or not _free(family, False).any():
            continue
        taken[family.components] = True
        free = rng.permutation(np.flatnonzero(_free(family, False)))
        for unit in free[: max(1, round(share * len(free)))]:
            members = family.components[family.labels == unit]
            gone[members] = True
            if _empties(solved, gone):
                gone[members] = False
    atoms, out = gone[solved.component], Removed()
    for k, axis in enumerate(solved.table.axes):
        positions = np.flatnonzero(atoms[solved.atoms(k)])
        if axis.value is not None and axis.value.name and len(positions):
            out.setdefault(axis.value.name, {})[axis.index] = positions
    return out


def half_of(found: Catalogue, group: int) -> Removed:
    """Every second unit of one group; the others stay whole."""
    mask = np.zeros(found.count, bool)
    mask[found.groups[group].first + 1 : found.groups[group].units.stop : 2] = True
    return found.removed(mask)


def _empties(solved: Any, gone: np.ndarray) -> bool:
    least = {quota.axis: quota.count for quota in solved.table.quotas}
    left = ((~gone[solved.of_axis(k)]).sum() for k in range(len(solved.table.axes)))
    return any(len(solved.atoms(k)) and count < least.get(k, 1) for k, count in enumerate(left))


def prove(
    model: onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]],
    other: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    feeds: Mapping[str, Any] | None = None,
    reference: bool = False,
    operators: Sequence[Any] = (),
    group: int | None = None,
) -> Proof:
    """Cut random units (or every second one of a group alone) and compare with the masked original at both choices of dynamic dimensions.

    `reference`: run ONNX's reference implementation, for operators that onnxruntime has no kernel for;
    `operators`: implementations of operators that ONNX does not know.
    """
    work = prepare(ir.from_proto(model))
    analysis = analyse(work, shapes, other)
    removed = choose(analysis, seed) if group is None else half_of(catalogue(analysis), group)
    plan = plan_names(work, removed, analysis.geometry)
    remove(work, removed, shapes, other)
    cut = ir.to_proto(work)
    assert problems_of(cut) <= problems_of(model)  # operators of other domains are unknown to onnx
    lengths = {v.name: shape for v, shape in analysis.facts.shapes.items()}
    masked = masked_original(model, plan, lengths, lowest_of(analysis))
    worst, effect = 0.0, 0.0
    for at in (shapes, other) if other and other != shapes else (shapes,):
        fed = {**random_feeds(model, at, seed), **(feeds or {})}
        want, got, plain = (_refer(m, fed, operators) if reference else run(m, fed) for m in (masked, cut, model))
        for a, b, c in zip(want, got, plain, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            worst = max(worst, distance(a, b))
            effect = max(effect, distance(c, b))
    return Proof(plan, cut, worst, effect)


def lowest_of(analysis: Analysis) -> set[tuple[str, int]]:
    """(value, axis) at which the lowest number stands for an absent position."""
    return {(value.name or "", axis) for value, axis in neutral_of(analysis.components.table)}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference over the largest element; infinite where only one side is not a number."""
    if a.size == 0 or a.dtype.kind in "biu":
        return float(not np.array_equal(a, b))
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    ok = np.isfinite(a)
    return float(np.abs(a - b)[ok].max(initial=0) / (np.abs(a[ok]).max(initial=0) + 1e-9))


def problems_of(model: onnx.ModelProto) -> set[str]:
    """Which of the checker and strict shape inference refuse a file."""
    out = set()
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        out.add("checker")
    try:
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True, check_type=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        out.add("shape inference")
    return out


def run(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def _refer(model: onnx.ModelProto, feeds: Mapping[str, Any], operators: Sequence[Any]) -> list[np.ndarray]:
    evaluator = ReferenceEvaluator(model, new_ops=list(operators) or None)
    return [np.asarray(a) for a in evaluator.run(None, dict(feeds))]


def random_feeds(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    fixed = {t.name for t in model.graph.initializer}
    out = {}
    for value in model.graph.input:
        if value.name in fixed:
            continue
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = shapes[value.name]
        whole = np.issubdtype(dtype, np.integer) or dtype == np.bool_
        array = rng.integers(0, 2, shape) if whole else rng.standard_normal(shape)
        out[value.name] = np.asarray(array).astype(dtype)
    return out


def masked_original(
    model: onnx.ModelProto, plan: Removed, lengths: Mapping[str, Any], lowest: Collection[tuple[str, int]] = ()
) -> onnx.ModelProto:
    """The model as given, with the planned positions of every listed value forced to zero, or the lowest number.

    `lengths`: shape of every value; the listed axes are as long at all dimensions.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    kinds = {v.name: v.type.tensor_type for v in (*inferred.value_info, *inferred.output)}
    usual = model.graph.input[0].type.tensor_type.elem_type  # behind operators that onnx does not know
    usual = usual if usual in FLOATS else TensorProto.FLOAT
    for tensor in out.graph.initializer:
        if tensor.name in plan and tensor.data_type in FLOATS:
            tensor.CopyFrom(
                numpy_helper.from_array(_zeroed(numpy_helper.to_array(tensor), plan[tensor.name]), tensor.name)
            )
    nodes = list(out.graph.node)
    del out.graph.node[:]
    for node in nodes:
        steps = []
        for k, name in enumerate(node.output):
            kind = kinds[name].elem_type if name in kinds else usual
            if name in plan and kind in FLOATS:
                node.output[k] = f"{name}.unmasked"
                low = {axis for value, axis in lowest if value == name}
                steps += _mask(out, name, plan[name], kind, lengths[name], low)
        out.graph.node.extend([node, *steps])
    return out


def _zeroed(array: np.ndarray, axes: Mapping[int, np.ndarray]) -> np.ndarray:
    array = np.array(array)
    for axis, gone in axes.items():
        array[(slice(None),) * axis + (gone,)] = 0
    return array


def _mask(
    model: onnx.ModelProto, name: str, axes: Mapping[int, np.ndarray], kind: int, shape: tuple[int, ...],
    lowest: Collection[int] = (),
) -> list[onnx.NodeProto]:  # fmt: skip
    """One mask per axis: multiply by a matrix of zeros and ones, selected by comparing positions."""
    steps: list[onnx.NodeProto] = []
    current, imports = f"{name}.unmasked", {o.domain: o.version for o in model.opset_import}
    for number, (axis, gone) in enumerate(axes.items()):
        end = f"{name}.masked{number}"
        keep = np.ones(shape[axis], bool)
        keep[gone] = False
        mask = keep.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        target = name if number == len(axes) - 1 else end
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        if imports[""] >= 9 and (kind != TensorProto.FLOAT16 or axis in lowest):
            absent = np.finfo(dtype).min if axis in lowest else 0
            model.graph.initializer.append(numpy_helper.from_array(mask, f"{end}.mask"))
            model.graph.initializer.append(numpy_helper.from_array(np.array(absent, dtype), f"{end}.zero"))
            steps.append(helper.make_node("Where", [f"{end}.mask", current, f"{end}.zero"], [target]))
        else:
            model.graph.initializer.append(numpy_helper.from_array(mask.astype(dtype), f"{end}.mask"))
            steps.append(helper.make_node("Mul", [current, f"{end}.mask"], [target]))
        current = target
    return steps
