"""Nothing is written without a proof, whatever the command, unless --no-verify asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import prunecli
from prunecli.errors import UnprovedError
from tests.model.build import floats, node, proto, save_proto


def shaped(width: int, extra: str = "") -> onnx.ModelProto:
    """Two layers and a Reshape, which runs where the length times 6 is a multiple of `width`."""
    weights = {
        "w1": floats(4, 8),
        "w2": floats(8, 6, seed=1),
        "w3": np.zeros((6, 400), np.float32),
        "shape": np.array([-1, width]),
    }
    nodes = [node("MatMul", ["x", "w1"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "w2"], ["m"]),
             node("MatMul", ["m", "w3"], ["z"]), node("Reshape", ["m", "shape"], ["y"])]  # fmt: skip
    domains = ["custom"] if extra else []
    if extra:
        nodes.append(node(extra, ["y"], ["u"], domain="custom"))
    return proto(nodes, {"x": (1, "time", 4)}, ["u" if extra else "y", "z"], weights, domains=domains)


WRITERS: dict[str, Callable[..., Any]] = {
    "magnitude": lambda path, **more: prunecli.magnitude(path, sparsity=0.5, **more),
    "structured": lambda path, **more: prunecli.structured(path, ratio=0.5, **more),
    "pack": lambda path, **more: prunecli.pack(path, **more),
}
CASES = [
    # width, an operator that nobody knows, what is said
    (5003, "", "the original itself does not run"),
    (6, "Unheard", "the original itself cannot be opened"),
]


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize(("width", "extra", "said"), CASES)
def test_what_cannot_be_run_is_written_only_unproved(
    command: str, width: int, extra: str, said: str, tmp_path: Path
) -> None:
    path, out = save_proto(shaped(width, extra), tmp_path), tmp_path / "out.onnx"
    with pytest.raises(UnprovedError, match=said) as caught:
        WRITERS[command](path, output=out)
    assert caught.value.exit_code == 2
    assert "--no-verify" in caught.value.hint
    assert sorted(tmp_path.iterdir()) == [path]
    assert WRITERS[command](path, output=out, verify=False).verification.kind == "none"
    assert out.exists()


@pytest.mark.parametrize("command", WRITERS)
def test_sizes_that_run_are_found(command: str, tmp_path: Path) -> None:
    """Neither 16 nor 64 times 6 is a multiple of 42."""
    path = save_proto(shaped(42), tmp_path)
    assert WRITERS[command](path, output=tmp_path / "out.onnx").verification.kind == "exact"
