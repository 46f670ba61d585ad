"""How a shrunk model reads: as the contract's JSON, and as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from prunecli.errors import some
from prunecli.report.contract import report_json
from prunecli.report.document import Cell, Column, Document, Section, Table, Text
from prunecli.report.render_cells import how_many
from prunecli.report.sections import (
    REMOVED,
    headline,
    layer_bars,
    removed_of,
    shape_text,
    size_bars,
    size_table,
    warnings,
    written,
)
from prunecli.shrinking.rounds import CONSTANT, EQUAL, UNREAD, ZERO
from prunecli.types import Json

if TYPE_CHECKING:
    from prunecli.shrinking.result import Removed, ShrinkResult
    from prunecli.shrinking.vocabulary import VocabularyCut

TOP = 24
WHY = {
    UNREAD: "every weight that reads them is zero",
    ZERO: "always zero",
    CONSTANT: "always the same: put into biases",
    EQUAL: "multiples of others: added to those",
}
NOTHING = "nothing to remove"


def to_json(found: ShrinkResult) -> Json:
    """The contract's keys, with `removed` (units, branches, outputs, vocabulary, ...) and `tokenizer`."""
    extra: Json = {
        "dry_run": found.dry_run,
        "recipe": found.recipe,
        "nothing": found.removed.nothing,
        "removed": removed_json(found.removed),
        "tokenizer": found.tokenizer,
    }
    return report_json(found, "shrink", found.layers, skipped=(), sparsity=found.after.sparsity, extra=extra)


def removed_json(removed: Removed) -> Json:
    """The key `removed`."""
    last, tidied = removed.last_token, removed.tidied
    head = None if last is None else {"output": last.output, "begins": last.begins, "positions": last.positions}
    return {
        "units": [asdict(row) for row in removed.units],
        "branches": [asdict(branch) for branch in removed.branches],
        "outputs": [name for one in removed.interface if one.what == "output" for name in one.names],
        "inputs": [name for one in removed.interface if one.what == "input" for name in one.names],
        "last_token": head,
        "vocabulary": None if removed.vocabulary is None else _vocabulary_json(removed.vocabulary),
        "duplicates": {"tensors": list(tidied.duplicates), "bytes": tidied.bytes},
        "copies": tidied.copies,
    }


def _vocabulary_json(found: VocabularyCut) -> Json:
    from prunecli.shrinking.vocabulary import special_tokens

    return {
        "input": found.input,
        "before": found.before,
        "after": len(found.kept),
        "read_as": found.wanted.what,
        "remap": "graph" if found.in_graph else "tokenizer",
        "unknown": found.unknown,
        "kept": [int(number) for number in found.kept],
        "outputs": dict(found.outputs),
        "tensors": {name: {"before": old, "after": new} for name, (old, new) in found.tensors.items()},
        "special_tokens": special_tokens(found),
    }


def shrunk_json(found: ShrinkResult | None) -> Json:
    """The key `shrunk` of a command with `--shrink`."""
    if found is None:
        return {}
    proof = asdict(found.verification)
    return {"shrunk": {"nothing": found.removed.nothing, "removed": removed_json(found.removed), "verification": proof}}


def shrunk_sections(found: ShrinkResult | None) -> list[Section]:
    """What a command with `--shrink` tells of it."""
    if found is None:
        return []
    if found.removed.nothing:
        return [Text("not shrunk: no unit is empty", "warning")]
    return [_went(found.removed), _proof(found), *_units(found.removed), *_others(found.removed)]


def to_document(found: ShrinkResult) -> Document:
    """What people read: what went and why, sizes, the proof."""
    title = f"{found.model.path}: shrink{', what would go' if found.dry_run else ''}"
    if found.removed.nothing:
        said = f"{NOTHING}: no unit, branch or tensor is there for nothing; no file is written"
        return Document(title, [headline(said, "good"), *warnings(found.notes)])
    verb = "would go" if found.dry_run else "removed"
    sections: list[Section] = [headline(f"{removed_of(found.before, found.after)} {verb}", "good")]
    sections += [
        _went(found.removed),
        size_table(found.before, found.after),
        _proof(found),
        *warnings(found.notes),
        *_units(found.removed),
        *_others(found.removed),
        *_layers(found),
    ]
    sections.append(size_bars(found.before, found.after))
    sections += layer_bars([(r.weight, r.params_before, r.params_after) for r in found.layers], REMOVED)
    sections += written(found)
    if found.tokenizer is not None:
        sections.append(Text(f"tokenizer: {found.tokenizer}", "good"))
    return Document(title, sections)


def _proof(found: ShrinkResult) -> Text:
    proof = found.verification
    if proof.kind == "none":
        return Text(f"not proved: {proof.detail}", "warning")
    error = "" if not proof.max_abs_error else f", at most {proof.max_abs_error:.2g} apart"
    return Text(
        f"{'proved' if proof.kind == 'exact' else 'measured'} {proof.detail} ({how_many(proof.samples, 'run')}{error})",
        "good",
    )


def _went(removed: Removed) -> Text:
    """What went, and why, in a line."""
    reasons, cut, tidied = Counter[str](), removed.vocabulary, removed.tidied
    for row in removed.units:
        reasons.update(row.reasons)
    parts = [f"{count:,} unit{'s' * (count != 1)} ({WHY[why]})" for why, count in reasons.items()]
    parts += [f"{len(removed.branches)} branches that are always the same"] if removed.branches else []
    parts += [f"the {one.what} {some(list(one.names))}" for one in removed.interface]
    parts += [f"all positions but the last of {removed.last_token.output}"] if removed.last_token is not None else []
    parts += [f"{cut.before - len(cut.kept):,} of {cut.before:,} tokens"] if cut is not None else []
    parts += [f"{len(tidied.duplicates)} tensors stored twice"] if tidied.duplicates else []
    return Text(f"gone: {'; '.join(parts)}")


def _units(removed: Removed) -> Iterator[Section]:
    """Units by group, over all rounds."""
    names = dict.fromkeys((row.name, row.kind) for row in removed.units)
    rows: list[list[Cell]] = []
    for name, kind in names:
        mine = [row for row in removed.units if (row.name, row.kind) == (name, kind)]
        reasons = Counter[str]()
        for row in mine:
            reasons.update(row.reasons)
        told = "; ".join(f"{count} {WHY[why]}" if len(reasons) > 1 else WHY[why] for why, count in reasons.items())
        gone = sum(row.removed for row in mine)
        rows.append([name, kind, mine[0].before, mine[0].before - gone, told])
    if rows:
        columns = (
            Column("units of", "name"),
            Column("kind", drop=1),
            Column("before", "count"),
            Column("after", "count"),
            Column("why"),
        )
        yield Table("Units that went", columns, rows, top=TOP)


def _others(removed: Removed) -> Iterator[Section]:
    """Branches, inputs, outputs, tokens, tensors stored twice."""
    rows: list[list[Cell]] = [
        [f"branch into {branch.node}", "it adds zero" if branch.zero else "it is constant"]
        for branch in removed.branches
    ]
    for one in removed.interface:
        told = f"with {how_many(one.nodes, 'node')} that only it used" if one.what == "output" else "nothing reads it"
        rows.append([f"{one.what} {some(list(one.names))}", told])
    if removed.last_token is not None:
        rows.append([f"positions of {removed.last_token.output}", "all but the last, as asked"])
    if removed.vocabulary is not None:
        cut = removed.vocabulary
        place = "the graph takes the old ids" if cut.in_graph else "new ids are in the tokenizer written"
        told = f"not among the {len(cut.kept):,} kept ({cut.wanted.what}, and what they need); {place}"
        rows.append([f"{cut.before - len(cut.kept):,} of {cut.before:,} tokens", told])
    if removed.tidied.duplicates:
        tensors = how_many(len(removed.tidied.duplicates), "tensor")
        rows.append([f"{tensors} ({removed.tidied.bytes:,} bytes)", "stored twice"])
    if removed.tidied.copies:
        rows.append([how_many(removed.tidied.copies, "node"), "only passed a value on"])
    if rows:
        yield Table("Also gone", (Column("what"), Column("why")), rows, top=TOP)


def _layers(found: ShrinkResult) -> Iterator[Section]:
    rows: list[list[Cell]] = []
    for row in found.layers:
        before, after = (shape_text(shape) for shape in (row.shape_before, row.shape_after))
        rows.append([row.weight, row.op, before, after if row.params_after else "gone"])
    columns = (Column("weight", "name"), Column("op", drop=1), Column("before"), Column("after"))
    if rows:
        yield Table("Weights that changed", columns, rows, top=TOP)
