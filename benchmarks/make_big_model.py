"""Make a large model with external data: a chain of MatMuls, 24 tensors of 128 MiB (3 GiB) by default.

    python benchmarks/make_big_model.py big/big.onnx [--tensors 24] [--mebibytes 128] [--seed 0]

One tensor is in memory at a time. The values are normal, scaled so that activations stay near 1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

NARROW = 4096


def make(path: Path, tensors: int = 24, mebibytes: int = 128, seed: int = 0) -> None:
    """Write `path` and `path`.data: y = x @ w0 @ w1 ..., with w of (4096, N) and (N, 4096) in turn."""
    wide = mebibytes * (1 << 20) // 4 // NARROW
    rng = np.random.default_rng(seed)
    nodes, stored = [], []
    offset = 0
    with Path(f"{path}.data").open("wb") as data:
        for index in range(tensors):
            shape = (wide, NARROW) if index % 2 else (NARROW, wide)
            values = rng.standard_normal(shape, dtype=np.float32)
            values *= np.float32(shape[0] ** -0.5)
            data.write(values.data)
            stored.append(_reference(f"w{index}", shape, f"{path.name}.data", offset, values.nbytes))
            offset += values.nbytes
            nodes.append(helper.make_node("MatMul", [f"h{index}", f"w{index}"], [f"h{index + 1}"]))
    x = helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["batch", NARROW])
    width = wide if tensors % 2 else NARROW
    y = helper.make_tensor_value_info(f"h{tensors}", TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph(nodes, "chain", [x], [y], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def _reference(name: str, shape: tuple[int, int], location: str, offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(value)))
    return tensor


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--tensors", type=int, default=24)
    parser.add_argument("--mebibytes", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.path.parent.mkdir(parents=True, exist_ok=True)
    make(given.path, given.tensors, given.mebibytes, given.seed)
    print(given.path, Path(f"{given.path}.data").stat().st_size, "bytes of data")
