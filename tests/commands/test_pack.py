"""Packing from end to end: sizes, outputs and tensors against the plain onnx package and onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import prunecli
from prunecli.arrays import Array
from prunecli.errors import GateFailed, PruneError
from prunecli.evaluation.compare import CompareOptions, compare
from prunecli.inspection.inspect import inspect
from prunecli.model import find_weights, load
from prunecli.packing.pack import NothingSmaller, pack, unpack
from prunecli.packing.plan import information
from prunecli.report.render import to_markdown
from prunecli.report.render_cells import cell_text
from prunecli.verify.outline import outline
from prunecli.zeros.report import HONEST_PACKED
from tests.model.build import floats, info, node, proto, save_proto
from tests.model.quantised_models import Net
from tests.storage.sparse import matmul, optimised, run, sparse
from tests.tiny import REAL_MODELS

SAMPLES = Path(__file__).parents[2] / "sample_models"
BIG = (64, 64)
DECODING = {"ScatterElements", "ScatterND", "Compress", "CumSum", "Range", "ConstantOfShape"}


def weight(kind: str, seed: int = 0) -> Array:
    return sparse(kind, shape=BIG, seed=seed)


def const(name: str, array: Array) -> onnx.NodeProto:
    return node("Constant", [], [name], value=numpy_helper.from_array(array, name))


def two(first: str = "w", second: str = "v") -> list[onnx.NodeProto]:
    return [node("MatMul", ["x", first], ["z"]), node("MatMul", ["z", second], ["y"])]


def branch(name: str, array: Array) -> onnx.GraphProto:
    nodes = [node("MatMul", ["x", name], [f"{name}.z"]), node("MatMul", [f"{name}.z", "outer"], [f"{name}.y"])]
    return helper.make_graph(nodes, name, [], [info(f"{name}.y", ["n", 64])], [numpy_helper.from_array(array, name)])


def with_branches() -> onnx.ModelProto:
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=branch("a", weight("50%")), else_branch=branch("b", weight("95%"))),
    ]
    return model(nodes, {"zero": np.float32(0), "outer": weight("70%", 5)})


def model(nodes: list[onnx.NodeProto], weights: dict[str, Any], **options: Any) -> onnx.ModelProto:
    made = proto(nodes, {"x": (2, 64)}, weights=weights, **options)
    made.graph.output[0].CopyFrom(info("y", ["n", 64]))
    return made


def described(made: onnx.ModelProto) -> onnx.ModelProto:
    made.graph.value_info.append(info("w", BIG))
    return made


def with_function() -> onnx.ModelProto:
    inner = [const("w", weight("50%")), const("v", weight("95%")), *two()]
    function = helper.make_function("my", "F", ["x"], ["y"], inner, [helper.make_opsetid("", 17)])
    return model([node("F", ["x"], ["y"], domain="my")], {}, functions=[function], domains=["my"])


# name, model, encodings that must be chosen, by tensor
ODD: list[tuple[str, Callable[[], onnx.ModelProto], dict[str, str]]] = [
    ("initializers", lambda: model(two(), {"w": weight("50%"), "v": weight("95%")}), {"w": "mask", "v": "gaps"}),
    ("constants", lambda: model([const("w", weight("2:4")), const("v", weight("1x4")), *two()], {}),
     {"w": "mask", "v": "blocks"}),
    ("described", lambda: described(model(two(), {"w": weight("50%"), "v": weight("95%")})), {"w": "mask", "v": "gaps"}),
    ("tied", lambda: model([node("MatMul", ["x", "w"], ["z0"]), node("Add", ["z0", "x"], ["z1"]),
                            node("MatMul", ["z1", "w"], ["y"])], {"w": weight("50%")}), {"w": "mask"}),
    ("branches", with_branches, {"a": "mask", "b": "gaps", "outer": "mask"}),
    ("function", with_function, {"w": "mask", "v": "gaps"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "encodings"), ODD, ids=[o[0] for o in ODD])
def test_models_of_every_build(
    name: str, make: Callable[[], onnx.ModelProto], encodings: dict[str, str], tmp_path: Path
) -> None:
    path = save_proto(make(), tmp_path)
    found = pack(path, output=tmp_path / "p.onnx")
    assert {row.name: row.encoding for row in found.rows} == encodings
    assert (found.verification.kind, found.verification.samples) == ("exact", 4)
    assert found.before.macs == found.after.macs == inspect(path).totals.macs
    assert found.after.file_bytes == (tmp_path / "p.onnx").stat().st_size < 0.75 * path.stat().st_size
    assert not DECODING & {*optimised(tmp_path / "p.onnx", tmp_path)}
    for sign in (1, -1):
        x = {"x": sign * np.abs(np.random.default_rng(0).standard_normal((2, 64))).astype(np.float32)}
        assert run(tmp_path / "p.onnx", x)[0].tobytes() == run(path, x)[0].tobytes()
    unpack(tmp_path / "p.onnx", output=tmp_path / "d.onnx")
    assert outline(tmp_path / "d.onnx") == outline(path)
    described = [[value.name for value in onnx.load(p).graph.value_info] for p in (path, tmp_path / "d.onnx")]
    assert described[0] == described[1]
    weights = [{w.name: w.array().tobytes() for w in find_weights(load(p)).all()} for p in (path, tmp_path / "d.onnx")]
    assert weights[0] == weights[1]


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    both = weight("50%")
    sizes = []
    for second in (both, weight("50%", 1)):
        path = save_proto(model(two(), {"w": both, "v": second}), tmp_path)
        sizes.append(pack(path, output=tmp_path / "p.onnx", force=True).after.file_bytes)
    assert sizes[0] < sizes[1] - 8000  # a mask and 2,048 values of 4 bytes
    assert {w.name for w in find_weights(load(tmp_path / "p.onnx")).prunable} == {"w", "v"}


def test_external_data_stays_outside(tmp_path: Path) -> None:
    path = save_proto(model(two(), {"w": weight("50%"), "v": weight("95%")}), tmp_path)
    found = pack(path, output=tmp_path / "p.onnx", external_data="always")
    outside = load(tmp_path / "p.onnx").data_files
    assert len(outside) == 1
    assert found.after.file_bytes == sum(p.stat().st_size for p in (tmp_path / "p.onnx", *outside))
    again = unpack(tmp_path / "p.onnx", output=tmp_path / "d.onnx")
    assert again.verification.kind == "exact"
    assert compare(path, tmp_path / "d.onnx").identical


def test_large_models_stream_and_their_folding_is_checked_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunecli.packing import proof as pack_proof
    from prunecli.storage import reading

    monkeypatch.setattr(pack_proof, "RUN_UP_TO", 1000)
    monkeypatch.setattr(reading, "KEEP_UP_TO", 1000)
    path = save_proto(model(two(), {"w": weight("50%"), "v": weight("95%")}), tmp_path)
    found = pack(path, output=tmp_path / "p.onnx", external_data="always")
    assert "too large to be run" in found.verification.detail
    unpack(tmp_path / "p.onnx", output=tmp_path / "d.onnx")
    assert compare(path, tmp_path / "d.onnx").identical


def test_what_does_not_fold_stays_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunecli.storage import encodings
    from prunecli.storage.chain import Op

    def unknown(subject: Any, rows: Any, limit: int) -> Any:
        """As the mask, without the shape that onnxruntime needs to fold it."""
        found = mask(subject, rows, limit)
        if found is None:
            return None
        reshaped = found.chain
        scatter = reshaped.inputs[0]
        places = Op("Compress", scatter.inputs[1].inputs)
        return encodings.Encoded("mask", Op("Reshape", (Op(scatter.type, (scatter.inputs[0], places, scatter.inputs[2]),
                                                           scatter.attributes), reshaped.inputs[1])))  # fmt: skip

    mask = encodings.ENCODINGS["mask"]
    monkeypatch.setitem(encodings.ENCODINGS, "mask", unknown)
    path = save_proto(model(two(), {"w": weight("50%"), "v": weight("95%")}), tmp_path)
    found = pack(path, output=tmp_path / "p.onnx")
    assert {row.name: row.encoding for row in found.rows} == {"w": "dense", "v": "gaps"}
    assert [s.reason for s in found.skipped] == ["onnxruntime does not fold its decoding away"]
    assert not DECODING & {*optimised(tmp_path / "p.onnx", tmp_path)}


@pytest.mark.parametrize(("opset", "ir"), [(8, 3), (10, 5), (11, 6)])
def test_old_opsets_are_raised_only_as_far_as_needed(opset: int, ir: int, tmp_path: Path) -> None:
    made = model([node("MatMul", ["x", "w"], ["y"])], {"w": weight("50%")}, opset=opset)
    made.ir_version = ir
    if ir < 4:
        made.graph.input.append(info("w", BIG))
    path = save_proto(made, tmp_path)
    found = pack(path, output=tmp_path / "p.onnx")
    assert [row.encoding for row in found.rows] == ["mask"]
    assert [entry.version for entry in onnx.load(tmp_path / "p.onnx").opset_import] == [11]
    assert any(f"raised from {opset} to 11" in note for note in found.notes) == (opset < 11)
    assert compare(path, tmp_path / "p.onnx").identical


def old(nodes: list[onnx.NodeProto], **options: Any) -> onnx.ModelProto:
    return model([*nodes, node("MatMul", ["x", "w"], ["y"])], {"w": weight("50%")}, opset=8, **options)


def old_function() -> onnx.ModelProto:
    made = with_function()
    made.opset_import[0].version = made.functions[0].opset_import[0].version = 8
    return made


UNRAISED: list[tuple[str, Callable[[], onnx.ModelProto], str]] = [
    ("functions", old_function, "models with functions cannot be converted"),
    ("an operator that changed", lambda: old([node("Scan", ["x"], ["z"])]), "ONNX cannot convert it: "),
    ("an operator that there is not", lambda: old([node("Odd", ["x"], ["z"])]), "ONNX cannot convert it: "),
]


@pytest.mark.parametrize(("name", "make", "words"), UNRAISED, ids=[u[0] for u in UNRAISED])
def test_opsets_that_cannot_be_raised(
    name: str, make: Callable[[], onnx.ModelProto], words: str, tmp_path: Path
) -> None:
    with pytest.raises(PruneError) as caught:
        pack(save_proto(make(), tmp_path), output=tmp_path / "p.onnx")
    assert f"uses opset 8; decoding needs 11, and {words}" in caught.value.message and "\n" not in caught.value.message
    assert caught.value.hint == "export it with a newer opset"


def test_a_model_of_other_domains_alone_is_given_the_standard_one(tmp_path: Path) -> None:
    made = model([node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft")], {"w": weight("50%")},
                 domains=["com.microsoft"])  # fmt: skip
    del made.opset_import[0]
    path = save_proto(made, tmp_path)
    pack(path, output=tmp_path / "p.onnx")
    assert {each.domain: each.version for each in onnx.load(tmp_path / "p.onnx").opset_import} == {
        "": 11,
        "com.microsoft": 1,
    }
    assert compare(path, tmp_path / "p.onnx").identical


def test_coo_is_written_and_read(tmp_path: Path) -> None:
    path = save_proto(model(two(), {"w": weight("50%"), "v": weight("95%")}), tmp_path)
    found = pack(path, output=tmp_path / "c.onnx", format="coo")
    stored = onnx.load(tmp_path / "c.onnx").graph
    onnx.checker.check_model(str(tmp_path / "c.onnx"))
    assert [s.values.name for s in stored.sparse_initializer] == ["v"]
    assert stored.sparse_initializer[0].indices.data_type == onnx.TensorProto.INT64
    assert {row.name: row.encoding for row in found.rows} == {"w": "dense", "v": "coo"}
    constants = save_proto(model([const("w", weight("95%")), *two()], {"v": weight("95%")}), tmp_path, "c2.onnx")
    inside = pack(constants, output=tmp_path / "c3.onnx", format="coo")
    assert [(s.name, s.reason) for s in inside.skipped] == [("w", "not an initializer of the main graph")]
    assert found.after.file_bytes < path.stat().st_size
    assert compare(path, tmp_path / "c.onnx").identical
    dense = unpack(tmp_path / "c.onnx", output=tmp_path / "d.onnx")
    assert [(row.name, row.packed_bytes < row.dense_bytes) for row in dense.rows] == [("v", True)]
    assert outline(tmp_path / "d.onnx") == outline(path)
    assert not onnx.load(tmp_path / "d.onnx").graph.sparse_initializer


@pytest.mark.parametrize("values", ["float16", "int8"])
def test_narrow_values_are_measured_and_gated(values: Any, tmp_path: Path) -> None:
    path = save_proto(model(two(), {"w": weight("50%"), "v": weight("95%")}), tmp_path)
    exact = pack(path, output=tmp_path / "e.onnx")
    found = pack(path, output=tmp_path / "p.onnx", values=values, max_error=0.05)
    assert found.after.file_bytes < 0.8 * exact.after.file_bytes
    assert found.fidelity is not None
    error = found.verification.max_rel_error
    assert found.verification.kind == "approximate"
    assert error is not None
    assert 1e-6 < error < 0.05
    told = compare(path, tmp_path / "p.onnx", CompareOptions(samples=4)).fidelity.worst()["max_rel"]
    assert told == pytest.approx(error, rel=0.5)  # other random inputs, and a maximum
    with pytest.raises(GateFailed, match="--max-error"):
        pack(path, output=tmp_path / "q.onnx", values=values, max_error=error / 2)
    assert not (tmp_path / "q.onnx").exists()


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("nothing sparse", {"min_saving": 0.95}, "would become 95% smaller"),
    ("excluded", {"exclude": ["*"]}, "nothing in"),
    ("saving", {"min_saving": 1.0}, "no fraction below 1"),
    ("lossy coo", {"format": "coo", "values": "int8"}, "stores values as they are"),
    ("negative error", {"max_error": -0.1, "values": "int8"}, "'-0.1' is outside 0 to 1"),
    ("included", {"include": ["u*"]}, "not matched by --include"),
    ("error of exact values", {"max_error": 0.1}, "--max-error is of"),
    ("unproved error", {"max_error": 0.1, "values": "int8", "verify": False}, "--no-verify skips"),
]


@pytest.mark.parametrize(("name", "options", "words"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refusals(name: str, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = save_proto(model(two(), {"w": weight("50%"), "v": weight("95%")}), tmp_path)
    with pytest.raises(PruneError) as caught:
        pack(path, output=tmp_path / "p.onnx", **options)
    assert words in f"{caught.value.message} {caught.value.hint}" and caught.value.hint
    assert not (tmp_path / "p.onnx").exists()


LEFT = [
    ("graph output", ("y", "w"), [], "also a graph output"),
    ("graph input", ("y",), ["w"], "also a graph input"),
]


@pytest.mark.parametrize(("name", "outputs", "inputs", "reason"), LEFT, ids=[c[0] for c in LEFT])
def test_what_must_stay_dense(
    name: str, outputs: tuple[str, ...], inputs: list[str], reason: str, tmp_path: Path
) -> None:
    made = proto(two(), {"x": (2, 64)}, outputs, {"w": weight("50%"), "v": weight("95%")})
    made.graph.input.extend(info(each, BIG) for each in inputs)
    found = pack(save_proto(made, tmp_path), output=tmp_path / "p.onnx")
    assert [(s.name, s.reason.split(":")[0]) for s in found.skipped] == [("w", reason)]
    made = proto([node("MatMul", ["x", "w"], ["y"])], {"x": (2, 64)}, outputs, {"w": weight("50%")})
    made.graph.input.extend(info(each, BIG) for each in inputs)
    with pytest.raises(NothingSmaller) as caught:
        pack(save_proto(made, tmp_path), output=tmp_path / "q.onnx")
    assert reason in caught.value.hint


def test_the_reason_of_what_takes_most_bytes_is_the_hint(tmp_path: Path) -> None:
    """Not that of the bias, of which no zeros are left out whatever they are."""
    net = Net().integers("w", (600, 600)).integers("b", (600,), np.int32)
    net.hold(x_s=np.float32(1), w_s=np.float32(1), y_s=np.float32(1), z=np.int8(0))
    net.add("QuantizeLinear", "x x_s z", "q")
    net.add("QGemm", "q x_s z w w_s z b y_s z", "g", "com.microsoft").add("DequantizeLinear", "g y_s z", "y")
    onnx.save(net.model((2, 600)), tmp_path / "m.onnx")
    with pytest.raises(NothingSmaller) as caught:
        pack(tmp_path / "m.onnx", output=tmp_path / "q.onnx")
    assert caught.value.hint.startswith("0.8% of its weights are zero")


def test_negative_zeros_are_kept_unless_asked(tmp_path: Path) -> None:
    """What is left where a framework multiplies weights with a mask."""
    values = np.random.default_rng(0).standard_normal(BIG).astype(np.float32)
    masked = values * (np.random.default_rng(1).random(BIG) < 0.3).astype(np.float32)
    path = save_proto(model([node("MatMul", ["x", "w"], ["y"])], {"w": masked}), tmp_path)
    kept = pack(path, output=tmp_path / "k.onnx")
    assert any("negative zeros" in note for note in kept.notes)
    assert find_weights(load(tmp_path / "k.onnx")).prunable[0].array().tobytes() == masked.tobytes()
    plain = pack(path, output=tmp_path / "p.onnx", plain_zeros=True)
    assert plain.after.file_bytes < 0.6 * kept.after.file_bytes
    assert plain.verification.kind == "exact"
    assert not any("negative zeros" in note for note in plain.notes)
    assert np.array_equal(find_weights(load(tmp_path / "p.onnx")).prunable[0].array(), masked)
    assert compare(path, tmp_path / "p.onnx").identical


def test_unpack_refuses_what_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="holds no packed tensors"):
        unpack(save_proto(matmul(weight("50%")), tmp_path))


def test_a_proof_sees_a_changed_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is written wrongly must not get past the proof."""
    from prunecli.storage.encodings import Rows

    right = Rows.at_bits
    monkeypatch.setattr(Rows, "at_bits", lambda self: right(self) * np.float32(1.0000001))
    path = save_proto(model(two(), {"w": weight("50%"), "v": weight("95%")}), tmp_path)
    with pytest.raises(PruneError, match="w was not stored as it should be"):
        pack(path, output=tmp_path / "p.onnx")
    assert not (tmp_path / "p.onnx").exists()


def test_a_proof_sees_other_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running both files would notice what the comparison of tensors missed."""
    from prunecli.packing import proof as pack_proof
    from prunecli.storage.encodings import Rows

    right = Rows.at_bits
    monkeypatch.setattr(Rows, "at_bits", lambda self: right(self) * np.float32(1.0000001))
    monkeypatch.setattr(pack_proof, "check_tensors", lambda *_, **named: None)
    path = save_proto(model(two(), {"w": weight("50%"), "v": weight("95%")}), tmp_path)
    with pytest.raises(PruneError, match="the packed model does not compute what the model does"):
        pack(path, output=tmp_path / "p.onnx")
    assert not (tmp_path / "p.onnx").exists()


@pytest.mark.parametrize("noise", ["RandomNormalLike", "Multinomial"])
def test_a_model_of_random_outputs_is_compared_with_its_noise_fixed_or_not_called_equal(
    tmp_path: Path, noise: str
) -> None:
    more = {"sample_size": 64} if noise == "Multinomial" else {}
    nodes = [*two(), node(noise, ["y"], ["noise"], **more), node("Cast", ["noise"], ["random"], to=1)]
    made = proto(nodes, {"x": (2, 64)}, ["random"], {"w": weight("50%"), "v": weight("95%")})
    found = pack(save_proto(made, tmp_path), output=tmp_path / "p.onnx").verification
    assert found.kind == "exact" and found.samples > 0


# n, k, bytes each, limit: H(1/2) = 1 bit; H(1/4) = 0.8113 bits
LIMITS = [(800, 400, 4, 100 + 1600), (800, 200, 2, 81.13 + 400), (800, 0, 4, 0), (800, 800, 8, 6400)]


@pytest.mark.parametrize(("size", "nonzero", "itemsize", "limit"), LIMITS)
def test_information(size: int, nonzero: int, itemsize: int, limit: float) -> None:
    assert information(size, nonzero, itemsize) == pytest.approx(limit, abs=0.01)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A real network with zeros, dense and packed."""
    folder = tmp_path_factory.mktemp("digits")
    prunecli.magnitude(SAMPLES / "digits-cnn.onnx", sparsity=0.8, output=folder / "dense.onnx", verify=False)
    pack(folder / "dense.onnx", output=folder / "packed.onnx")
    return folder / "dense.onnx", folder / "packed.onnx"


@pytest.mark.slow
def test_every_command_reads_packed_files(digits: tuple[Path, Path], tmp_path: Path) -> None:
    dense, packed = digits
    data = SAMPLES / "digits-calib.npz"
    seen = [inspect(path).to_json() for path in digits]
    assert seen[0]["layers"] == seen[1]["layers"]
    results = {
        "magnitude": lambda p, o: prunecli.magnitude(p, sparsity=0.9, output=o),
        "gradient": lambda p, o: prunecli.gradient(p, data=str(data), sparsity=0.9, steps=1, output=o),
        "structured": lambda p, o: prunecli.structured(p, macs=0.5, output=o),
        "finetune": lambda p, o: prunecli.finetune(p, data=str(data), epochs=1, output=o),
    }
    for name, command in results.items():
        outputs = [tmp_path / f"{name}.{path.name}" for path in digits]
        for path, output in zip(digits, outputs, strict=True):
            command(path, output)
        assert outline(outputs[0]) == outline(outputs[1]), name
        assert compare(*outputs).identical, name
    assert compare(dense, packed).identical


@pytest.mark.usefixtures("fresh_loads")
def test_the_report(digits: tuple[Path, Path], tmp_path: Path) -> None:
    found = pack(digits[0], output=tmp_path / "p.onnx", dry_run=True)
    assert not (tmp_path / "p.onnx").exists()
    told = json.loads(json.dumps(found.to_json()))
    assert told["output"] is None
    assert told["after"]["file_bytes"] == digits[1].stat().st_size
    packing = told["packing"]
    assert packing["information_bytes"] < sum(t["packed_bytes"] for t in packing["tensors"])
    assert packing["information_bytes"] == pytest.approx(sum(t["information_bytes"] for t in packing["tensors"]), abs=8)
    assert 4 < packing["bytes_per_nonzero"] < 6
    assert 0 < packing["zstd_bytes"]["after"] < packing["zstd_bytes"]["before"]
    assert all(packing["load"][when]["seconds"] > 0 for when in ("before", "after"))
    page = to_markdown(found.to_document())
    assert all(text in page for text in ("least possible", "memory while loading", "bit for bit", "block1.conv1"))
    rest = told["after"]["file_bytes"] - sum(t["packed_bytes"] for t in packing["tensors"])
    assert f"about {cell_text(rest, 'bytes')} of the file are the graph" in page
    assert page.startswith(f"## {digits[0]}: what would be packed")


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_loads")
def test_what_adaptive_packed_is_told(tmp_path: Path) -> None:
    """The report has the sizes and the loading of `--pack`, and does not say that the file kept its size."""
    found = prunecli.adaptive(SAMPLES / "digits-mlp.onnx", output=tmp_path / "small.onnx", pack=True, max_drop=0.3,
                              data=str(SAMPLES / "digits-test.npz"), jobs=1)  # fmt: skip
    told, page = found.to_json(), to_markdown(found.to_document())
    assert told["packing"]["tensors"]
    assert told["after"]["file_bytes"] == (tmp_path / "small.onnx").stat().st_size
    assert "Size, packed" in page
    assert "memory while loading" in page
    assert HONEST_PACKED.split(".")[0] in page
    assert "the file keeps its size" not in page


def test_pack_with_magnitude(tmp_path: Path) -> None:
    model = SAMPLES / "digits-cnn.onnx"
    apart = prunecli.magnitude(model, sparsity=0.8, output=tmp_path / "dense.onnx")
    found = prunecli.magnitude(model, sparsity=0.8, output=tmp_path / "packed.onnx", pack=True)
    assert compare(tmp_path / "dense.onnx", tmp_path / "packed.onnx").identical
    assert found.packed is not None
    assert found.after.file_bytes == (tmp_path / "packed.onnx").stat().st_size < 0.3 * apart.after.file_bytes
    assert found.to_json()["packing"]["tensors"]
    assert found.output is not None
    assert found.output.path == str(tmp_path / "packed.onnx")
    with pytest.raises(PruneError, match="already exists"):
        prunecli.magnitude(model, sparsity=0.8, output=tmp_path / "packed.onnx", pack=True)


def many_small(folder: Path) -> Path:
    """Some tensors, each smaller by its bits, whose decoding takes more than that."""
    kept = {f"w{i}": floats(16, 16, seed=i) for i in range(3)}
    for array in kept.values():
        array[:, ::2] = 0
    nodes = [node("MatMul", [f"h{i}" if i else "x", f"w{i}"], ["y" if i == 2 else f"h{i + 1}"]) for i in range(3)]
    return save_proto(proto(nodes, {"x": (2, 16)}, ["y"], kept), folder, "small.onnx")


def test_a_file_that_would_grow_is_refused(tmp_path: Path) -> None:
    path = many_small(tmp_path)
    with pytest.raises(PruneError, match=rf"larger: {path.stat().st_size:,} bytes would become \d,\d+$"):
        pack(path, output=tmp_path / "p.onnx", min_saving=0)
    assert list(tmp_path.iterdir()) == [path]
    found = prunecli.magnitude(path, sparsity=0.5, output=tmp_path / "p.onnx", pack=True)
    assert found.packed is None
    assert any("stored as it is: packing would make it larger" in note for note in found.notes)


def test_a_result_larger_than_its_input_says_so(tmp_path: Path) -> None:
    packed = tmp_path / "p.onnx"
    prunecli.magnitude(SAMPLES / "digits-mlp.onnx", sparsity=0.9, output=packed, pack=True)
    found = prunecli.magnitude(packed, sparsity=0.95, output=tmp_path / "dense.onnx")
    said = f"the result is larger than the input: {packed.stat().st_size:,} bytes became"
    assert found.to_json()["notes"][0].startswith(said)
    assert str(found.to_document().sections).count(said) == 1
    with pytest.raises(PruneError, match="packing would make it larger"):  # by its history
        pack(packed, output=tmp_path / "q.onnx")


def test_too_few_zeros_are_stored_as_they_are(tmp_path: Path) -> None:
    model = SAMPLES / "digits-cnn.onnx"
    found = prunecli.magnitude(model, sparsity=0.01, output=tmp_path / "packed.onnx", pack=True)
    assert found.packed is None
    assert any("stored as it is" in note for note in found.notes)
    assert not load(tmp_path / "packed.onnx").packed


@pytest.mark.slow
@pytest.mark.parametrize("path", REAL_MODELS)
@pytest.mark.parametrize(
    "options", [{"sparsity": 0.7}, {"pattern": "2:4"}, {"pattern": "4x1", "sparsity": 0.5}], ids=str
)
def test_shared_models(path: Path, options: dict[str, Any], tmp_path: Path) -> None:
    prunecli.magnitude(path, output=tmp_path / "z.onnx", verify=False, **options)
    found = pack(tmp_path / "z.onnx", output=tmp_path / "p.onnx")
    assert found.verification.kind == "exact"
    unpack(tmp_path / "p.onnx", output=tmp_path / "d.onnx")
    assert outline(tmp_path / "d.onnx") == outline(tmp_path / "z.onnx")


def test_what_onnxruntime_does_not_open_is_packed_only_unproved(tmp_path: Path) -> None:
    """A bfloat16 product, which it has no kernel for on the CPU."""
    array = weight("50%").astype(ml_dtypes.bfloat16)
    nodes = [node("Cast", ["x"], ["b"], to=onnx.TensorProto.BFLOAT16), node("MatMul", ["b", "w"], ["z"]),
             node("Cast", ["z"], ["y"], to=onnx.TensorProto.FLOAT)]  # fmt: skip
    path = save_proto(model(nodes, {"w": array}), tmp_path)
    with pytest.raises(PruneError, match=r"the original itself cannot be opened: .*Could not find"):
        pack(path, output=tmp_path / "p.onnx")
    assert pack(path, output=tmp_path / "p.onnx", verify=False).verification.kind == "none"
    with pytest.raises(PruneError, match="the original itself cannot be opened"):
        unpack(tmp_path / "p.onnx", output=tmp_path / "d.onnx")
    unpack(tmp_path / "p.onnx", output=tmp_path / "d.onnx", verify=False)
    assert outline(tmp_path / "d.onnx") == outline(path)
    assert find_weights(load(tmp_path / "d.onnx")).all()[0].array().tobytes() == array.tobytes()


def test_own_nodes_may_be_named_like_chains(tmp_path: Path) -> None:
    nodes = two()
    nodes[0].name, nodes[1].name = "prunecli.pack/z", "prunecli.constant/y/"
    path = save_proto(model(nodes, {"w": weight("50%"), "v": weight("95%")}), tmp_path)
    assert pack(path, output=tmp_path / "p.onnx").verification.samples == 4
    unpack(tmp_path / "p.onnx", output=tmp_path / "d.onnx")
    assert compare(path, tmp_path / "d.onnx").identical
