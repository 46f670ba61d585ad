"""Measuring settings: what is known is not measured again, the rest runs wherever the pool has it run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prunecli.search.journal import Journal
from prunecli.search.pool import Pool
from prunecli.search.space import Setting
from prunecli.search.trials import Job, Outcome, Workspace
from prunecli.types import Progress, no_progress


@dataclass
class Bench:
    """`measured` counts jobs, `reused` those that the journal had from an earlier run."""

    workspace: Workspace
    pool: Pool
    journal: Journal
    progress: Progress = no_progress
    measured: int = 0
    reused: int = 0

    def measure(self, jobs: Sequence[Job], label: str = "measuring") -> list[list[Outcome]]:
        """The outcomes of every job, in order. Each result is in the journal before the next is waited for."""
        found = {n: known for n, job in enumerate(jobs) if (known := self.journal.get(job)) is not None}
        missing = [n for n in range(len(jobs)) if n not in found]
        self.reused += sum(jobs[n].key in self.journal.earlier for n in found)
        for number, outcomes in self.progress(self._run([jobs[n] for n in missing]), label, len(missing)):
            self.measured += 1
            self.journal.put(jobs[missing[number]], outcomes)
            found[missing[number]] = outcomes
        return [found[n] for n in range(len(jobs))]

    def _run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, list[Outcome]]]:
        if jobs:
            yield from self.pool.run(self.workspace, jobs)

    def try_all(self, settings: Sequence[Setting], label: str = "trying") -> list[Outcome]:
        """Each setting by itself, on all samples."""
        return [outcomes[0] for outcomes in self.measure([Job.of(setting) for setting in settings], label)]

    def close(self) -> None:
        """Let go of the pool and of the journal's file."""
        self.pool.close()
        self.journal.close()
