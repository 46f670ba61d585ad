"""`prune pack` and `prune unpack`: sparse weights stored small in standard ONNX, and dense again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import Fidelity
from prunecli.files import Scratch
from prunecli.model import Model, concrete_shapes, load, totals
from prunecli.model.copies import plain_path, raised
from prunecli.model.saving import Provenance, SaveOptions, check_target, save
from prunecli.model.sizes import zstd_bytes
from prunecli.packing.load_cost import LoadCost
from prunecli.packing.options import PackOptions, UnpackOptions
from prunecli.packing.plan import FEW, How, Item, PackRow, drop_signs, left, plan, write
from prunecli.packing.proof import Before, NotFolded, PackProof
from prunecli.report.result import ModelResult
from prunecli.types import FileRef, Json, Progress, Skipped, Totals, no_progress

OPSET, OPSET_BFLOAT16 = 11, 13
"""The least that ScatterElements and CumSum need, and that they need for bfloat16."""


class NothingSmaller(PruneError):  # noqa: N818 - a refusal that commands with --pack take as an answer
    """No tensor would become smaller by as much as was asked for, or the file would not."""


@dataclass(frozen=True, kw_only=True)
class PackResult(ModelResult):
    """What was packed. `rows`: every float tensor of 1 kB or more. `zstd`: bytes before and after. `loads`: of the
    dense file and of the packed one. `fidelity`: only for lossy values."""

    command: str
    packing: Json
    zstd: tuple[int, int]
    rows: Sequence[PackRow]
    skipped: Sequence[Skipped]
    loads: tuple[LoadCost, LoadCost] | None = None
    fidelity: Fidelity | None = None


def pack(
    model: str | Path, options: PackOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> PackResult:
    """Store the sparse tensors of a model small. `changes` override fields of `options`.

    Raises:
        PruneError: the file or an option is unusable, nothing in it would become smaller, its opset is too old and
            cannot be raised, or onnxruntime does not run the packed file as it runs the model.
        GateFailed: `max_error` is exceeded; nothing is written.
    """
    start, options = time.perf_counter(), PackOptions.of(options, **changes)
    path = Path(model)
    target = options.output or path.with_name(f"{path.stem}.packed.onnx")
    how = How(options.values, options.min_saving, options.coo, options.include, options.exclude)
    if options.verify:
        options.execution.check()
    while True:
        try:
            return replace(_packed(path, target, options, how, progress), seconds=time.perf_counter() - start)
        except NotFolded as error:
            reasons = dict.fromkeys(error.names, "onnxruntime does not fold its decoding away")
            if not reasons.keys() - how.dense.keys():
                raise PruneError(f"onnxruntime would decode {error} at every run", "pass --exclude for these") from None
            how = replace(how, dense={**how.dense, **reasons})


def _packed(path: Path, target: Path, options: PackOptions, how: How, progress: Progress) -> PackResult:
    original = load(path)
    check_target(original, None if options.dry_run else target, options.force, options)
    file, items = _planned(original, how, options.plain_zeros, progress)
    chosen = [item for item in items if item.is_packed]
    if not chosen:
        raise NothingSmaller(f"nothing in {path} would become {how.min_saving:.0%} smaller", _hint(items))
    dense = load(plain_path(original))
    before = totals(dense, concrete_shapes(dense, options.dims))
    proof = PackProof(file, plain_path(original), items, Before.of(file, items), options.dims, options.execution,
                  how.values, options.max_error, progress, not options.plain_zeros)  # fmt: skip
    write(file, items)
    sparse = frozenset(item.row.name for item in chosen) if how.coo else frozenset[str]()
    given = sum(each.stat().st_size for each in (original.path, *original.data_files))
    sizes = _Sizes(before, proof if options.verify else None, given)
    saved = _save(file, target, options, Provenance("pack", options.packing_json()), sparse, sizes)
    assert sizes.after is not None
    return PackResult(
        command="pack",
        model=original.ref,
        output=None if options.dry_run else saved,
        packing=options.packing_json(),
        before=before,
        after=sizes.after,
        zstd=(sum(map(zstd_bytes, [dense.path, *dense.data_files])), sizes.zstd),
        rows=[i.row for i in items if i.row.reason != "small"],
        skipped=left(items),
        verification=proof.verification,
        loads=proof.loads,
        fidelity=proof.fidelity,
        notes=[*file.notes, *_negative(items)],
        dry_run=options.dry_run,
    )


def _planned(original: Model, how: How, plain_zeros: bool, progress: Progress) -> tuple[Model, list[Item]]:
    """The model, of a new enough opset, and what becomes of its tensors."""
    if plain_zeros:
        drop_signs(original)
    items = plan(original, how, progress)
    if how.coo or all(item.encoded is None for item in items):
        return original, items
    narrow = any(item.encoded is not None and item.row.dtype == "bfloat16" for item in items)
    needed = OPSET_BFLOAT16 if narrow else OPSET
    file = raised(original, needed, "decoding bfloat16" if narrow else "decoding")
    if file is original:
        return file, items
    if plain_zeros:
        drop_signs(file)
    return file, plan(file, how, progress)


def _hint(items: Sequence[Item]) -> str:
    told = [f"{item.row.name}: {item.row.reason}" for item in items if item.row.reason not in ("small", FEW)]
    if told:
        return told[0] + (f" (and {len(told) - 1} more)" if len(told) > 1 else "")
    zeros = sum(item.row.size - item.row.nonzero for item in items)
    size = sum(item.row.size for item in items) or 1
    return f"{zeros / size:.1%} of its weights are zero; `prune magnitude` makes zeros, --min-saving lowers the bar"


def _negative(items: Sequence[Item]) -> list[str]:
    count = sum(item.row.negative_zeros for item in items)
    if count * 100 < sum(item.row.size for item in items):
        return []
    return [f"{count:,} negative zeros are stored like values; --plain-zeros turns them into zeros"]


@dataclass
class _Sizes:
    """Takes the staged file: reads off its sizes, and proves it. `limit`: bytes that it may take."""

    before: Totals
    proof: PackProof | None = None
    limit: int | None = None
    after: Totals | None = None
    zstd: int = 0

    def __call__(self, staged: Path) -> None:
        saved = load(staged)
        found = totals(saved)
        if self.limit is not None and found.file_bytes > self.limit:
            problem = f"packing would make it larger: {self.limit:,} bytes would become {found.file_bytes:,}"
            raise NothingSmaller(problem, "the nodes that decode take more than they save; leave it as it is")
        if self.proof is not None:
            self.proof(staged)
        self.after = replace(found, macs=self.before.macs)
        self.zstd = sum(zstd_bytes(file) for file in (staged, *saved.data_files))


def _save(
    file: Model, target: Path, options: UnpackOptions, made: Provenance, sparse: frozenset[str], sizes: _Sizes
) -> FileRef:
    with Scratch() as elsewhere:  # a dry run does everything, but there
        place = elsewhere / target.name if options.dry_run else target
        return save(file, place, SaveOptions(options.external_data, options.force, made, sparse), sizes)


def unpack(
    model: str | Path, options: UnpackOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> PackResult:
    """Store every tensor of a packed model densely again.

    Raises:
        PruneError: the file is unusable or holds nothing packed.
    """
    start, options = time.perf_counter(), UnpackOptions.of(options, **changes)
    path = Path(model)
    target = options.output or path.with_name(f"{path.stem.removesuffix('.packed')}.dense.onnx")
    if options.verify:
        options.execution.check()
    file = load(path)
    if not file.packed and not file.sparse:
        raise PruneError(
            f"{path} holds no packed tensors", "only files of `prune pack` and sparse tensors are unpacked"
        )
    check_target(file, None if options.dry_run else target, options.force, options)
    names = {**file.sparse, **{packed.name: packed.nbytes for packed in file.packed}}
    items = plan(file, How(dense=dict.fromkeys(names, "unpacked")), progress)
    before = totals(file, concrete_shapes(file, options.dims))
    proof = PackProof(file, path, items, Before.of(file, ()), options.dims, options.execution, "exact", None, progress)
    sizes = _Sizes(before, proof if options.verify else None)
    saved = _save(file, target, options, Provenance("unpack"), frozenset(), sizes)
    assert sizes.after is not None
    rows = [replace(i.row, packed_bytes=names[i.row.name]) for i in items if i.row.name in names]
    return PackResult(
        command="unpack",
        model=file.ref,
        output=None if options.dry_run else saved,
        packing=PackOptions().packing_json(),
        before=before,
        after=sizes.after,
        zstd=(sum(zstd_bytes(each) for each in (path, *file.data_files)), sizes.zstd),
        rows=rows,
        skipped=[],
        verification=proof.verification,
        loads=proof.loads,
        notes=file.notes,
        dry_run=options.dry_run,
        seconds=time.perf_counter() - start,
    )
