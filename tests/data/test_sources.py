"""Every source of the contract, from files as users write them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from prunecli.data import Dataset
from prunecli.data.options import SOURCES
from prunecli.errors import PruneError
from tests.data import open_text
from tests.tiny import spec

X = np.arange(12).reshape(4, 3)
Y = np.array([0, 1, 1, 0])


def feeds(data: Dataset, batch_size: int = 3) -> dict[str, list[Any]]:
    parts = [b.feed for b in data.batches(batch_size)]
    return {name: np.concatenate([p[name] for p in parts]).tolist() for name in parts[0]}


def npz(folder: Path) -> str:
    np.savez(folder / "d.npz", x=X.astype(np.float16), labels=Y)
    return str(folder / "d.npz")


def npy(folder: Path) -> str:
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    return str(folder / "x.npy")


def csv(folder: Path) -> str:
    rows = "\n".join(f"{a},{b},{label},{c}" for (a, b, c), label in zip(X, Y, strict=True))
    (folder / "t.csv").write_text(f"a,b,class,c\n{rows}\n")
    return str(folder / "t.csv")


def zoo(folder: Path) -> str:
    for k, row in enumerate(X):
        place = folder / f"test_data_set_{k}"
        place.mkdir()
        (place / "input_0.pb").write_bytes(
            numpy_helper.from_array(row[None].astype(np.float32), "x").SerializeToString()
        )
        (place / "output_0.pb").write_bytes(
            numpy_helper.from_array(row[None].astype(np.float32) * 2, "y").SerializeToString()
        )
    return str(folder)


def loader(folder: Path) -> str:
    (folder / "helper.py").write_text("OFFSET = 0\n")
    (folder / "loader.py").write_text(
        "import numpy as np\n"
        "from helper import OFFSET\n"
        "def batches():\n"
        "    print('loading')\n"
        "    x = np.arange(12).reshape(4, 3) + OFFSET\n"
        "    yield {'x': x[:3]}, [0, 1, 1]\n"
        "    yield {'x': x[3:]}, [0]\n"
    )
    return f"{folder / 'loader.py'}:batches"


# source -> how a user makes it, the label options, whether it has labels
CASES: dict[str, tuple[Callable[[Path], str], dict[str, Any], bool]] = {
    "npz": (npz, {}, True),
    "npy": (npy, {"labels": "y.npy"}, True),
    "csv": (csv, {"label_column": "class"}, True),
    "zoo": (zoo, {}, False),
    "loader": (loader, {}, True),
}


def opened(name: str, folder: Path, **more: Any) -> Dataset:
    make, options, _ = CASES[name]
    text = make(folder)
    options = {**options, **({"labels": folder / options["labels"]} if "labels" in options else {}), **more}
    return open_text(text, [spec("x: float32 (N, 3)")], **options)


@pytest.mark.parametrize("name", CASES)
def test_each_source_gives_the_same_samples(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = opened(name, tmp_path)
    assert len(data) == 4
    assert feeds(data) == {"x": X.astype(float).tolist()}
    assert data.has_labels == CASES[name][2]
    if data.has_labels:
        assert data.labels.tolist() == Y.tolist()
    assert capsys.readouterr().out == ""  # stdout is for the report


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("limit", [1, 3, 4, 9])
def test_each_source_keeps_the_first_samples_only(name: str, limit: int, tmp_path: Path) -> None:
    data = opened(name, tmp_path, limit=limit)
    assert feeds(data)["x"] == X[:limit].astype(float).tolist()
    if data.has_labels:
        assert data.labels.tolist() == Y[:limit].tolist()


def test_every_source_has_a_case(tmp_path: Path) -> None:
    opened("npz", tmp_path)  # the sources register themselves when data is first opened
    assert set(SOURCES) == {*CASES, "images"}  # whose samples are no rows of numbers: test_images.py


def test_labels_of_an_npz_from_a_file(tmp_path: Path) -> None:
    text = npz(tmp_path)
    np.save(tmp_path / "other.npy", Y + 5)
    data = open_text(text, [spec("x: float32 (N, 3)")], labels=tmp_path / "other.npy")
    assert data.labels.tolist() == [5, 6, 6, 5]


def test_recorded_outputs_are_the_reference(tmp_path: Path) -> None:
    data = opened("zoo", tmp_path)
    assert data.has_reference
    assert [b.reference["y"].tolist() for b in data.batches()] == (X[:, None] * 2).tolist()


def write_tensor(path: Path, array: np.ndarray, name: str = "") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(numpy_helper.from_array(array, name).SerializeToString())


def test_zoo_inputs_go_by_name_or_by_number(tmp_path: Path) -> None:
    specs = [spec("a: float32 (N, 1)"), spec("b: int64 (N)")]
    for folder, names in (("test_data_set_0", ("b", "a")), ("test_data_set_10", ("", ""))):
        values = [np.array([7]), np.array([[1.5]], np.float32)]
        for k, (name, value) in enumerate(zip(names, values if names[0] else values[::-1], strict=True)):
            write_tensor(tmp_path / folder / f"input_{k}.pb", value, name)
    data = open_text(str(tmp_path), specs)
    assert feeds(data) == {"a": [[1.5], [1.5]], "b": [7, 7]}
    assert len(open_text(str(tmp_path / "test_data_set_10"), specs)) == 1


def test_a_csv_feeds_one_input_per_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("﻿size;colour;kind\n1.5; red ;7\n2;blue;8\n", encoding="utf-8")
    specs = [spec("colour: str (N, 1)"), spec("size: float32 (N, 1)"), spec("kind: int64 (N)")]
    data = open_text(str(tmp_path / "t.csv"), specs)
    assert feeds(data) == {"colour": [["red"], ["blue"]], "size": [[1.5], [2]], "kind": [7, 8]}


def test_csv_columns_fill_fixed_dimensions_row_by_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("0,1,2,3\n" + "5,6,7,8\n")
    data = open_text(str(tmp_path / "t.csv"), [spec("x: float32 (N, 1, 2, 2)")])
    assert feeds(data) == {"x": [[[[5, 6], [7, 8]]]]}


@pytest.mark.parametrize(
    ("cells", "dtype", "values"),
    [
        (["0", "2"], np.int64, [0, 2]),
        (["0.5", "2"], np.float64, [0.5, 2]),
        (["1e3", "2"], np.float64, [1000, 2]),
        (["cat", "2"], np.str_, ["cat", "2"]),
        (["99999999999999999999", "2"], np.float64, [1e20, 2]),
    ],
)
def test_csv_labels_take_the_simplest_type(cells: list[str], dtype: Any, values: list[Any], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"1,{cell}\n" for cell in cells))
    labels = open_text(str(tmp_path / "t.csv"), [spec("x: float32 (N, 1)")], label_column="y").labels
    assert labels.tolist() == values
    assert np.issubdtype(labels.dtype, dtype)


CSV_ERRORS = {
    "empty": ("", "no header"),
    "header only": ("a,b,c\n", "no samples"),
    "no header": ("1.5,2,3\n4,5,6\n", "all numbers"),
    "repeated name": ("a,a,c\n1,2,3\n", "two columns named a"),
    "ragged": ("a,b,c\n1,2,3\n1,2\n", "line 3 has 2 cells, the header has 3"),
    "text": ("a,b,c\n1,2,3\n1,x,3\n", "sample 2, column b: 'x' is not a finite"),
    "missing": ("a,b,c\n1,,3\n", "sample 1, column b: '' is not a finite"),
    "nan": ("a,b,c\n1,nan,3\n", "sample 1, column b: 'nan'"),
    "too few columns": ("a,b\n1,2\n", "2 feature columns, the model's input is x"),
    "binary": ("a,b,c\n\xff\x00,2,3\n", "not a readable CSV|not a finite"),
    "open quote": ('a,b,c\n"1,2,3\n', "not a readable CSV"),
}


@pytest.mark.parametrize("case", CSV_ERRORS)
def test_bad_tables(case: str, tmp_path: Path) -> None:
    content, message = CSV_ERRORS[case]
    (tmp_path / "t.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(PruneError, match=message):
        open_text(str(tmp_path / "t.csv"), [spec("x: float32 (N, 3)")])


@pytest.mark.parametrize(
    ("column", "content", "message"),
    [("q", "a,y\n1,2\n", "no column named q"), ("y", "a,y\n1,2\n1,\n", "sample 2 has no y")],
)
def test_bad_label_columns(column: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(PruneError, match=message):
        open_text(str(tmp_path / "t.csv"), [spec("x: float32 (N, 1)")], label_column=column)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PruneError, match="no column for the model's input c: float32") as caught:
        open_text(str(tmp_path / "t.csv"), [spec("a: float32 (N, 1)"), spec("c: float32 (N, 1)")])
    assert "a, b" in caught.value.hint


def damaged(path: Path) -> None:
    path.write_bytes(b"\xff\xff\xff garbage")


def claims_more(path: Path) -> None:
    tensor = onnx.TensorProto(dims=[1 << 40, 3], data_type=1, raw_data=b"1234", name="x")
    path.write_bytes(tensor.SerializeToString())


def outside(path: Path) -> None:
    tensor = onnx.TensorProto(dims=[1, 3], data_type=1, data_location=1, name="x")
    tensor.external_data.add(key="location", value="/etc/passwd")
    path.write_bytes(tensor.SerializeToString())


def other_shape(path: Path) -> None:
    write_tensor(path, np.zeros((1, 7), np.float32), "x")


def not_a_number(path: Path) -> None:
    write_tensor(path, np.full((1, 3), np.nan, np.float32), "x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (damaged, "not a serialised TensorProto|damaged"),
        (claims_more, "claims more values"),
        (outside, "keeps its data in another file"),
        (other_shape, r"has the shape \(1, 7\)"),
        (not_a_number, "NaN"),
    ],
)
def test_bad_test_data(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    place = tmp_path / "test_data_set_0"
    place.mkdir()
    make(place / "input_0.pb")
    with pytest.raises(PruneError, match=message):
        open_text(str(tmp_path), [spec("x: float32 (N, 3)")])


def test_wrong_number_of_test_inputs(tmp_path: Path) -> None:
    (tmp_path / "test_data_set_0").mkdir()
    with pytest.raises(PruneError, match="0 input files, the model takes 1"):
        open_text(str(tmp_path), [spec("x: float32 (N, 3)")])


LOADERS = {
    "returns a dict": ("def f():\n    return {'x': [[1, 2, 3]]}\n", [[1, 2, 3]]),
    "returns a list": (
        "def f():\n    return [{'x': [[1, 2, 3]]}, {'x': [[4, 5, 6]]}]\n",
        [[1, 2, 3], [4, 5, 6]],
    ),
    "single samples": (
        "def f():\n    yield {'x': [1, 2, 3]}\n    yield {'x': [4, 5, 6]}\n",
        [[1, 2, 3], [4, 5, 6]],
    ),
    "another name": ("def f():\n    yield {'image': [[1, 2, 3]]}\n", [[1, 2, 3]]),
    "raises": ("def f():\n    raise KeyError('gone')\n", "raised KeyError: 'gone' .loader.py line 2."),
    "raises later": ("def f():\n    yield {'x': [[1, 2, 3]]}\n    1 / 0\n", "raised ZeroDivisionError"),
    "does not compile": ("def f(:\n", "raised SyntaxError"),
    "no such function": ("def g():\n    pass\n", "has no function f"),
    "not a function": ("f = 3\n", "has no function f"),
    "a coroutine": ("async def f():\n    return {}\n", "f is async"),
    "an asynchronous generator": ("async def f():\n    yield {}\n", "f is async"),
    "yields nothing": ("def f():\n    yield from ()\n", "yields no samples"),
    "returns None": ("def f():\n    pass\n", "returned NoneType"),
    "yields arrays": ("def f():\n    yield [[1, 2, 3]]\n", "yielded list"),
    "yields None on the way": ("def f():\n    yield {'x': [[1, 2, 3]]}\n    yield None\n", "yielded NoneType"),
    "objects": ("def f():\n    yield {'x': [object()]}\n", "Python objects"),
    "leaves": ("import sys\ndef f():\n    sys.exit(3)\n", "raised SystemExit: 3 .loader.py line 3."),
    "labels of two ranks": (
        "def f():\n    yield {'x': [[1, 2, 3]]}, [1]\n    yield {'x': [[1, 2, 3]]}, [[1, 2]]\n",
        r"labels of the shapes \(N,\) and \(N, 2\)",
    ),
    "ragged": ("def f():\n    yield {'x': [[1, 2, 3], [1]]}\n", "cannot become an array"),
    "wrong shape": ("def f():\n    yield {'x': [[1, 2]]}\n", "samples of shape"),
    "labels sometimes": (
        "def f():\n    yield {'x': [[1, 2, 3]]}\n    yield {'x': [[1, 2, 3]]}, [1]\n",
        "labels with some samples only",
    ),
    "too few labels": ("def f():\n    yield {'x': [[1, 2, 3]]}, [1, 2]\n", "2 labels for 1 samples"),
}


@pytest.mark.parametrize("case", LOADERS)
def test_loaders(case: str, tmp_path: Path) -> None:
    code, expected = LOADERS[case]
    (tmp_path / "loader.py").write_text(code)
    text = f"{tmp_path / 'loader.py'}:f"
    if isinstance(expected, str):
        with pytest.raises(PruneError, match=expected):
            open_text(text, [spec("x: float32 (N, 3)")])
    else:
        assert feeds(open_text(text, [spec("x: float32 (N, 3)")])) == {"x": expected}


def test_an_endless_loader_stops_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "loader.py").write_text("def f():\n    while True:\n        yield {'x': [[1, 2, 3]] * 4}\n")
    assert len(open_text(f"{tmp_path / 'loader.py'}:f", [spec("x: float32 (N, 3)")], limit=10)) == 10


def test_an_endless_loader_stops_at_the_memory_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunecli.data.loader.memory_budget", lambda: 1000)
    (tmp_path / "loader.py").write_text("def f():\n    while True:\n        yield {'x': [[1, 2, 3]] * 4}\n")
    with pytest.raises(PruneError, match="yields over"):
        open_text(f"{tmp_path / 'loader.py'}:f", [spec("x: float32 (N, 3)")])


def test_a_loader_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prunetestpackage").mkdir()
    (tmp_path / "prunetestpackage" / "__init__.py").write_text("")
    (tmp_path / "prunetestpackage" / "inner.py").write_text("def f():\n    return {'x': [[1, 2, 3]]}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(open_text("prunetestpackage.inner:f", [spec("x: float32 (N, 3)")])) == 1
    with pytest.raises(PruneError, match="ModuleNotFoundError"):
        open_text("prunetestpackage.other:f", [spec("x: float32 (N, 3)")])


def test_pieces_of_other_shapes_are_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "loader.py").write_text("def f():\n    for n in (2, 3, 2):\n        yield {'x': [[n] * n]}, [n]\n")
    data = open_text(f"{tmp_path / 'loader.py'}:f", [spec("x: float32 (N, T)")])
    assert [b.feed["x"].shape for b in data.batches(8)] == [(2, 2), (1, 3)]
    assert data.labels.tolist() == [2, 2, 3]


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    specs = [spec("x: float32 (N, 3)")]
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "pictures" / "cats").mkdir(parents=True)
    (tmp_path / "pictures" / "cats" / "1.JPG").write_bytes(b"")
    with pytest.raises(PruneError, match="is not shaped as images are"):
        open_text(str(tmp_path / "pictures"), specs)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(PruneError, match="neither a file nor a folder"):
        open_text(str(tmp_path / "pipe.npz"), specs)
    (tmp_path / "x.txt").write_text("1 2 3")
    for name in ("photos", "x.txt"):
        with pytest.raises(PruneError, match="not a readable data source") as caught:
            open_text(str(tmp_path / name), specs)
        assert "data.npz" in caught.value.hint
    for name in ("no.npz", "no.csv", "nothing"):
        with pytest.raises(PruneError, match="does not exist"):
            open_text(str(tmp_path / name), specs)
    with pytest.raises(PruneError, match="does not exist"):
        open_text(f"{tmp_path / 'no.py'}:f", specs)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(PruneError, match=r"Is a directory|not a readable"):
        open_text(str(tmp_path / "folder.npz"), specs)
    with pytest.raises(PruneError, match="no inputs"):
        open_text(npz(tmp_path), [])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (npz, {"label_column": "a"}, "--label-column does not go with"),
        (csv, {"labels": "y.npy"}, "--labels does not go with"),
        (npy, {"labels": "missing.npy"}, "labels file missing.npy does not exist"),
        (npy, {"labels": sys.executable}, "is not a .npy file"),
    ],
)
def test_label_options(make: Callable[[Path], str], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=message):
        open_text(make(tmp_path), [spec("x: float32 (N, 3)")], **options)
