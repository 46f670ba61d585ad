"""Every encoding gives back the bits it was given: by this program, by onnxruntime and by ONNX's own evaluator."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from prunecli.model import load, save
from prunecli.model.constants import holders
from prunecli.model.saving import SaveOptions
from prunecli.storage import ENCODINGS, VALUES, Writer, choose, choose_narrow
from prunecli.storage.encodings import Encoded, EncodedTensor, Rows
from prunecli.storage.evaluate import RULES
from prunecli.storage.fitting import widened
from prunecli.storage.reading import KINDS
from prunecli.storage.writing import ChainSource, Names, ranges
from tests.model.build import save_proto
from tests.storage.sparse import DTYPES, Array, matmul, optimised, run, sparse

# encoding, pattern of the zeros, variant that must be chosen ("" where there is one only)
CASES = [
    ("mask", "50%", ""),
    ("mask", "80%", ""),
    ("mask", "odd", ""),
    ("mask", "last", ""),
    ("gaps", "50%", ""),
    ("gaps", "99%", ""),
    ("gaps", "odd", ""),
    ("gaps", "last", ""),
    ("gaps", "none", ""),
    ("windows", "2:4", "2:4"),
    ("windows", "1:4", "1:4"),
    ("windows", "1:8", "1:8"),
    ("windows", "3:16", "3:16"),
    ("blocks", "4x1", "4x1"),
    ("blocks", "1x4", "1x4"),
    ("blocks", "8x16", "8x16"),
    ("blocks", "1x*", "1x48"),
    ("blocks", "*x1", "32x1"),
]
ODD = [("mask", "50%", (31, 47)), ("gaps", "90%", (31, 47)), ("windows", "1:8", (3, 24)), ("blocks", "1x*", (33, 16))]
"""Sizes that do not fill the last byte."""  # fmt: skip


def packed(array: Array, encoded: Encoded, folder: Path) -> Path:
    """A model that multiplies with the array, stored by that chain."""
    model = load(save_proto(matmul(array), folder))
    holder = next(h for h in holders(model.ir) if h.tensor.size == array.size)
    writer = Writer(model.ir.graph, Names([model.ir.graph]), False, ranges(encoded.chain))
    writer.write(holder.value, encoded.chain, ChainSource("w", (holder.tensor,), ""))
    writer.finish()
    save(model, folder / "packed.onnx", SaveOptions(force=True))
    return folder / "packed.onnx"


def read(path: Path, size: int) -> Array:
    return np.asarray(next(h.tensor.numpy() for h in holders(load(path).ir) if h.tensor.size == size))


@pytest.mark.parametrize(("name", "zeros", "detail"), CASES, ids=[f"{c[0]} {c[1]}" for c in CASES])
def test_what_is_stored_decodes_to_the_same_bits(name: str, zeros: str, detail: str, tmp_path: Path) -> None:
    array = sparse(zeros)
    encoded = choose(EncodedTensor(array, ir.DataType.FLOAT), (name,))
    assert encoded is not None
    assert (encoded.encoding, encoded.detail) == (name, detail)
    path = packed(array, encoded, tmp_path)
    assert read(path, array.size).tobytes() == array.tobytes()
    assert optimised(path, tmp_path) == ["MatMul"]
    x = np.random.default_rng(1).standard_normal((3, len(array))).astype(np.float32)
    wanted = run(tmp_path / "m.onnx", {"x": x})[0]
    for optimise in (True, False):
        assert run(path, {"x": x}, optimise)[0].tobytes() == wanted.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # products with infinity
        theirs = ReferenceEvaluator(str(path)).run(None, {"x": np.eye(len(array), dtype=np.float32)})[0]
        ours = np.eye(len(array), dtype=np.float32) @ array
    assert np.array_equal(theirs, ours, equal_nan=True)


@pytest.mark.parametrize(("name", "zeros", "shape"), ODD)
def test_sizes_that_do_not_fill_the_last_byte(name: str, zeros: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = sparse(zeros, shape=shape)
    encoded = ENCODINGS[name](EncodedTensor(array, ir.DataType.FLOAT), Rows(array.reshape(-1)), 1 << 20)
    assert encoded is not None
    path = packed(array, encoded, tmp_path)
    assert read(path, array.size).tobytes() == array.tobytes()
    x = np.ones((1, len(array)), np.float32)
    assert run(path, {"x": x})[0].tobytes() == run(tmp_path / "m.onnx", {"x": x})[0].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ENCODINGS)
def test_every_float_type(name: str, dtype: str, tmp_path: Path) -> None:
    array = sparse("1:4", DTYPES[dtype])
    encoded = choose(
        EncodedTensor(array, ir.DataType[dtype.upper().replace("32", "").replace("FLOAT64", "DOUBLE")]), (name,)
    )
    assert encoded is not None
    path = packed(array, encoded, tmp_path)
    assert read(path, array.size).tobytes() == array.tobytes()
    assert set(optimised(path, tmp_path)) <= {"MatMul", "Cast"}
    x = np.ones((1, len(array)), np.float32)
    assert run(path, {"x": x})[0].tobytes() == run(tmp_path / "m.onnx", {"x": x})[0].tobytes()


def test_every_encoding_and_rule_is_tested() -> None:
    assert {case[0] for case in CASES} == set(ENCODINGS)
    assert {*RULES, "Compress", "Range", "Split", "Expand"} == set(KINDS)


# the smallest wins: density n/8 + k b against k (1 + b), and patterns against both
CHOICES = [
    ("50%", "mask"), ("95%", "gaps"), ("2:4", "windows"), ("1:8", "windows"), ("4x1", "blocks"), ("1x*", "blocks"),
    ("none", "gaps"), ("1%", None),
]  # fmt: skip


@pytest.mark.parametrize(("zeros", "name"), CHOICES)
def test_the_smallest_encoding_is_chosen(zeros: str, name: str | None) -> None:
    array = sparse(zeros, shape=(128, 96))
    found = choose(EncodedTensor(array, ir.DataType.FLOAT))
    assert (found.encoding if found else None) == name
    others = [choose(EncodedTensor(array, ir.DataType.FLOAT), (each,)) for each in ENCODINGS]
    assert found is None or found.nbytes == min(each.nbytes for each in others if each is not None)


@pytest.mark.parametrize("zeros", ["50%", "97%", "2:4", "1x4"])
@pytest.mark.parametrize("name", VALUES)
def test_narrow_values(name: str, zeros: str, tmp_path: Path) -> None:
    array = sparse(zeros)
    encoded = choose_narrow(EncodedTensor(array, ir.DataType.FLOAT), name)
    assert encoded is not None
    path = packed(array, encoded, tmp_path)
    found = read(path, array.size)
    assert found.tobytes() == widened(array, ir.DataType.FLOAT, name).tobytes()
    assert (found[array == 0] == 0).all()
    assert optimised(path, tmp_path) == ["MatMul"]
    # half a step: 2^-11 of a value in float16, 1/254 of the largest in its row in int8, and rounding of the product
    step = np.abs(array) * 2**-11 if name == "float16" else np.abs(array).max(axis=1, keepdims=True) / 254
    assert (np.abs(found - array) <= step * (1 + 1e-5)).all()
    assert np.abs(found - array).max() > 0


NOT_NARROW = [("vector", sparse("50%").reshape(-1)), ("infinite", sparse("odd"))]


@pytest.mark.parametrize(("why", "array"), NOT_NARROW, ids=[c[0] for c in NOT_NARROW])
@pytest.mark.parametrize("name", VALUES)
def test_what_stays_exact(name: str, why: str, array: Array) -> None:
    assert choose_narrow(EncodedTensor(array, ir.DataType.FLOAT), name) is None
    assert widened(array, ir.DataType.FLOAT, name) is array


@settings(max_examples=60)
@given(st.lists(st.integers(0, 700), max_size=40), st.integers(0, 700), st.integers(1, 3))
def test_positions(runs: list[int], tail: int, width: int) -> None:
    """Zeros in runs of these lengths between ones; pieces and fillers must not matter."""
    from prunecli.storage import encodings

    flags = [flag for run in runs for flag in (*[0] * run, 1)] + [0] * tail
    flat = np.array(flags, np.float32)
    values = flat if width == 1 else np.repeat(flat[:, None], width, axis=1)
    if not len(flat):
        return
    old, encodings.PIECE = encodings.PIECE, 64
    try:
        rows = Rows(values)
        places = np.cumsum(rows.gaps(), dtype=np.int64)
        at = rows.at_gaps()
        assert len(places) == len(at) == rows.entries
        assert len(set(places.tolist())) == len(places)
        again = np.zeros_like(values)
        again[places] = at
        assert np.array_equal(again, values)
        if rows.count:
            bits = np.unpackbits(rows.bits(), bitorder="little")[: len(flat)].astype(bool)
            assert np.array_equal(bits, flat != 0)
            assert np.array_equal(rows.at_bits(), values[bits])
    finally:
        encodings.PIECE = old
