"""Sections that the reports of commands share: what is noted, proved and written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prunecli.report.document import Section, Text, Tone
from prunecli.report.result import ModelResult
from prunecli.types import Verification


def warnings(notes: Iterable[str]) -> list[Section]:
    """A line for each of them."""
    return [Text(note, "warning") for note in notes]


def proof_text(proof: Verification, measured: str = "", **words: tuple[str, Tone]) -> Text:
    """What was proved, or why nothing was. `measured` is put in brackets; `words`: what a kind of proof is called, and
    its tone, where that is not the usual."""
    if proof.kind == "none":
        return Text(f"not proved: {proof.detail}", "warning")
    usual: dict[str, tuple[str, Tone]] = {"exact": ("proved", "good"), "approximate": ("approximate", "warning")}
    word, tone = (usual | words)[proof.kind]
    return Text(f"{word}: {proof.detail}{f' ({measured})' if measured else ''}", tone)


def written(found: ModelResult) -> Iterator[Section]:
    """Where the model and the plan are."""
    if found.output is not None:
        yield Text(f"written: {found.output.path}", "good")
    if found.plan is not None:
        yield Text(f"plan: {found.plan}", "good")


def shape_text(shape: tuple[int, ...]) -> str:
    """2×3, or "scalar"."""
    return "×".join(map(str, shape)) or "scalar"


def share(part: int | None, whole: int | None) -> float | None:
    """What remains of a whole; None where one is unknown."""
    return part / whole if part is not None and whole else None
