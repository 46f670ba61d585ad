"""`prune pack` and `prune unpack`: sparse weights stored small in standard ONNX, and dense again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunecli.errors import PruneError, some
from prunecli.evaluation.fidelity import Fidelity
from prunecli.files import written_to
from prunecli.model import Model, concrete_shapes, load, totals
from prunecli.model.copies import plain_path, raised
from prunecli.model.saving import Provenance, SaveOptions, check_target, save
from prunecli.model.sizes import zstd_bytes
from prunecli.packing.load_cost import LoadCost
from prunecli.packing.options import PackOptions, UnpackOptions
from prunecli.packing.plan import FEW, Item, PackRow, drop_signs, left, plan, write
from prunecli.packing.proof import NotFolded, PackProof
from prunecli.report.result import ModelResult
from prunecli.types import FileRef, Json, Progress, Skipped, Totals, no_progress

OPSET, OPSET_BFLOAT16 = 11, 13
"""The least opset that ScatterElements and CumSum need, and the one that they need for bfloat16."""


class NothingSmaller(PruneError):  # noqa: N818 - a refusal that commands with --pack take as an answer
    """No tensor would shrink by as much as was asked for, or the file would not."""


@dataclass(frozen=True, kw_only=True)
class PackResult(ModelResult):
    """What was packed. `rows`: every float tensor of 1 kB or more. `zstd`: bytes before and after. `loads`: of the
    dense file and of the packed one. `fidelity`: for lossy values only."""

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
    dense: dict[str, str] = {}
    if options.verify:
        options.execution.check()
    while True:
        try:
            return replace(
                _packed(path, target, options, dense=dense, progress=progress), seconds=time.perf_counter() - start
            )
        except NotFolded as error:
            reasons = dict.fromkeys(error.names, "onnxruntime does not fold its decoding away")
            if not reasons.keys() - dense.keys():
                raise PruneError(f"onnxruntime would decode {error} at every run", "pass --exclude for these") from None
            dense = dense | reasons


def _packed(path: Path, target: Path, options: PackOptions, dense: dict[str, str], progress: Progress) -> PackResult:
    """`dense`: tensors that must stay so, with the reason."""
    original = load(path)
    check_target(original, target, options)
    file, items = _planned(original, options, dense, progress=progress)
    chosen = [item for item in items if item.is_packed]
    if not chosen:
        raise NothingSmaller(f"nothing in {path} would become {options.min_saving:.0%} smaller", _hint(items))
    plain = load(plain_path(original))
    before = totals(plain, concrete_shapes(plain, options.dims))
    proof = PackProof(file, plain.path, items, options=options, progress=progress)
    write(file, items)
    saved = _Saved(before, proof, sum(each.stat().st_size for each in (original.path, *original.data_files)))
    sparse = frozenset(item.row.name for item in chosen) if options.coo else frozenset[str]()
    output = saved.save(target, Provenance("pack", options.packing_json()), sparse)
    return saved.result(
        command="pack",
        model=original.ref,
        output=output,
        packing=options.packing_json(),
        zstd=(sum(map(zstd_bytes, [plain.path, *plain.data_files])), saved.zstd),
        rows=[i.row for i in items if i.row.reason != "small"],
        skipped=left(items),
        notes=[*file.notes, *_negative(items)],
    )


def _planned(
    original: Model, options: PackOptions, dense: dict[str, str], progress: Progress
) -> tuple[Model, list[Item]]:
    """Return the model, at a new enough opset, and the plan for its tensors."""
    if options.plain_zeros:
        drop_signs(original)
    items = plan(original, options, dense, progress=progress)
    if options.coo or all(item.encoded is None for item in items):
        return original, items
    narrow = any(item.encoded is not None and item.row.dtype == "bfloat16" for item in items)
    needed = OPSET_BFLOAT16 if narrow else OPSET
    file = raised(original, needed, "decoding bfloat16" if narrow else "decoding")
    if file is original:
        return file, items
    if options.plain_zeros:
        drop_signs(file)
    return file, plan(file, options, dense, progress=progress)


def _hint(items: Sequence[Item]) -> str:
    """Say why the part of the model with the most bytes does not shrink."""
    weigh = Counter[str]()
    for item in items:
        weigh[item.row.reason] += item.row.dense_bytes
    reason = next((each for each, _ in weigh.most_common() if each != "small"), FEW)
    if reason != FEW:
        return f"{some([item.row.name for item in items if item.row.reason == reason], 1)}: {reason}"
    zeros = sum(item.row.size - item.row.nonzero for item in items)
    size = sum(item.row.size for item in items) or 1
    return f"{zeros / size:.1%} of its weights are zero; `prune magnitude` makes zeros, --min-saving lowers the bar"


def _negative(items: Sequence[Item]) -> list[str]:
    count = sum(item.row.negative_zeros for item in items)
    if count * 100 < sum(item.row.size for item in items):
        return []
    return [f"{count:,} negative zeros are stored like values; --plain-zeros turns them into zeros"]


@dataclass
class _Saved:
    """Saves the file of a proof: records its sizes while it is staged, and proves it. `limit`: most bytes of the
    file."""

    before: Totals
    proof: PackProof
    limit: int | None = None
    after: Totals | None = None
    zstd: int = 0

    def save(self, target: Path, made: Provenance, sparse: frozenset[str] = frozenset()) -> FileRef | None:
        """Save the file and return it; None for a dry run."""
        options = self.proof.options
        with written_to(target, options.dry_run) as place:
            saving = SaveOptions(options.external_data, options.force, made, sparse=sparse)
            found = save(self.proof.model, place, saving, verify=self._inspect)
        return None if options.dry_run else found

    def _inspect(self, staged: Path) -> None:
        saved = load(staged)
        found = totals(saved)
        if self.limit is not None and found.file_bytes > self.limit:
            problem = f"packing would make it larger: {self.limit:,} bytes would become {found.file_bytes:,}"
            raise NothingSmaller(problem, "the nodes that decode take more than they save; leave it as it is")
        if self.proof.options.verify:
            self.proof(staged)
        self.after = replace(found, macs=self.before.macs)
        self.zstd = sum(zstd_bytes(file) for file in (staged, *saved.data_files))

    def result(self, **own: Any) -> PackResult:
        assert self.after is not None
        proof = self.proof
        return PackResult(
            before=self.before, after=self.after, verification=proof.verification, loads=proof.loads,
            fidelity=proof.fidelity, dry_run=proof.options.dry_run, **own,
        )  # fmt: skip


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
    check_target(file, target, options)
    names = {**file.sparse, **{packed.name: packed.nbytes for packed in file.packed}}
    items = plan(file, PackOptions(), dict.fromkeys(names, "unpacked"), progress=progress)
    saved = _Saved(
        totals(file, concrete_shapes(file, options.dims)),
        PackProof(file, path, items, options=options, progress=progress),
    )
    output = saved.save(target, Provenance("unpack"))
    return saved.result(
        command="unpack",
        model=file.ref,
        output=output,
        packing=PackOptions().packing_json(),
        zstd=(sum(zstd_bytes(each) for each in (path, *file.data_files)), saved.zstd),
        rows=[replace(i.row, packed_bytes=names[i.row.name]) for i in items if i.row.name in names],
        skipped=[],
        notes=file.notes,
        seconds=time.perf_counter() - start,
    )
