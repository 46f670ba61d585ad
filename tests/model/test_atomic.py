"""Interrupted, killed or out of space: the old file or the new one is there, and the folder is tidy."""

from __future__ import annotations

import ast
import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunecli import files
from prunecli.errors import PruneError
from prunecli.model import SaveOptions, find_weights, load, save
from prunecli.model import writing as bulk
from tests.model.build import big, floats, loaded
from tests.model.test_saving import ALWAYS, refused, snapshot
from tests.tiny import few

ROOT = Path(__file__).parents[2]


def fail_after(pieces: int, error: BaseException) -> Callable[[Any, Any], None]:
    write, count = bulk.HashingWriter.write, [0]

    def failing(self: bulk.HashingWriter, piece: bytes) -> None:
        count[0] += 1
        if count[0] > pieces:
            raise error
        write(self, piece)

    return failing


FULL = OSError(errno.ENOSPC, "No space left on device")
LIMITED = OSError(errno.EFBIG, "File too large")


@pytest.mark.parametrize("pieces", range(4))
@pytest.mark.parametrize("error", [FULL, LIMITED, KeyboardInterrupt()], ids=["full", "limited", "ctrl-c"])
def test_a_failing_write_leaves_the_old_file(
    pieces: int, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(big(600), tmp_path)
    save(model, tmp_path / "out.onnx", ALWAYS)
    before = snapshot(tmp_path)
    monkeypatch.setattr(bulk.HashingWriter, "write", fail_after(pieces, error))
    with pytest.raises((PruneError, KeyboardInterrupt)) as caught:
        save(model, tmp_path / "out.onnx", ALWAYS)
    if isinstance(caught.value, PruneError):
        assert str(error.args[1]) in caught.value.message
        assert ("free some space" if error is FULL else "raise ulimit -f") in caught.value.hint
    assert snapshot(tmp_path) == before


def test_too_little_space_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(big(), tmp_path)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    refused(model, tmp_path / "out.onnx", "16384 bytes needed, 1000 free", ALWAYS)


@pytest.mark.parametrize("mode", few(["external", "inline"], []))
def test_killed_at_any_moment_leaves_the_old_or_the_new_file(mode: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.model.killed", str(tmp_path), "60", mode]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    seen, _, files = result.stdout.strip().partition("} ")
    counts = ast.literal_eval(seen + "}")
    assert counts["old"] > 5, "the kills came too late to test anything"
    left = ast.literal_eval(files)  # after one last, undisturbed save
    assert len(left) == (2 if mode == "external" else 1)


# --- tidied up ---


def test_old_data_goes_with_its_model_and_foreign_files_stay(tmp_path: Path) -> None:
    model, target = loaded(big(), tmp_path), tmp_path / "out.onnx"
    save(model, target, ALWAYS)
    first = load(target).data_files[0]
    foreign = tmp_path / "out.onnx.data"
    foreign.write_bytes(b"not ours")
    find_weights(model).prunable[0].replace(lambda a: a * 2)
    save(model, target, ALWAYS)
    second = load(target).data_files[0]
    assert not first.exists()
    assert second.exists()
    assert foreign.read_bytes() == b"not ours"
    save(model, target, SaveOptions("never", force=True))
    assert not second.exists()


def test_data_that_another_model_uses_stays(tmp_path: Path) -> None:
    model, target = loaded(big(), tmp_path), tmp_path / "out.onnx"
    save(model, target, ALWAYS)
    (tmp_path / "copy.onnx").write_bytes(target.read_bytes())
    find_weights(model).prunable[0].replace(lambda a: a * 2)
    save(model, target, ALWAYS)
    assert np.array_equal(find_weights(load(tmp_path / "copy.onnx")).prunable[0].array(), floats(64, 64))


def test_saving_over_a_model_that_is_open(tmp_path: Path) -> None:
    """Old data stays readable through mappings made before."""
    model, target = loaded(big(), tmp_path), tmp_path / "out.onnx"
    save(model, target, ALWAYS)
    opened = find_weights(load(target)).prunable[0].array()
    find_weights(model).prunable[0].replace(lambda a: a * 2)
    save(model, target, ALWAYS)
    assert np.array_equal(opened, floats(64, 64))


def test_leftovers_of_a_running_save_are_not_touched(tmp_path: Path) -> None:
    model, target = loaded(big(), tmp_path), tmp_path / "out.onnx"
    with files.staging(target) as running:
        running.file.write_bytes(b"still writing")
        save(model, target, ALWAYS)
        assert running.file.read_bytes() == b"still writing"
    stale = tmp_path / ".out.onnx.abc.prune-tmp"
    stale.mkdir()
    (stale / "data").write_bytes(bytes(10))
    other = tmp_path / ".other.onnx.abc.prune-tmp"
    other.mkdir()
    save(model, target, ALWAYS)
    assert not stale.exists()
    assert not other.exists()


def test_names_with_special_characters(tmp_path: Path) -> None:
    model = loaded(big(), tmp_path)
    for name in ("a[1]*?.onnx", "mit leer zeichen.onnx", "ünï.onnx", "-dash.onnx", "noextension"):
        save(model, tmp_path / name, ALWAYS)
        save(model, tmp_path / name, ALWAYS)
        assert np.array_equal(find_weights(load(tmp_path / name)).prunable[0].array(), floats(64, 64))
