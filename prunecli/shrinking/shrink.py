"""`prune shrink`: remove exactly what a model carries for nothing, and prove that the outputs stay what they are."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prunecli.data import Dataset
from prunecli.errors import PruneError
from prunecli.files import check_paths, written, written_to
from prunecli.model import Model, concrete_shapes, find_weights, load, totals
from prunecli.model.copies import plain_path
from prunecli.model.saving import Provenance, SaveOptions, check_target, save
from prunecli.model.sizes import row_of
from prunecli.operators.operator import operator_of
from prunecli.options.sizes import at_data
from prunecli.runtime import Session
from prunecli.shrinking.interface import InterfaceChange, drop_dead_inputs, keep_outputs, last_token
from prunecli.shrinking.measuring import constant_on
from prunecli.shrinking.numbering import Measured
from prunecli.shrinking.options import ShrinkOptions
from prunecli.shrinking.proof import ShrinkProof
from prunecli.shrinking.result import Removed, ShrinkResult
from prunecli.shrinking.rounds import Measure, Shrunk, check_finite, remove_surplus
from prunecli.shrinking.surplus import Finder
from prunecli.shrinking.tidying import Tidied, drop_copies, merge_duplicates
from prunecli.shrinking.tokenizer import encoded
from prunecli.shrinking.vocabulary import VocabularyCut, cut_vocabulary
from prunecli.types import UNVERIFIED, Json, LayerRow, Progress, Totals, Verification, no_progress

ORDER = "terms that were zero left its sums, whose order onnxruntime then chose anew"
ADDED = "constants went into biases and equal units into one, and their sums are rounded anew"


def shrink(
    model: str | Path, options: ShrinkOptions | None = None, progress: Progress = no_progress, **changes: Any
) -> ShrinkResult:
    """Remove what a model carries for nothing and save it with proof; nothing is written where there is nothing.
    `changes` override fields of `options`: `shrink("model.onnx", last_token=True)`.

    Raises:
        PruneError: the file or an option is unusable, the model is quantised, what is asked for would be ambiguous, or
            the result cannot be proved; then nothing is written.
    """
    start, options = time.perf_counter(), ShrinkOptions.of(options, **changes)
    path = Path(model)
    target = options.output or path.with_name(f"{path.stem}.shrunk.onnx")
    return replace(_shrunk(path, target, options, progress=progress), seconds=time.perf_counter() - start)


@dataclass(frozen=True)
class _Work:
    """The changed model and what went. `rounded`: weights were added up."""

    file: Model
    removed: Removed
    changes: Sequence[InterfaceChange]
    rounded: bool


def _shrunk(path: Path, target: Path, options: ShrinkOptions, progress: Progress) -> ShrinkResult:
    if options.verify:
        options.execution.check()
    options = at_data(path, options)
    original = load(path)
    check_target(original, target, options)
    _check_kind(original, options)
    check_finite(original)
    words = target.with_name(f"{target.stem}.tokenizer.json")
    if options.tokenizer is not None and not options.remaps_in_graph and not options.dry_run:
        check_paths({"tokenizer": words}, [original.path, options.tokenizer], options.force)
    before = totals(original, concrete_shapes(original, options.dims))
    data = None if options.source is None else options.source.open(Session.open(plain_path(original)).inputs)
    work = _worked(original, options, data, progress=progress)
    told = partial(ShrinkResult, model=original.ref, recipe=_recipe(options), before=before, removed=work.removed,
                   dry_run=options.dry_run)  # fmt: skip
    if work.removed.nothing:
        nothing = Verification("none", detail="nothing was written")
        return told(output=None, after=before, verification=nothing, notes=original.notes)
    proof = _proof(original, options, work, data=data, progress=progress)
    inspector = _Inspector(original, options, proof if options.verify else None)
    vocabulary = work.removed.vocabulary
    text = None if vocabulary is None or vocabulary.in_graph else _tokenizer_text(vocabulary, words)
    with written_to(target, options.dry_run) as place:
        saving = SaveOptions(options.external_data, options.force, Provenance("shrink", _recipe(options)))
        saved = save(work.file, place, saving, verify=inspector)
    assert inspector.after is not None
    if text is not None and not options.dry_run:
        with written(words, "tokenizer", options.force) as file:
            file.write(text)
    return told(
        output=None if options.dry_run else saved,
        after=inspector.after,
        layers=inspector.layers,
        verification=inspector.verification,
        notes=[*original.notes, *_notes(work)],
        tokenizer=None if text is None or options.dry_run else str(words),
    )


def _check_kind(file: Model, options: ShrinkOptions) -> None:
    """Raise PruneError for a quantised model, unless only its outputs and inputs are asked for."""
    asked = bool(options.kept_outputs) or options.dead_inputs or options.last_token
    found = next((node.op_type for node in file.ir.graph.all_nodes() if operator_of(node).quantised), None)
    if found is not None and not asked:
        raise PruneError(f"{file.path} is quantised ({found}): what rounding makes zero is not seen in its weights",
                         "shrink the floating-point model, then quantise it")  # fmt: skip


def _worked(original: Model, options: ShrinkOptions, data: Dataset | None, progress: Progress) -> _Work:
    """Remove everything that can go, and return the changed model with what went."""
    file = replace(original, ir=original.ir.clone())
    interface = [keep_outputs(file.ir, options.kept_outputs) if options.kept_outputs else None]
    last = last_token(file, options.dims) if options.last_token else None
    vocabulary = cut_vocabulary(file, options) if options.vocabulary is not None else None
    if vocabulary is not None:
        file = replace(file, ir=vocabulary.model)
    shrunk = _units(file, options, data, vocabulary=vocabulary, progress=progress)
    if shrunk.model is not None:
        file = replace(file, ir=shrunk.model)
    interface.append(drop_dead_inputs(file.ir) if options.dead_inputs else None)
    tidied = merge_duplicates(file.ir)
    dropped = [one for one in interface if one is not None]
    removed = Removed(
        units=shrunk.rows,
        branches=shrunk.branches,
        interface=dropped,
        last_token=last,
        vocabulary=vocabulary,
        tidied=tidied,
    )
    if not removed.nothing:
        removed = replace(removed, tidied=Tidied(tidied.duplicates, tidied.bytes, drop_copies(file.ir)))
    changes = [
        *([last.change] if last else []),
        *([vocabulary.change] if vocabulary else []),
        *(d.change for d in dropped),
    ]
    return _Work(file, removed, changes, rounded=shrunk.rounded)


def _units(
    file: Model, options: ShrinkOptions, data: Dataset | None, vocabulary: VocabularyCut | None, progress: Progress
) -> Shrunk:
    if any(operator_of(node).quantised for node in file.ir.graph.all_nodes()):
        return Shrunk()
    measure: Measure | None = None
    if options.tolerance is not None and data is not None:
        if vocabulary is not None:
            raise PruneError("--tolerance and --vocabulary at once would take the data for two things",
                             "cut the vocabulary first, then shrink on data of the new model")  # fmt: skip
        samples = data

        def measure(file: Model, finder: Finder) -> Measured:
            return constant_on(samples, file, finder, options=options, progress=progress)

    return remove_surplus(file, options.dims, progress, measure=measure)


def _recipe(options: ShrinkOptions) -> Json:
    """Return what was asked for, as it is recorded in the saved model."""
    asked: Json = {
        "outputs": list(options.kept_outputs),
        "dead_inputs": options.dead_inputs,
        "last_token": options.last_token,
        "tolerance": options.tolerance,
        "data": None if options.source is None else options.source.text,
        "vocabulary": None if options.vocabulary is None else str(options.vocabulary),
        "remap": None if options.vocabulary is None else "graph" if options.remaps_in_graph else "tokenizer",
    }
    return {name: value for name, value in asked.items() if value}


def _proof(
    original: Model, options: ShrinkOptions, work: _Work, data: Dataset | None, progress: Progress
) -> ShrinkProof:
    promise = options.tolerance is not None and bool(work.removed.units or work.removed.branches)
    reason = ADDED if work.rounded else ORDER
    return ShrinkProof(
        file=original,
        options=options,
        changes=work.changes,
        vocabulary=work.removed.vocabulary,
        data=data,
        promise=promise,
        reason=reason,
        progress=progress,
    )


@dataclass
class _Inspector:
    """Takes the staged file: proves it, then reads off its sizes."""

    original: Model
    options: ShrinkOptions
    proof: ShrinkProof | None
    verification: Verification = UNVERIFIED
    after: Totals | None = None
    layers: Sequence[LayerRow] = ()

    def __call__(self, staged: Path) -> None:
        if self.proof is not None:
            self.verification = self.proof(staged)
        saved = load(staged)
        self.after = totals(saved, concrete_shapes(saved, self.options.dims))
        self.layers = list(_layers(self.original, saved))


def _layers(before: Model, after: Model) -> Iterator[LayerRow]:
    """Weights that changed: those that went have no elements."""
    late = {weight.name: weight for weight in find_weights(after).all()}
    for weight in find_weights(before).all():
        now = late.get(weight.name)
        if now is None or now.shape != weight.shape:
            yield row_of(weight, now)


def _tokenizer_text(found: VocabularyCut, path: Path) -> str:
    """The tokenizer of the kept tokens as JSON; where it was made for a text, it must split that as before.

    Raises:
        PruneError: it does not.
    """
    assert found.tokenizer is not None
    content = found.tokenizer.reduced(found.kept)
    text = json.dumps(content, ensure_ascii=False, indent=2)
    if found.wanted.texts:
        new = {old: number for number, old in enumerate(found.kept)}
        wanted = [[new[one] for one in ids] for ids in found.tokenizer.encode(found.wanted.texts)]
        if encoded(text, found.wanted.texts, path) != wanted:
            raise PruneError("internal: the smaller tokenizer splits the text otherwise", "please report this")
    return text


def _notes(work: _Work) -> Iterator[str]:
    vocabulary, last = work.removed.vocabulary, work.removed.last_token
    if vocabulary is not None and not vocabulary.in_graph:
        yield "token ids are new: those kept elsewhere (end of text, padding, in a config) have to be, too"
    if last is not None:
        yield f"{last.output!r} has its last position only, whatever is padded on the right"
