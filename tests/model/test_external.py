"""External data: found inside the model's folder, through links too; refused outside, missing or short."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunecli.model import find_weights, load, save
from tests.model.build import external, floats, refused, run


def test_external_data_is_mapped(tmp_path: Path) -> None:
    path = external(tmp_path, offset=64)
    (tmp_path / "m.data").write_bytes(bytes(64) + floats(3, 4).tobytes())
    model = load(path)
    assert model.data_files == (tmp_path / "m.data",)
    assert np.array_equal(find_weights(model).prunable[0].array(), floats(3, 4))


OUTSIDE = [
    "../secret.data",
    "sub/../../secret.data",
    "{root}/secret.data",
    "../model/../secret.data",
    "link.data",
]


@pytest.mark.parametrize("location", OUTSIDE)
@pytest.mark.parametrize("exists", [True, False])
def test_external_data_stays_in_the_folder(location: str, exists: bool, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    if exists:
        floats(3, 4).tofile(tmp_path / "secret.data")
    (folder / "link.data").symlink_to(tmp_path / "secret.data")
    path = external(folder, location.format(root=tmp_path))
    if exists or location != "link.data":
        refused(path, "outside the model's folder", "in its own folder")
    if exists:
        model = load(path, allow_outside_data=True)
        assert np.array_equal(find_weights(model).prunable[0].array(), floats(3, 4))


def test_links_inside_the_folder_work(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    floats(3, 4).tofile(tmp_path / "store" / "blob")
    (tmp_path / "m.data").symlink_to("store/blob")
    assert load(external(tmp_path)).data_files == (tmp_path / "store" / "blob",)
    (tmp_path / "m.data").unlink()
    os.link(tmp_path / "store" / "blob", tmp_path / "m.data")
    assert np.array_equal(find_weights(load(external(tmp_path))).prunable[0].array(), floats(3, 4))


def test_a_model_cache_of_links_works(tmp_path: Path) -> None:
    """The layout of the common hub cache: snapshot folders hold links into one folder of blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    floats(3, 4).tofile(blobs / "d1")
    external(blobs).rename(blobs / "d0")
    (snapshot / "m.onnx").symlink_to("../../blobs/d0")
    (snapshot / "m.data").symlink_to("../../blobs/d1")
    model = load(snapshot / "m.onnx")
    assert model.data_files == (blobs / "d1",)
    save(model, tmp_path / "out.onnx")
    assert run(tmp_path / "out.onnx", {"x": floats(2, 3)})[0].shape == (2, 4)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_a_hard_link_to_another_users_file_is_refused(tmp_path: Path) -> None:
    floats(3, 4).tofile(tmp_path / "theirs")
    os.chown(tmp_path / "theirs", 12345, -1)
    (tmp_path / "model").mkdir()
    os.link(tmp_path / "theirs", tmp_path / "model" / "m.data")
    refused(external(tmp_path / "model"), "another user's file")


def write(size: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(bytes(size))


BAD_DATA: list[tuple[str, dict[str, object], Callable[[Path], object] | None, str]] = [
    ("missing", {}, None, "'m.data' is missing"),
    ("short", {}, write(47), "is too short: 'w' ends at byte 48, the file has 47"),
    ("empty", {}, write(0), "is too short"),
    ("beyond the end", {"offset": 1 << 40}, write(48), "is too short"),
    ("negative offset", {"offset": -4}, write(48), "offset '-4'"),
    ("absurd offset", {"offset": "9" * 30}, write(48), "offset '999"),
    ("wrong length", {"length": 44}, write(48), "needs 48 bytes, its external data entry says 44"),
    ("text length", {"length": "many"}, write(48), "length 'many'"),
    ("no location", {"location": ""}, write(48), "names no external data file"),
    ("nul in location", {"location": "m\0.data"}, write(48), "names no external data file"),
    ("folder", {}, Path.mkdir, "is not a regular file"),
    ("pipe", {}, os.mkfifo, "is not a regular file"),
    ("itself", {"location": "."}, write(48), "is not a regular file"),
]


@pytest.mark.parametrize(("name", "entry", "make", "words"), BAD_DATA, ids=[b[0] for b in BAD_DATA])
def test_bad_external_data(
    name: str, entry: dict[str, object], make: Callable[[Path], object] | None, words: str, tmp_path: Path
) -> None:
    path = external(tmp_path, **entry)  # type: ignore[arg-type]
    if make:
        make(tmp_path / "m.data")
    refused(path, words)
