"""Gradients of whole real models against PyTorch autograd in float64 (needs the benchmark extra).

Usage: python benchmarks/gradients_oracle.py [FOLDER_OF_MODELS ...]

Per model: every stored floating-point tensor is differentiated, the loss is sum(output * random), and the largest
|g - g64| / max|g64| over the tensors is printed, with the share of tensors whose gradient is not all zero.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from common import OutputProduct

from prunecli.autodiff import differentiate
from prunecli.autodiff.losses import BinaryCrossEntropy

try:
    import torch
    import torch_interpreter
    import torch_operators  # noqa: F401  (registers its operators)
except ModuleNotFoundError:
    sys.exit("PyTorch is not installed: pip install 'prunecli[benchmark]'")

SIZES = {"det": (1, 3, 96, 128), "rec": (2, 3, 48, 160), "cls": (2, 3, 48, 192)}


def input_shape(path: Path, info: onnx.ValueInfoProto) -> tuple[int, ...]:
    dims = [d.dim_value if d.dim_value > 0 else 0 for d in info.type.tensor_type.shape.dim]
    for key, shape in SIZES.items():
        if (key in path.stem and "PP-OCR" in path.stem) or f"_{key}_" in path.stem:
            return shape
    return tuple(d or 2 for d in dims)


def feed(info: onnx.ValueInfoProto, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
        return rng.standard_normal(shape).astype(np.float32)
    return rng.integers(0, 2 if info.type.tensor_type.elem_type == 9 else 8, shape).astype(
        onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    )


def ends_in_sigmoid(path: Path) -> bool:
    """Then the loss is binary cross entropy: float32 sigmoids near 0 have no digits left to differentiate."""
    return onnx.load(path, load_external_data=False).graph.node[-1].op_type == "Sigmoid"


def ours(
    path: Path, feeds: dict[str, np.ndarray], wrt: list[str], vector_seed: int
) -> tuple[dict[str, np.ndarray], float]:
    started = time.perf_counter()
    loss = BinaryCrossEntropy(labels="vector") if ends_in_sigmoid(path) else OutputProduct()
    model = differentiate(ir.load(path), wrt, loss, shapes={k: v.shape for k, v in feeds.items()})
    built = time.perf_counter() - started
    options = ort.SessionOptions()
    options.log_severity_level = 3
    serialised = ir.to_proto(model.model).SerializeToString()
    session = ort.InferenceSession(serialised, options, providers=["CPUExecutionProvider"])
    weights = {k: t.numpy() for k, t in model.weights.items()}
    shape = model.loss_inputs["vector"][1]
    vector = np.random.default_rng(vector_seed).random(shape).astype(np.float32)
    values = session.run(list(model.gradients.values()), {**feeds, **weights, "vector": vector})
    return dict(zip(model.gradients, values, strict=True)), built


def oracle(
    path: Path, feeds: dict[str, np.ndarray], vector_seed: int, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    proto = onnx.load(path)
    tensors = torch_interpreter.load_tensors(proto, dtype)
    inputs = {k: torch.from_numpy(v) for k, v in feeds.items()}
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    values = torch_interpreter.run(proto, inputs, tensors)
    logits = values[proto.graph.node[-1].input[0]]
    y = values[proto.graph.output[0].name]
    vector = np.random.default_rng(vector_seed).random(tuple(y.shape)).astype(np.float32)
    target = torch.from_numpy(vector).to(dtype)
    # on the logits: torch clamps the denominator of its binary_cross_entropy on probabilities
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    loss = entropy(logits, target) if ends_in_sigmoid(path) else (y * target).sum()
    loss.backward()
    return {k: t.grad for k, t in tensors.items() if t.grad is not None}


def compare(path: Path) -> str:
    rng = np.random.default_rng(0)
    proto = onnx.load(path)
    stored = {t.name for t in proto.graph.initializer}
    infos = [i for i in proto.graph.input if i.name not in stored]
    feeds = {i.name: feed(i, input_shape(path, i), rng) for i in infos}
    wanted = oracle(path, feeds, 1)
    got, built = ours(path, feeds, list(wanted), 1)
    # a gradient that is zero but for rounding (a key's bias under softmax) is measured against its neighbours
    sizes = [np.abs(t.numpy()).max() for t in wanted.values()]
    floor = float(max(1e-3 * np.nanmedian(sizes), 1e-6 * np.nanmax(sizes)))
    alive = sum(bool(np.abs(t.numpy()).max() > 0) for t in wanted.values())
    worst, name = largest_error(got, wanted, floor)
    told = f"{len(wanted)} tensors, {alive} non-zero, worst {worst:.1e} ({name}), built in {built:.2f} s"
    if worst < 1e-4:
        return told
    # a ReLU or a maximum close to a tie falls to the other side in float32: what does PyTorch's float32 do there?
    single = {k: t.numpy() for k, t in oracle(path, feeds, 1, torch.float32).items()}
    return f"{told}; PyTorch in float32: {largest_error(single, wanted, floor)[0]:.1e}"


def largest_error(got: dict[str, np.ndarray], wanted: dict[str, torch.Tensor], floor: float) -> tuple[float, str]:
    """Over the tensors: max|g - g64| / max|g64|, and whose it is."""
    worst, worst_name = 0.0, ""
    for name, tensor in wanted.items():
        reference = tensor.numpy()
        scale = np.abs(reference).max()
        if scale == 0 and name not in got:
            continue
        error = float(np.abs(got[name] - reference).max() / max(scale, floor, 1e-30))
        if error > worst:
            worst, worst_name = error, name
    return worst, worst_name


def main() -> None:
    warnings.simplefilter("ignore")
    folders = [Path(a) for a in sys.argv[1:]] or [Path(__file__).parents[1] / "../shared/models"]
    failed = 0
    for path in sorted(p for folder in folders for p in ([folder] if folder.is_file() else folder.rglob("*.onnx"))):
        try:
            print(f"{path.stem:36s} {compare(path)}", flush=True)
        except Exception as error:  # what one model does must not hide the others
            failed += 1
            print(f"{path.stem:36s} FAILED {type(error).__name__}: {str(error)[:300]}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
