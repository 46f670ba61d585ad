"""Runs numbered cases in worker processes with limits, and counts what went wrong by kind."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

Case = Callable[[int, int, Path], str]
"""case(seed, number, empty folder) -> what went wrong in a few words that are equal for equal faults, or nothing."""
MEMORY = 6 << 30
"""Bytes of address space of a worker."""
SECONDS = 60
"""For one case."""
SHOWN: list[bool] = []
"""Not empty: what commands say is shown."""


@dataclass
class Ran:
    """A command line that was carried out."""

    code: int
    out: str
    err: str

    @property
    def fault(self) -> str:
        """An internal error by type and place, another exit code than the contract's, an error not told in one line."""
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}"
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if self.code == 2 and len(errors) != 1:
            return f"{len(errors)} error lines"
        if errors and (errors[0].startswith("error: internal") or "please report" in self.err):
            places = re.findall(r'File "[^"]*/(prunecli/[^"]+)", line (\d+), in (\w+)', self.err)
            kind = re.sub(r"[\d.]+|'[^']*'|\"[^\"]*\"", "_", errors[0])[:90]
            return f"{kind} at {':'.join(places[-1][:2]) if places else 'an unknown place'}"
        return ""


def command(*line: object) -> Ran:
    """Run a command line of the program in this process."""
    from prunecli.cli.app import run

    out, err = io.StringIO(), io.StringIO()
    os.environ["PRUNE_DEBUG"] = "1"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run([str(word) for word in line])
        except SystemExit as raised:
            code = raised.code if isinstance(raised.code, int) else 1
    if SHOWN:
        print("$ prune", *line, "\n" + err.getvalue())
    return Ran(code, out.getvalue(), err.getvalue())


def _worker(case: Case, seed: int, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what native libraries say
    while True:
        number = pipe.recv()
        with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
            try:
                os.chdir(folder)
                found = case(seed, number, Path(folder))
            except Exception as error:
                found = f"the campaign itself: {type(error).__name__}: {error}"[:200]
            os.chdir("/")
        pipe.send(found)


@dataclass
class Campaign:
    """`goal`: what the figures are to be."""

    title: str
    goal: str
    case: Case
    count: int
    seconds: float = SECONDS
    found: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def main(self) -> None:
        """The command line of a campaign. Exit code 1 where the goal was missed."""
        parser = argparse.ArgumentParser(description=self.title)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--count", type=int, default=self.count)
        parser.add_argument("--from", type=int, default=0, dest="first")
        parser.add_argument("--only", type=int)
        given = parser.parse_args()
        if given.only is not None:
            SHOWN.append(True)
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
                print(self.case(given.seed, given.only, Path(folder)) or "right")
            return
        start = time.monotonic()
        self._run(given.seed, range(given.first, given.first + given.count))
        wrong = sum(map(len, self.found.values()))
        print(f"{self.title}: {given.count} cases of seed {given.seed} in {time.monotonic() - start:.0f} s, "
              f"{wrong} wrong, of {len(self.found)} kinds. Goal: {self.goal}")  # fmt: skip
        for kind, numbers in sorted(self.found.items(), key=lambda item: -len(item[1])):
            print(f"  {len(numbers):5d}  {kind}  (--only {numbers[0]})")
        sys.exit(bool(wrong))

    def _run(self, seed: int, numbers: range) -> None:
        process, pipe = self._start(seed)
        for number in numbers:
            pipe.send(number)
            try:
                found = pipe.recv() if pipe.poll(self.seconds) else f"longer than {self.seconds:g} s"
            except EOFError:
                process.join()
                found = f"the process died of {_died(process.exitcode)}"
            if found:
                self.found[found].append(number)
            if found.startswith(("longer", "the process")):
                process.kill()
                process, pipe = self._start(seed)
        process.kill()

    def _start(self, seed: int) -> tuple[object, Connection]:
        context = get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_worker, args=(self.case, seed, there), daemon=True)
        process.start()
        there.close()
        return process, here


def _died(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
