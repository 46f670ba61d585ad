"""Zeros in quantised models: counted, written at the zero point, and proved in onnxruntime with its integer kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

import prunecli
from prunecli.model import find_weights, load, save
from prunecli.model.constants import holders
from prunecli.model.floating import floats_of
from prunecli.model.quantised import packed, unpacked
from prunecli.packing.options import PackOptions
from prunecli.packing.plan import plan, write
from prunecli.runtime import Session
from prunecli.search.zero_pruner import WeightRanking, WeightSpace
from prunecli.types import no_progress
from tests.model.quantised_models import CASES, IMAGE, Net, nbits, qdq

PRUNABLE = [case for case in CASES if case[3] and not case[0].startswith(("bias", "per input"))]
"""onnxruntime itself does not run scales per input channel where it fuses."""
ZEROED = [
    *PRUNABLE,
    ("a scale of zero", lambda: qdq(scale=[0, 0.02, 0.03, 0.02], zero=[3, -7, 1, 0], axis=0), IMAGE, "w"),
]


def written(folder: Path, made: Callable[[], Net], shape: tuple[int, ...]) -> Path:
    onnx.save(made().model(shape), folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize(("name", "made", "shape", "weight"), ZEROED, ids=[case[0] for case in ZEROED])
def test_the_smallest_become_zero(
    tmp_path: Path, name: str, made: Callable[[], Net], shape: tuple[int, ...], weight: str
) -> None:
    path = written(tmp_path, made, shape)
    found = prunecli.magnitude(path, sparsity=0.5, include=[weight], also=["embedding"], output=tmp_path / "z.onnx")
    before, after = (
        next(w for w in find_weights(floats_of(load(file))).all() if w.name == weight).array().astype(np.float64)
        for file in (path, tmp_path / "z.onnx")
    )
    gone = after == 0
    assert gone.sum() >= gone.size // 2
    assert np.array_equal(after[~gone], before[~gone])
    assert np.abs(before[gone]).max() <= np.abs(before[~gone]).min()
    assert found.verification.kind == "exact"
    row = next(row for row in found.layers if row.weight == weight)
    assert row.nonzero == np.count_nonzero(after)
    assert row.dtype in ("int8", "uint8", "int4", "float8e4m3fn") or "floating point" in name or "the same" in name
    assert "bit for bit" in found.verification.detail
    space = WeightSpace(load(path), WeightRanking({weight: None}))  # trials of a search store the same
    trial = {t.name: t.raw_data for t in space.build({weight: 0.5}).graph.initializer}
    assert trial == {t.name: t.raw_data for t in onnx.load(tmp_path / "z.onnx").graph.initializer}
    assert space.build({}).graph == ir.to_proto(load(path).ir).graph
    assert space.cost({})["file_bytes"] <= len(trial[weight])


def test_weights_of_one_name_in_two_branches_keep_their_own_scales(tmp_path: Path) -> None:
    branches, given = {}, {}
    for number, (name, scale) in enumerate({"then": 0.02, "else": 0.5}.items()):
        array = np.random.default_rng(number).integers(-128, 128, (6, 4)).astype(np.int8)
        tensors = {"w": array, "s": np.float32(scale), "z": np.int8(3 - 9 * number)}
        nodes = [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], [f"{name}_f"]),
            helper.make_node("MatMul", ["x", f"{name}_f"], [f"{name}_y"]),
        ]
        out = helper.make_tensor_value_info(f"{name}_y", onnx.TensorProto.FLOAT, None)
        stored = [numpy_helper.from_array(np.asarray(value), key) for key, value in tensors.items()]
        branches[f"{name}_branch"], given[float(np.float32(scale))] = (
            helper.make_graph(nodes, name, [], [out], stored),
            tensors,
        )
    net = Net(13).hold(c=np.array(True)).add("If", "c", "y", **branches)
    onnx.save(net.model((5, 6)), tmp_path / "m.onnx")
    prunecli.magnitude(tmp_path / "m.onnx", sparsity=0.5, output=tmp_path / "z.onnx")
    node = onnx.load(tmp_path / "z.onnx").graph.node[0]
    for attribute in node.attribute:
        after = {t.name: numpy_helper.to_array(t) for t in attribute.g.initializer}
        before = given[float(after["s"])]
        assert ((after["w"] == before["w"]) | (after["w"] == before["z"])).all()
        assert (after["w"] == before["z"]).sum() >= 12


def test_inspect_counts_the_numbers_that_integers_stand_for(tmp_path: Path) -> None:
    """Zero is where the zero point is; scales are no parameters."""
    net = qdq(np.uint8, 128)
    net.constants["w"] = np.where(np.arange(108).reshape(4, 3, 3, 3) % 4 == 0, 128, 7).astype(np.uint8)
    onnx.save(net.model(IMAGE), tmp_path / "m.onnx")
    found = prunecli.inspect(tmp_path / "m.onnx")
    row = next(layer for layer in found.layers if layer.weight == "w")
    assert (row.params, row.nonzero, row.dtype, row.bytes) == (108, 81, "uint8", 108)
    assert found.totals.params == 108 + 8
    assert found.totals.macs == 2 * 36 * (108 + 8)
    assert found.skipped == []


def test_why_integers_are_left_as_they_are_is_said(tmp_path: Path) -> None:
    net = Net(13).add("DynamicQuantizeLinear", "x", "xq s z").integers("w", (6, 4)).hold(w_z=np.int8(0))
    net.add("MatMulInteger", "xq w z w_z", "i").add("Cast", "i", "y", to=onnx.TensorProto.FLOAT)
    path = written(tmp_path, lambda: net, (5, 6))
    (skipped,) = (one for one in prunecli.inspect(path).skipped if one.name == "w")
    assert "scale of 'w' is not found behind MatMulInteger" in skipped.reason
    with pytest.raises(prunecli.PruneError, match="is not found behind MatMulInteger"):
        prunecli.magnitude(path, sparsity=0.5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_fills_the_last_block_up_is_no_weight(tmp_path: Path, bits: int) -> None:
    """40 inputs in blocks of 16: 8 numbers of each row are read by nothing, whatever they are."""
    path = written(tmp_path, lambda: nbits(bits, 40, zero=True), (3, 40))
    found = prunecli.magnitude(path, sparsity=0.5, output=tmp_path / "z.onnx")
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "z.onnx").graph.initializer}
    points = unpacked(stored["w_z"].reshape(4, -1), bits)[:, :3, None]
    steps = (unpacked(stored["w"], bits).astype(int) - points).reshape(4, -1)[:, :40]
    (row,) = (row for row in found.layers if row.weight == "w")
    assert (row.params, row.nonzero) == (160, np.count_nonzero(steps))
    assert 70 <= row.nonzero <= 80


@pytest.mark.parametrize(
    ("dtype", "zero", "size"),
    [(np.int8, 0, 64), (np.int8, -7, 64), (np.uint8, 128, 64), (np.uint8, 0, 64), (np.uint8, 255, 1500),
     (np.int8, None, 64), (np.uint8, None, 1500)],
)  # fmt: skip
def test_sparse_integers_are_packed_and_unpacked_to_the_bit(
    tmp_path: Path, dtype: type, zero: int | None, size: int
) -> None:
    """Several small tensors that share a chain, or a large one in pieces. None: every column has its own zero point."""
    rng, before = np.random.default_rng(0), "x"
    net = Net(13)
    for number in range(3 if size == 64 else 1):
        point = (np.arange(size) % 200).astype(dtype) if zero is None else np.array(zero, dtype)
        array = np.ascontiguousarray(np.broadcast_to(point, (size, size)))
        gone = rng.random(array.shape) < 0.9
        array[~gone] = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, int((~gone).sum()), dtype, endpoint=True)
        scale = np.full(point.shape, 0.01, np.float32)
        net.hold(**{f"w{number}": array, f"s{number}": scale, f"z{number}": point})
        net.add("DequantizeLinear", f"w{number} s{number} z{number}", f"f{number}")
        after = "y" if number == 2 or size > 64 else f"h{number}"
        net.add("MatMul", f"{before} f{number}", after)
        before = after
    assert_packed(tmp_path, net, (2, size), 0.5)


def assert_packed(folder: Path, net: Net, shape: tuple[int, ...], most: float) -> None:
    """Stored tensors are much smaller, onnxruntime computes the same, and what is read again has the same bits."""
    onnx.save(net.model(shape), folder / "m.onnx")
    file = load(folder / "m.onnx")
    given = {holder.name: holder.tensor.numpy() for holder in holders(file.ir)}
    items = plan(file, PackOptions(), {}, no_progress)
    assert any(item.is_packed for item in items)
    write(file, items)
    save(file, folder / "p.onnx")
    assert (folder / "p.onnx").stat().st_size < most * (folder / "m.onnx").stat().st_size
    again = {holder.name: holder.tensor.numpy() for holder in holders(load(folder / "p.onnx").ir)}
    assert given.keys() == again.keys()
    assert all(np.array_equal(given[name], again[name]) and given[name].dtype == again[name].dtype for name in given)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    runs = [Session.open(folder / name).run({"x": x})["y"] for name in ("m.onnx", "p.onnx")]
    assert np.array_equal(*runs)


@pytest.mark.parametrize("own", [False, True])
def test_packed_bits_of_sparse_blocks(tmp_path: Path, own: bool) -> None:
    """MatMulNBits keeps two numbers in a byte: where both are zero the byte is. `own`: blocks have zero points."""
    points = np.random.default_rng(0).integers(0, 16, (256, 4)) if own else np.full((256, 4), 8)
    net = Net(21).hold(w_s=np.ones(1024, np.float32), w_z=packed(points.astype(np.uint8), 4).reshape(-1))
    net.hold(w=np.repeat((points * 0x11).astype(np.uint8)[:, :, None], 8, axis=2))
    net.constants["w"][:, 0, 0] = np.arange(256)  # type: ignore[index]
    net.add("MatMulNBits", "x w w_s w_z", "y", "com.microsoft", K=64, N=256, bits=4, block_size=16)
    assert_packed(tmp_path, net, (2, 64), 0.9)


@pytest.mark.slow  # loading is measured
def test_pack_and_unpack_a_quantised_model(tmp_path: Path) -> None:
    net = Net(13).hold(w=np.full((64, 64), 128, np.uint8), s=np.float32(0.1), z=np.uint8(128))
    net.constants["w"][::7] = 3  # type: ignore[index]
    onnx.save(net.add("DequantizeLinear", "w s z", "f").add("MatMul", "x f", "y").model((2, 64)), tmp_path / "m.onnx")
    found = prunecli.pack(tmp_path / "m.onnx", output=tmp_path / "p.onnx")
    assert [(row.name, row.nonzero) for row in found.rows] == [("w", 640)]
    prunecli.unpack(tmp_path / "p.onnx", output=tmp_path / "u.onnx")
    again = next(t for t in onnx.load(tmp_path / "u.onnx").graph.initializer if t.name == "w")
    assert np.array_equal(numpy_helper.to_array(again), net.constants["w"])
