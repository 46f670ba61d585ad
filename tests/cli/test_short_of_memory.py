"""Too little memory is told as that, wherever it shows: not as a damaged model, a folder that cannot be written to, a
result that is wrong, or a fit that is left out."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError

from prunecli.calibration.importance import Importance
from prunecli.errors import OutOfMemoryError, short_of_memory
from prunecli.model import loading
from prunecli.runtime import Session
from prunecli.structures import cut_proof
from prunecli.verify import pieces, prove
from tests.cli.conftest import Prune
from tests.model.build import floats, node, proto

FULL = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three layers, whose weights lie in a file of their own."""
    nodes = [node("MatMul", ["x", "w1"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "w2"], ["m"]),
             node("Relu", ["m"], ["q"]), node("MatMul", ["q", "w3"], ["y"])]  # fmt: skip
    weights = {name: floats(32, 32, seed=k) for k, name in enumerate(("w1", "w2", "w3"))}
    path = tmp_path / "m.onnx"
    onnx.save(proto(nodes, {"x": ("n", 32)}, ["y"], weights), path, save_as_external_data=True, location="m.data",
              size_threshold=0)  # fmt: skip
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(80, 32)).astype(np.float32))
    return path


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*args: object, **options: object) -> Any:
        raise error

    return fail


def opens_nothing(patch: pytest.MonkeyPatch) -> None:
    """onnxruntime's own text."""
    import onnxruntime

    patch.setattr(onnxruntime, "InferenceSession", failing(RuntimeError("[ONNXRuntimeError] : 6 : std::bad_alloc")))


def opens_no_result(patch: pytest.MonkeyPatch) -> None:
    """Of the staged file alone."""
    start = Session.open

    def opened(given: Any, **options: Any) -> Session:
        if isinstance(given, Path) and "prune-tmp" in str(given):
            raise OutOfMemoryError(f"onnxruntime cannot open {given}")
        return start(given, **options)

    patch.setattr(Session, "open", opened)


def runs_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(prove, "_run_reference", failing(OutOfMemoryError("onnxruntime cannot run it")))


def maps_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mmap, "mmap", failing(FULL))


def parses_nothing(patch: pytest.MonkeyPatch) -> None:
    class Onnx:
        @staticmethod
        def ModelProto() -> Any:  # noqa: N802
            return type("Proto", (), {"ParseFromString": failing(DecodeError("Error parsing: Arena alloc failed"))})()

    patch.setattr(loading, "onnx", Onnx)


def checks_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(onnx.checker, "check_model", failing(RuntimeError("std::bad_alloc")))


def weighs_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Importance, "of", failing(OutOfMemoryError("onnxruntime cannot open the model")))


STRUCTURED = ("structured", "--ratio", "0.5", "--no-timing")
MAGNITUDE = ("magnitude", "--sparsity", "0.5")
ONESHOT = ("oneshot", "--sparsity", "0.5", "--data", "x.npy")
# what there is no room for, the command
SHORT: list[tuple[Callable[[pytest.MonkeyPatch], None], tuple[str, ...]]] = [
    (maps_nothing, MAGNITUDE),
    (maps_nothing, STRUCTURED),
    (parses_nothing, MAGNITUDE),
    (checks_nothing, MAGNITUDE),
    (opens_nothing, MAGNITUDE),
    (opens_nothing, STRUCTURED),
    (opens_nothing, ONESHOT),
    (opens_no_result, MAGNITUDE),
    (opens_no_result, STRUCTURED),
    (runs_nothing, STRUCTURED),
    (weighs_nothing, ONESHOT),
]


@pytest.mark.parametrize(("short", "words"), SHORT)
def test_too_little_memory_is_told_as_that(
    short: Callable[[pytest.MonkeyPatch], None], words: tuple[str, ...], model: Path, prune: Prune,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(model.parent)
    before = sorted(model.parent.iterdir())
    short(monkeypatch)
    command, *options = words
    done = prune(command, model, *options, "-o", "out.onnx")
    first, second = done.err.splitlines()[-2:]
    assert done.code == 2
    assert "out of memory" in first
    assert not any(word in first for word in ("damaged", "no sense", "not the pruned", "internal", "cannot be opened"))
    assert "close other programs" in second
    assert sorted(model.parent.iterdir()) == before


def test_a_cut_that_does_not_fit_whole_is_proved_in_pieces(
    model: Path, prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE", 1 << 10)
    monkeypatch.setattr(cut_proof.CutProof, "_whole", failing(MemoryError()))
    done = prune(
        "structured", model, "--ratio", "0.5", "--no-timing", "--format", "json", "-o", model.parent / "out.onnx"
    )
    assert done.code == 0
    assert "pieces" in done.out


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (FULL, True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("Failed to allocate memory for requested buffer"), True),
        (ValueError("nonsense"), False),
    ],
)
def test_what_says_that_there_is_too_little_memory(error: Exception, short: bool) -> None:
    wrapped = ValueError("of something else")
    wrapped.__cause__ = error
    assert short_of_memory(error) is short_of_memory(wrapped) is short
