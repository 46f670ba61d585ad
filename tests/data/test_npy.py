"""The .npy and .npz readers: laziness, limits, and files that lie."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunecli.data import arrays
from prunecli.data.arrays import open_npy, open_npz
from prunecli.errors import PruneError

A = np.arange(24, dtype=np.float32).reshape(6, 4)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("limit", [None, 2, 6, 100])
@pytest.mark.parametrize("array", [A, np.asfortranarray(A), A[:, :0], np.array(3.5), A > 5], ids=str)
@pytest.mark.parametrize("map_above", [0, 1 << 30])
def test_npz_gives_what_numpy_gives(
    save: Callable[..., None], limit: int | None, array: np.ndarray, map_above: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(arrays, "MAP_ABOVE", map_above)
    save(tmp_path / "d.npz", a=array, b=A)
    column = open_npz(tmp_path / "d.npz", limit)["a"]
    expected = array[:limit] if array.shape else array
    assert (column.shape, column.dtype) == (expected.shape, expected.dtype)
    assert np.array_equal(column.array(), expected)


@pytest.mark.parametrize("map_above", [0, 1 << 30])
def test_npy_gives_what_numpy_gives(map_above: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAP_ABOVE", map_above)
    np.save(tmp_path / "a.npy", A)
    assert np.array_equal(open_npy(tmp_path / "a.npy", "a", 5).array(), A[:5])


def test_mapped_members_are_not_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAP_ABOVE", 0)
    np.savez(tmp_path / "d.npz", a=A)
    assert isinstance(open_npz(tmp_path / "d.npz")["a"].array(), np.memmap)


def test_limit_bounds_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = np.random.default_rng(0).integers(0, 255, (20000, 100)).astype(np.uint8)
    np.savez_compressed(tmp_path / "d.npz", a=big)
    monkeypatch.setattr("prunecli.data.columns.memory_budget", lambda: 1000)
    assert np.array_equal(open_npz(tmp_path / "d.npz", 10)["a"].array(), big[:10])
    with pytest.raises(PruneError, match="GB of memory"):
        open_npz(tmp_path / "d.npz", 11)["a"].array()


def archive(path: Path, name: str, data: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, data)
    return path


def npy_bytes(array: np.ndarray, **replaced: str) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    data = stream.getvalue()
    for old, new in replaced.items():
        data = data.replace(old.encode(), new.encode())
    return data


def pickled(path: Path) -> Path:
    return archive(path, "a.npy", npy_bytes(np.array([{"x": 1}, None], object)))


def absurd(path: Path) -> Path:
    data = npy_bytes(A).replace(b"(6, 4), }           ", b"(60000000000, 4), } ")
    assert b"60000000000" in data
    return archive(path, "a.npy", data)


def negative(path: Path) -> Path:
    return archive(path, "a.npy", npy_bytes(A).replace(b"(6, 4), }", b"(-6,-4),}"))


def short(path: Path) -> Path:
    return archive(path, "a.npy", npy_bytes(A)[:-8])


def truncated(path: Path) -> Path:
    np.savez(path, a=A)
    path.write_bytes(path.read_bytes()[:-30])
    return path


def text(path: Path) -> Path:
    path.write_text("hello")
    return path


def not_npy(path: Path) -> Path:
    return archive(path, "a.npy", b"x" * 200)


def bomb(path: Path) -> Path:
    return archive(path, "a.npy", npy_bytes(np.zeros(300 << 20, np.uint8)), zipfile.ZIP_DEFLATED)


def flipped(path: Path) -> Path:
    np.savez_compressed(path, a=np.random.default_rng(0).random(2000))
    data = bytearray(path.read_bytes())
    data[5000] ^= 0xFF
    path.write_bytes(bytes(data))
    return path


BAD = {
    pickled: "Python objects",
    absurd: "says it holds",
    negative: "says it holds",
    short: "says it holds",
    truncated: "not a readable .npz",
    text: "not a readable .npz",
    not_npy: "not a readable .npy",
    bomb: "would expand",
    flipped: "damaged",
}


@pytest.mark.parametrize("make", BAD, ids=lambda f: f.__name__)
def test_files_that_lie_are_refused(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "d.npz")
    with pytest.raises(PruneError, match=BAD[make]):
        open_npz(path)["a"].array()


def test_structured_and_newer_headers(tmp_path: Path) -> None:
    array = np.zeros(3, [("λ", "f4")])  # a name beyond latin-1 asks for format 3.0
    path = tmp_path / "a.npy"
    with pytest.warns(UserWarning):
        np.save(path, array)
    with pytest.raises(PruneError, match="not a readable"):
        open_npy(path, "a")
