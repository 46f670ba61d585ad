"""Sections that reports of commands share: sizes, removed parts, notes, proofs, files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from prunecli.errors import some
from prunecli.report.document import Bars, Cell, Column, Level, Section, Table, Text, Tone
from prunecli.report.render_cells import cell_text
from prunecli.report.result import ModelResult
from prunecli.types import Totals, Verification

MOST = 30
"""Most distributions that are drawn, those of the largest layers."""
ASSUMED = 4
"""Most sizes that are named."""
KEPT, ZEROED, REMOVED = "kept", "zeroed", "removed"


def layer_bars(rows: Iterable[tuple[str, int, int]], removed: str) -> Iterator[Section]:
    """`rows`: weight, elements before, elements left; largest first, since a bar shows its size."""
    ordered = sorted(rows, key=lambda row: -row[1])
    if ordered:
        names, before, after = zip(*ordered, strict=True)
        gone = [b - a for b, a in zip(before, after, strict=True)]
        series = [(KEPT, list(after)), (removed, gone)]
        yield Bars("Parameters by layer", names, series, form="count", stacked=True)


SIZES = {
    "params": "parameters",
    "nonzero": "not zero",
    "macs": "multiply-accumulates",
    "file_bytes": "file",
    "gzip_bytes": "file, gzipped",
}
"""Titles of the sizes of a model."""


def size_table(
    before: Totals,
    after: Totals,
    more: Sequence[Sequence[Cell]] = (),
    columns: tuple[str, str] = ("before", "after"),
    top: Sequence[Sequence[Cell]] = (),
) -> Table:
    """Sizes before and after, and the remaining fraction of each. `top`, `more`: rows of the same four cells above and
    below."""
    rows = []
    for name, title in SIZES.items():
        old, new = getattr(before, name), getattr(after, name)
        if name == "nonzero" and (old, new) == (before.params, after.params):
            continue
        form = "bytes" if name.endswith("bytes") else "count"
        about = "about " if name == "gzip_bytes" and after.gzip_estimated else ""
        texts = [f"{about}{cell_text(value, form)}" for value in (old, new)]
        rows.append((title, *texts, share(new, old)))
    heads = (Column(""), Column(columns[0]), Column(columns[1]), Column("remains", "percent"))
    return Table("Size", heads, [*top, *rows, *more], note=at_sizes(before), level=Level.NORMAL)


def at_sizes(found: Totals) -> str:
    """Return a phrase that names the assumed sizes of dynamic dimensions, other than 1, that work was counted at."""
    sizes = [size for size in found.assumed if not size.endswith(" = 1")]
    return f"multiply-accumulates at {some(sizes, ASSUMED)}: sizes assumed" if sizes else ""


def size_bars(before: Totals, after: Totals) -> Section:
    """The remaining fraction of each size."""
    sizes = [(title, getattr(before, name), getattr(after, name)) for name, title in SIZES.items()]
    known = [(title, new / old) for title, old, new in sizes if old and new is not None]
    names, left = [title for title, _ in known], [share for _, share in known]
    return Bars("What remains of the original", names, [("", left)], form="percent", full=1.0)


def headline(text: str, tone: Tone = "plain") -> Text:
    """Return the line that states the result, which is all that --quiet prints."""
    return Text(text, tone, Level.HEADLINE)


def detail_text(text: str) -> Text:
    """Return a sentence that is shown with the details."""
    return Text(text, level=Level.DETAIL)


def subordinate(section: Section) -> Section:
    """A section within the report of another command, which has a headline of its own."""
    return replace(section, level=max(section.level, Level.NORMAL))


def removed_of(before: Totals, after: Totals) -> str:
    """Return `48.6 % of 269,034 parameters and 50.2 % of 40.6 M multiply-accumulates`: the removed fraction of each
    size."""
    parts = []
    for name in ("params", "macs"):
        old, new = getattr(before, name), getattr(after, name)
        if old and new is not None:
            gone = cell_text(1 - new / old, "percent")
            parts.append(f"{gone} of {cell_text(old, 'count')} {SIZES[name]}")
    return " and ".join(parts) or "nothing"


def warnings(notes: Iterable[str]) -> list[Section]:
    """Return a paragraph in the tone of a warning for each note."""
    return [Text(note, "warning") for note in notes]


def proof_text(proof: Verification, measured: str = "", **words: tuple[str, Tone]) -> Text:
    """What was proved, or why nothing was. `measured` is added in brackets; `words`: names and tones of kinds of proof,
    where not the usual ones."""
    if proof.kind == "none":
        return Text(f"not proved: {proof.detail}", "warning")
    usual: dict[str, tuple[str, Tone]] = {"exact": ("proved", "good"), "approximate": ("approximate", "warning")}
    word, tone = (usual | words)[proof.kind]
    return Text(f"{word}: {proof.detail}{f' ({measured})' if measured else ''}", tone)


def written(found: ModelResult) -> Iterator[Section]:
    """The files of the model and of the plan."""
    if found.output is not None:
        yield Text(f"written: {found.output.path}", "good")
    if found.plan is not None:
        yield Text(f"plan: {found.plan}", "good")


def shape_text(shape: tuple[int, ...]) -> str:
    """2×3, or "scalar"."""
    return "×".join(map(str, shape)) or "scalar"


def share(part: int | None, whole: int | None) -> float | None:
    """Return part / whole; None where one is unknown or the whole is 0."""
    return part / whole if part is not None and whole else None
