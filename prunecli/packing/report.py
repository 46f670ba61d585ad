"""JSON and tables of a packed model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from prunecli.evaluation.report import fidelity_json, fidelity_table
from prunecli.report.contract import report_json
from prunecli.report.document import Cell, Column, Document, Level, Section, Table, Text
from prunecli.report.render_cells import cell_text
from prunecli.report.sections import headline, proof_text, shape_text, warnings, written
from prunecli.types import Json, LayerRow

if TYPE_CHECKING:
    from prunecli.packing.pack import PackResult
    from prunecli.packing.plan import PackRow

TOP = 24


def packing_json(found: PackResult) -> Json:
    """The key `packing`: the options, and the sizes reached."""
    loads = None
    if found.loads is not None:
        loads = {name: asdict(load) for name, load in zip(("before", "after"), found.loads, strict=True)}
    return {
        **found.packing,
        "zstd_bytes": {"before": found.zstd[0], "after": found.zstd[1]},
        "information_bytes": round(limit(found.rows)),
        "bytes_per_nonzero": per_nonzero(found),
        "load": loads,
        "tensors": [{**asdict(row), "information_bytes": round(row.information)} for row in found.rows],
    }


def limit(rows: Sequence[PackRow]) -> float:
    """The entropy of the masks plus the values, in bytes, over all tensors."""
    return sum(row.information for row in rows)


def per_nonzero(found: PackResult) -> float | None:
    nonzero = sum(row.nonzero for row in found.rows)
    stored = sum(row.packed_bytes for row in found.rows)
    return stored / nonzero if nonzero else None


def to_json(found: PackResult) -> Json:
    """The contract's keys, with `packing` and `fidelity`."""
    params = sum(row.size for row in found.rows)
    sparsity = 1 - sum(row.nonzero for row in found.rows) / params if params else 0.0
    extra = {"dry_run": found.dry_run, "packing": packing_json(found), "fidelity": fidelity_json(found.fidelity)}
    return report_json(
        found, found.command, map(_layer, found.rows), skipped=found.skipped, sparsity=sparsity, extra=extra
    )


def _layer(row: PackRow) -> LayerRow:
    return LayerRow.of(name=row.name, op="", weight=row.name, shape=row.shape, nonzero=row.nonzero,
                       encoding=row.encoding, detail=row.detail, bytes=row.packed_bytes)  # fmt: skip


def to_document(found: PackResult) -> Document:
    """What people read: sizes, the proof, loading, the tensors."""
    title = f"{found.model.path}: {f'what would be {found.command}ed' if found.dry_run else found.command}"
    return Document(title, [_headline(found), *_packing_sections(found, Level.NORMAL), tensors(found),
                            *warnings(found.notes), *written(found)])  # fmt: skip


def _headline(found: PackResult) -> Text:
    old, new = (cell_text(each.file_bytes, "bytes") for each in (found.before, found.after))
    share = found.after.file_bytes / found.before.file_bytes if found.before.file_bytes else None
    verb = "would become" if found.dry_run else "became"
    return headline(f"the file's {old} {verb} {new}, {cell_text(share, 'percent')}", "good")


def packed_json(found: PackResult | None) -> Json:
    """The key `packing` of a command with `--pack`; nothing where nothing was packed."""
    return {} if found is None else {"packing": packing_json(found)}


def packed_sections(found: PackResult | None) -> list[Section]:
    """The sections of a command with `--pack`, whose own table has the sizes; empty where nothing was packed."""
    return [] if found is None else [*_packing_sections(found, Level.DETAIL), tensors(found)]


def _packing_sections(found: PackResult, sizes: Level) -> list[Section]:
    """Sizes, the proof and loading."""
    sections: list[Section] = [
        replace(_sizes(found), level=sizes),
        proof_text(found.verification, approximate=("verified", "good")),
    ]
    if found.fidelity is not None:
        sections.append(fidelity_table(found.fidelity))
    if found.loads is not None:
        sections.append(_loading(found))
    return sections


def _sizes(found: PackResult) -> Table:
    before, after = found.before, found.after
    pairs = [("file", before.file_bytes, after.file_bytes), ("gzipped", before.gzip_bytes, after.gzip_bytes),
             ("zstd", *found.zstd)]  # fmt: skip
    rows: list[list[Cell]] = [[name, old, new, new / old if old else None] for name, old, new in pairs]
    dense, stored = (sum(getattr(row, key) for row in found.rows) for key in ("dense_bytes", "packed_bytes"))
    if found.command == "pack" and dense:
        rows.append(["packed tensors", dense, stored, stored / dense])
        rows.append(["least possible", None, round(limit(found.rows)), limit(found.rows) / dense])
    columns = (Column(""), Column("before", "bytes"), Column("after", "bytes"), Column("remains", "percent"))
    note = _sizes_note(found, after.file_bytes - stored)
    title = "Size, packed" if found.command == "pack" else "Size"
    return Table(title, columns, rows, note=note, level=Level.NORMAL)


def _sizes_note(found: PackResult, rest: int) -> str:
    """`rest`: bytes of the packed file outside the listed tensors."""
    if found.command != "pack" or not found.rows:
        return ""
    each = per_nonzero(found)
    said = [f"{each:.3g} bytes per weight that is not zero"] if each is not None else []
    if rest > 0:
        said.append(
            f"about {cell_text(rest, 'bytes')} of the file are the graph, names, integers and tensors below 1 kB"
        )
    said.append("least possible: the entropy of zeros without a pattern, and the exact values"
                " (patterns and narrower values take less)")  # fmt: skip
    return "; ".join(said)


def _loading(found: PackResult) -> Table:
    assert found.loads is not None
    old, new = found.loads
    rows: list[list[Cell]] = [["load time (s)", f"{old.seconds:.3f}", f"{new.seconds:.3f}",
                               f"{new.seconds / old.seconds:.1f}" if old.seconds else None]]  # fmt: skip
    rows.append(["processor time (s)", f"{old.cpu_seconds:.3f}", f"{new.cpu_seconds:.3f}",
                 f"{new.cpu_seconds / old.cpu_seconds:.1f}" if old.cpu_seconds else None])  # fmt: skip
    if old.peak_bytes and new.peak_bytes:
        rows.append(["memory while loading (MB)", f"{old.peak_bytes / 1e6:.1f}", f"{new.peak_bytes / 1e6:.1f}",
                     f"{new.peak_bytes / old.peak_bytes:.1f}"])  # fmt: skip
    columns = (Column(""), Column("before"), Column("after"), Column("times"))
    return Table(
        "Loading", columns, rows, note="a fresh process each; it runs as the dense model does once it is loaded"
    )


def tensors(found: PackResult) -> Table:
    """One row per tensor."""
    rows = [
        (row.name, shape_text(row.shape), row.dtype, 1 - row.nonzero / row.size if row.size else 0.0,
         f"{row.encoding} {row.detail}".strip(), row.dense_bytes, row.packed_bytes, row.reason)
        for row in found.rows
    ]  # fmt: skip
    columns = (
        Column("tensor", "name"), Column("shape", drop=1), Column("type", drop=3), Column("zeros", "percent"),
        Column("stored as"), Column("dense", "bytes"), Column("packed", "bytes"), Column("note", drop=2),
    )  # fmt: skip
    return Table("Tensors", columns, rows, top=TOP, top_by="dense")
