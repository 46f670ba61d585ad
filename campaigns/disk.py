"""A disk that is full after some bytes: one clear error, the old files whole, nothing left behind.

Files end at a size limit of the process (RLIMIT_FSIZE), which the system reports as it reports a full disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from pathlib import Path
from random import Random

from campaigns.driver import Campaign, Ran
from campaigns.kills import LINES, left, set_out, words
from tests.tiny import ROOT

SIZES = (0, 100, 2_000, 20_000, 60_000, 150_000)
"""Bytes at which a file ends. The sample model has 204 kB."""


def _limited(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def case(seed: int, number: int, folder: Path) -> str:
    chance, line = Random(f"{seed} {number}"), LINES[number % len(LINES)]
    set_out(folder)
    size = chance.choice(SIZES)
    done = subprocess.run(
        words(line), cwd=folder, timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")}, check=False, capture_output=True,
        text=True, preexec_fn=lambda: _limited(size),
    )  # fmt: skip
    fault = Ran(done.returncode, done.stdout, done.stderr).fault
    if "Traceback" in done.stderr and os.environ.get("PRUNE_DEBUG") != "1":
        fault = "a traceback"
    os.environ["TMPDIR"] = str(folder / "tmp")
    fault = fault or left(folder)
    return fault and f"{line[0]}: {fault}, files of at most {size} bytes"


if __name__ == "__main__":
    Campaign("full disks", "none wrong", case, 66, 300).main()
