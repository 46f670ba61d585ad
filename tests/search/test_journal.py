"""What was measured is found again, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunecli.errors import PruneError
from prunecli.search.runner import Journal
from prunecli.search.trials import Outcome, TrialGroup

JOB = TrialGroup.of({"a": 0.5, "b": 0.0}, {"a": 0.25}, probe=True)
FOUND = [Outcome(0.1, float("inf")), Outcome(1 / 3, 0.25, {"predicted": np.arange(5), "log_prob": np.ones(2) / 3})]


def test_it_gives_back_what_was_put(tmp_path: Path) -> None:
    Journal(tmp_path / "s", "me").put(JOB, FOUND)
    again = Journal(tmp_path / "s", "me")
    one, two = again.get(TrialGroup.of({"a": 0.5}, {"a": 0.25}, probe=True)) or []
    assert (one.damage, one.error, one.records) == (0.1, float("inf"), None) and two.damage == 1 / 3
    assert two.records is not None and np.array_equal(two.records["log_prob"], np.ones(2) / 3)
    assert again.get(TrialGroup.of({"a": 0.5}, {"a": 0.25})) is None and JOB.key in again.earlier


def test_a_line_that_was_cut_off_is_dropped_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "s"
    Journal(path, "me").put(JOB, FOUND)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"job": "x", "outc')
    again = Journal(path, "me")
    assert again.get(JOB) is not None and path.read_bytes() == whole
    other = TrialGroup.of({"b": 0.5})
    again.put(other, FOUND[1:])
    again.close()
    assert Journal(path, "me").get(other) is not None


BROKEN = [
    (b"{}\n", "not a state file"), (b"\x80\x04pickle\n", "not a state file"),
    (b'{"schema": "prunecli-state/1", "identity": "you"}\n', "another model"),
    (b'{"schema": "prunecli-state/1", "identity": "me"}\n{"job": 1}\n', "damaged"),
    (b'{"schema": "prunecli-state/1", "identity": "me"}\n{"job": "a", "outcomes": [{"damage": "1", "error": "0",'
     b' "records": "UEs="}]}\n', "damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BROKEN, ids=[m for _, m in BROKEN])
def test_what_is_something_else_is_refused_and_left_alone(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "s"
    path.write_bytes(content)
    with pytest.raises(PruneError, match=message):
        Journal(path, "me")
    assert path.read_bytes() == content


def test_without_a_path_it_only_remembers() -> None:
    journal = Journal(None, "me")
    journal.put(JOB, FOUND)
    assert journal.get(JOB) == FOUND and not journal.earlier


def test_a_file_of_nothing_is_a_new_one(tmp_path: Path) -> None:
    """As `mktemp` makes it, or a run that was killed before it had written a line."""
    (tmp_path / "s").touch()
    Journal(tmp_path / "s", "me").put(JOB, FOUND)
    assert Journal(tmp_path / "s", "me").get(JOB) is not None


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    first = Journal(tmp_path / "s", "me")
    with pytest.raises(PruneError, match="in use"):
        Journal(tmp_path / "s", "me")
    first.close()
    assert len(Journal(tmp_path / "s", "me")) == 0


def test_what_is_kept_under_another_job_is_damage() -> None:
    whole = TrialGroup.of({"a": 0.5}, {"a": 0.25})
    for job, outcomes in ((JOB, FOUND[:1]), (JOB, []), (whole, FOUND)):
        journal = Journal(None, "me")
        journal.put(job, outcomes)
        with pytest.raises(PruneError, match="damaged"):
            journal.get(job)


def test_only_regular_files(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(PruneError, match="not a regular file"):
            Journal(path, "me")
