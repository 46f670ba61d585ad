"""Packed files: size, loading and running, against the dense file, COO, gzip -9 and zstd -19.

    python benchmarks/packing.py [--models 4096 six4096 resnet56 ocr minilm] [--sparsities 0.5 ... 2:4] [--folder F]
                                 [--peer-python PYTHON]

Each model is pruned layer by layer with `prune magnitude`, then packed, with everything that `prune pack` checks.
"of weights": what is stored for the packed tensors, nodes and names included, of their dense float32. gzip and zstd
are of the dense file, estimated from 2 MiB in even pieces where it is larger. Load time and peak memory are times the
dense file's, in fresh processes on one thread; the running time is that of packed over dense, the least of runs that
take turns. Times are of the processor, which other programs matter less to. With --peer-python, a Python that has
OpenVINO opens each file, too.
"""

from __future__ import annotations

import gzip
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import zstandard
from common import SHARED, parser, peer, show
from generate import mini_lm
from onnx import TensorProto, helper, numpy_helper

import prunecli
from prunecli.errors import PruneError
from prunecli.packing.pack import PackResult, pack
from prunecli.runtime import Execution

ONE = Execution(threads=1)
SPARSITIES = ("0.5", "0.7", "0.8", "0.9", "0.95", "2:4")
TARGETS = {"0.5": 0.535, "2:4": 0.57, "0.8": 0.24, "0.9": 0.127, "0.95": 0.067}
SAMPLE, PIECES = 1 << 19, 4
RUNS, LIMIT = 41, 4.0


def matmuls(path: Path, count: int, size: int = 4096) -> Path:
    """y = x a b ... with float32 matrices of 4096 x 4096."""
    rng, names = np.random.default_rng(0), [f"w{i}" for i in range(count)]
    values = ["x", *(f"z{i}" for i in range(1, count)), "y"]
    stored = [numpy_helper.from_array(rng.standard_normal((size, size), np.float32) / 64, name) for name in names]
    nodes = [helper.make_node("MatMul", [values[i], names[i]], [values[i + 1]]) for i in range(count)]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])] for name in "xy"]
    graph = helper.make_graph(nodes, "g", *ends, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


MODELS: dict[str, Callable[[Path], Path]] = {
    "4096": lambda folder: matmuls(folder / "4096.onnx", 2),
    "six4096": lambda folder: matmuls(folder / "six4096.onnx", 6),
    "resnet56": lambda _: SHARED / "models/real/resnet56-cifar10.onnx",
    "ocr": lambda _: SHARED / "models/real/ch_PP-OCRv4_rec_infer.onnx",
    "minilm": lambda folder: mini_lm(folder / "minilm.onnx"),
}


def compressed(path: Path, method: Callable[[bytes], bytes]) -> float:
    """Compressed over plain size; of evenly spaced pieces of a large file."""
    data = path.read_bytes()
    if len(data) <= SAMPLE * PIECES:
        return len(method(data)) / len(data)
    starts = [(len(data) - SAMPLE) * i // (PIECES - 1) for i in range(PIECES)]
    return sum(len(method(data[s : s + SAMPLE])) for s in starts) / (SAMPLE * PIECES)


def running(dense: Path, packed: Path) -> float:
    """Least processor time of the packed model over that of the dense one; the two take turns."""
    sessions = [ONE.open(path) for path in (dense, packed)]
    calls = [session.prepared(sessions[0].random_inputs()).run for session in sessions]
    seconds: list[list[float]] = [[], []]
    start = time.perf_counter()
    for _ in range(RUNS):
        for call, found in zip(calls, seconds, strict=True):
            begin = time.thread_time()
            call()
            found.append(time.thread_time() - begin)
        if time.perf_counter() - start > LIMIT and len(seconds[0]) > 4:
            break
    return min(seconds[1]) / min(seconds[0])


def of_weights(found: PackResult) -> float:
    """What the file has grown smaller by, against the packed tensors alone: nodes and names count as theirs."""
    dense = sum(row.dense_bytes for row in found.rows if row.encoding != "dense")
    return 1 - (found.before.file_bytes - found.after.file_bytes) / dense


def row(name: str, model: Path, sparsity: str, folder: Path, python: str | None) -> list[object]:
    dense, packed = folder / f"{name}.dense.onnx", folder / f"{name}.packed.onnx"
    wanted = {"pattern": sparsity} if ":" in sparsity else {"sparsity": float(sparsity)}
    prunecli.magnitude(model, output=dense, force=True, verify=False, **wanted)
    found = pack(dense, output=packed, force=True, execution=ONE)
    size = dense.stat().st_size
    try:
        coo = pack(dense, output=folder / "coo.onnx", force=True, verify=False, format="coo").after.file_bytes / size
    except PruneError:
        coo = None  # nothing would be smaller
    assert found.loads is not None
    old, new = found.loads
    memory = new.peak_bytes / old.peak_bytes if old.peak_bytes and new.peak_bytes else float("nan")
    whole = packed.stat().st_size / size
    cells = [name, sparsity, f"{of_weights(found):.4f}", TARGETS.get(sparsity, ""), f"{whole:.3f}",
             "-" if coo is None else f"{coo:.3f}", f"{compressed(dense, lambda d: gzip.compress(d, 9)):.3f}",
             f"{compressed(dense, zstandard.ZstdCompressor(level=19).compress):.3f}",
             f"{new.cpu_seconds / old.cpu_seconds:.2f}", f"{memory:.2f}", f"{running(dense, packed):.3f}"]  # fmt: skip
    told = peer(python, "openvino_open.py", packed)
    return [*cells, told if isinstance(told, str) else f"opens, error {told['max_rel_error']:.0e}"]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options.add_argument("--sparsities", nargs="+", default=list(SPARSITIES))
    options.add_argument("--folder", type=Path)
    asked = options.parse_args()
    print(platform.platform(), platform.processor())
    rows = []
    with tempfile.TemporaryDirectory(dir=asked.folder) as made:
        for name in asked.models:
            model = MODELS[name](Path(made))
            if not model.exists():
                print(f"{name}: {model} is absent")
                continue
            for sparsity in asked.sparsities:
                rows.append(row(name, model, sparsity, Path(made), asked.peer_python))
                print(" ", *rows[-1], flush=True)
    head = ("model", "zeros", "of weights", "target", "packed file", "COO file", "gzip -9", "zstd -19", "load time ×",
            "load memory ×", "run time ×", "OpenVINO")  # fmt: skip
    show("Packed, as a fraction of the dense file", head, rows)


if __name__ == "__main__":
    main()
