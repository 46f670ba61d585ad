"""Runs command lines in this process, and in a fresh one where that matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prunecli.cli.app import run

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "sample_models"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Prune = Callable[..., Outcome]


@pytest.fixture
def prune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Prune:
    """`prune("inspect", path)` -> Outcome, with stdout and stderr captured."""
    monkeypatch.delenv("PRUNE_DEBUG", raising=False)

    def call(*args: object) -> Outcome:
        code = run([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


def in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh interpreter with only this project added to its path."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
