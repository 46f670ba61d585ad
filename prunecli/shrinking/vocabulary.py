"""Cut the vocabulary of a model: only the tokens that a task uses keep their rows of the embedding and of the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.dependency.analysis import Analysis, analyse, analysed_shapes
from prunecli.dependency.catalogue import axis_of_atoms, catalogue, removed_positions
from prunecli.dependency.cut import remove
from prunecli.dependency.prepare import prepare
from prunecli.errors import PruneError, advice, did_you_mean, some
from prunecli.model import Model, concrete_shapes
from prunecli.model.constants import Constant
from prunecli.model.graphs import add_constant, free_name, taken_names
from prunecli.operators import MICROSOFT, operator_of
from prunecli.operators.attributes import integer
from prunecli.shrinking.contraction import fixed
from prunecli.shrinking.interface import InterfaceChange
from prunecli.shrinking.numbering import SliceNumbering
from prunecli.shrinking.options import ShrinkOptions
from prunecli.shrinking.slices import Ints
from prunecli.shrinking.surplus import Finder
from prunecli.shrinking.tokenizer import TokenizerFile, read_json
from prunecli.verify.tolerance import Feed, Outputs

LOOKUPS = {("", "Gather"): (0, 1), (MICROSOFT, "EmbedLayerNormalization"): (2, 0)}
"""Operators that look up rows of a table: the inputs that are the table and the ids."""
LOOKED_UP = "looked up by computed indices"
"""The reason for which the coupling rules freeze a table whose rows are looked up."""
LARGEST = 1 << 31
"""Bytes that a file of tokens may have."""


@dataclass(frozen=True)
class TokenList:
    """The ids of the tokens that a user wants to keep. `what`: how the file was read, in words; `texts`: its lines, if
    it is a text."""

    ids: Sequence[int]
    what: str
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Lookup:
    """A node that looks up rows of a stored table by the token ids at its input `index`."""

    node: ir.Node
    table: Constant
    index: int

    @property
    def rows(self) -> int:
        return self.table.shape[0]


@dataclass(frozen=True)
class VocabularyCut:
    """The model with fewer tokens, and what was done.

    before: number of tokens. kept: the old id of each new one. input: the graph input that takes the ids. in_graph: the
    model still takes old ids and maps them itself; `unknown` is the old id that it takes in place of a removed one.
    outputs: by output with a score for each token, the axis of the tokens. tensors: bytes before and after of each
    stored tensor that was cut. any_ids: the model treats removed ids as the unknown token.
    """

    model: ir.Model
    before: int
    kept: Sequence[int]
    wanted: TokenList
    input: str
    in_graph: bool
    unknown: int | None
    outputs: Mapping[str, int]
    tensors: Mapping[str, tuple[int, int]]
    change: InterfaceChange
    tokenizer: TokenizerFile | None = None
    any_ids: bool = False

    def random(self, feed: Feed, rng: np.random.Generator) -> Feed:
        """Return the feed with random ids of the kept tokens, or of all tokens if the model takes any."""
        ids = np.arange(self.before) if self.any_ids else np.asarray(self.kept)
        old = np.asarray(feed[self.input])
        return {**feed, self.input: rng.choice(ids, old.shape).astype(old.dtype)}


def read_tokens(path: Path, tokenizer: TokenizerFile | None, token_input: str | None) -> TokenList:
    """Read a file that holds ids, tokens, or a text to split into tokens.

    Raises:
        PruneError: the file cannot be read, or holds none of these.
    """
    if path.suffix.lower() in (".npy", ".npz"):
        return TokenList(_stored_ids(path, token_input), "ids of an array")
    if path.suffix.lower() == ".json":
        content = read_json(path, "list of tokens")
        if not isinstance(content, list) or not all(isinstance(one, str | int) for one in content):
            raise PruneError(f"{path} is no list of tokens", "give a JSON list of tokens or ids")
        return _listed(path, [str(one) for one in content], tokenizer, numbers=isinstance(next(iter(content), 0), int))
    try:
        if path.stat().st_size > LARGEST:
            raise PruneError(f"{path} is too large", "give a part of it")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise PruneError(f"{path} cannot be read: {reason}", "give a text, a list of tokens, or ids as .npy") from error
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise PruneError(f"{path} names no token", "give at least one")
    numbers = tokenizer is None or any(line.strip() not in tokenizer.ids for line in lines)
    if numbers and all(line.strip().isdecimal() for line in lines):
        return _listed(path, lines, tokenizer, numbers=True)
    if tokenizer is None or all(line in tokenizer.ids for line in lines):
        return _listed(path, lines, tokenizer, numbers=False)
    found = sorted({number for ids in tokenizer.encode(lines) for number in ids})
    return TokenList(found, f"a text of {len(lines):,} lines", lines)


def _listed(path: Path, lines: Sequence[str], tokenizer: TokenizerFile | None, numbers: bool) -> TokenList:
    if numbers:
        return TokenList(sorted({int(line) for line in lines}), "ids")
    if tokenizer is None:
        raise PruneError(f"{path} has tokens, and nothing says which ids they have", "add --tokenizer")
    missing = [line for line in lines if line not in tokenizer.ids]
    if missing:
        raise PruneError(f"{path} has tokens that the tokenizer does not know: {some(missing)}", "give its own tokens")
    return TokenList(sorted({tokenizer.ids[line] for line in lines}), "tokens")


def _stored_ids(path: Path, token_input: str | None) -> list[int]:
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError) as error:
        raise PruneError(f"{path} cannot be read: {error}", "give ids as .npy or .npz") from error
    named = {n: a for n, a in arrays.items() if n == token_input or n.endswith("input_ids") or len(arrays) == 1}
    whole = {n: a for n, a in (named or arrays).items() if a.dtype.kind in "iu"}
    if not whole or (not named and len(whole) > 1):
        raise PruneError(f"{path} has no one array of token ids: {', '.join(arrays) or 'no array at all'}",
                         "name the array as the model's input, or input_ids")  # fmt: skip
    return sorted({int(number) for array in whole.values() for number in np.unique(array)})


def cut_vocabulary(file: Model, options: ShrinkOptions) -> VocabularyCut | None:
    """Cut the vocabulary of a model; None if every token stays.

    Raises:
        PruneError: the model has no vocabulary or several, or something besides the lookups depends on the ids.
    """
    assert options.vocabulary is not None
    tokenizer = None if options.tokenizer is None else TokenizerFile.read(options.tokenizer)
    wanted = read_tokens(options.vocabulary, tokenizer, options.token_input)
    if not wanted.ids or min(wanted.ids) < 0:
        found = f"has the id {min(wanted.ids)}" if wanted.ids else "names no token"
        raise PruneError(f"{options.vocabulary} {found}", "give ids from 0 on, without marks for places of no token")
    work = prepare(file.ir)
    name, lookups = _lookups(work, wanted.ids, tokenizer, wanted=options.token_input)
    rows = lookups[0].rows
    unknown = _unknown(tokenizer, options, rows)
    kept = tokenizer.needed(wanted.ids) if tokenizer is not None else sorted(wanted.ids)
    kept = sorted({*kept, *([] if unknown is None else [unknown])} - set(range(rows, max(kept) + 1)))
    if len(kept) == rows:
        return None
    other = _other_reader(work, name, lookups)
    if other is not None and not options.remaps_in_graph:
        raise PruneError(
            f"{other.op_type} {other.name!r} reads the token ids, too, and would take new ones for others",
            "--remap graph keeps the ids that the model takes",
        )
    if options.remaps_in_graph and unknown is None:
        raise PruneError("the graph cannot tell what ids that went become: no unknown token is known",
                         "name it with --unknown-token")  # fmt: skip
    return _cut(
        replace(file, ir=work),
        options,
        _Wanted(
            input=name,
            lookups=lookups,
            kept=kept,
            unknown=unknown,
            tokens=wanted,
            tokenizer=tokenizer,
            compared=other is not None,
        ),
    )


@dataclass(frozen=True)
class _Wanted:
    input: str
    lookups: Sequence[Lookup]
    kept: Sequence[int]
    unknown: int | None
    tokens: TokenList
    tokenizer: TokenizerFile | None
    compared: bool


def _lookups(
    model: ir.Model, ids: Sequence[int], tokenizer: TokenizerFile | None, wanted: str | None
) -> tuple[str, list[Lookup]]:
    """Find the input that takes token ids, and the nodes that look them up.

    Raises:
        PruneError: no input or several inputs could take them.
    """
    known = [value.name or "" for value in model.graph.inputs]
    if wanted is not None and wanted not in known:
        raise PruneError(f"the model has no input {wanted!r}", did_you_mean(wanted, known, "see `prune inspect`"))
    found: dict[str, list[Lookup]] = {}
    for node in model.graph:
        places = LOOKUPS.get((node.domain, node.op_type))
        table = fixed(node.inputs[places[0]]) if places is not None and len(node.inputs) > max(places) else None
        source = _source(node.inputs[places[1]]) if places is not None and table is not None else None
        if source is None or table is None or places is None or len(table.shape) != 2 or integer(node, "axis", 0):
            continue
        if wanted in (None, source.name):
            found.setdefault(source.name or "", []).append(Lookup(node, table, places[1]))
    largest = max([*ids, *(tokenizer.ids.values() if tokenizer is not None else ())], default=0)
    large = {name: all_ for name, all_ in found.items() if all(one.rows > largest for one in all_)}
    if not large:
        most = max((one.rows for all_ in found.values() for one in all_), default=0)
        reason = (
            f"its largest table has {most:,} rows, and ids go up to {largest:,}" if most else "nothing is looked up"
        )
        raise PruneError(f"the model has no embedding of these tokens: {reason}", "give the tokenizer of this model")
    if len(large) > 1:
        raise PruneError(f"several inputs could be token ids: {', '.join(large)}", "name one with --token-input")
    name, lookups = next(iter(large.items()))
    if len({one.rows for one in lookups}) > 1:
        raise PruneError(f"{name!r} looks tables of different lengths up: it is ambiguous which are tokens", "")
    if not all(one.table.dtype.is_floating_point() for one in lookups):
        raise PruneError(
            f"the embedding {lookups[0].table.name!r} is quantised", "cut the floating-point model, then quantise it"
        )
    return name, lookups


def _source(value: ir.Value | None) -> ir.Value | None:
    """Return the graph input whose ids a value holds, reshaped or cast at most; None if there is none."""
    while value is not None and not value.is_graph_input():
        node = value.producer()
        if node is None or not _keeps_ids(node):
            return None
        value = node.inputs[0]
    return value


def _keeps_ids(node: ir.Node) -> bool:
    """Whether a node only casts, reorders or reshapes its first input."""
    return operator_of(node).moves == "axes" or (node.op_type in ("Cast", "Identity") and node.domain == "")


def _unknown(tokenizer: TokenizerFile | None, options: ShrinkOptions, rows: int) -> int | None:
    text = options.unknown_token
    if text is None:
        return None if tokenizer is None else tokenizer.unknown
    if tokenizer is not None and text in tokenizer.ids:
        return tokenizer.ids[text]
    if not text.isdecimal() or int(text) >= rows:
        raise PruneError(f"--unknown-token {text!r} is no token", "give one of the tokenizer, or an id")
    return int(text)


def _other_reader(model: ir.Model, name: str, lookups: Sequence[Lookup]) -> ir.Node | None:
    """Return a node besides the lookups whose result depends on the ids themselves; None if there is none."""
    queue = [value for value in model.graph.inputs if value.name == name]
    places = {(one.node, one.index) for one in lookups}
    while queue:
        value = queue.pop()
        if value.is_graph_output() and (producer := value.producer()) is not None:
            return producer
        for node, index in value.uses():
            if _keeps_ids(node) and index == 0:
                queue += node.outputs
            elif (node, index) not in places and not operator_of(node).of_shape:
                return node
    return None


def _chosen(analysis: Analysis, rows: int) -> ir.Node | None:
    """Return a node that chooses among as many numbers as there are tokens (ArgMax, TopK): it gives ids."""
    for node in analysis.model.graph:
        data = node.inputs[0] if node.op_type in ("ArgMax", "ArgMin", "TopK") and node.domain == "" else None
        shape = analysis.facts.shapes.get(data, ()) if data is not None else ()
        axis = integer(node, "axis", -1 if node.op_type == "TopK" else 0)
        if shape and -len(shape) <= axis < len(shape) and shape[axis] == rows:
            return node
    return None


def _cut(file: Model, options: ShrinkOptions, wanted: _Wanted) -> VocabularyCut:
    model, rows = file.ir, wanted.lookups[0].rows
    shapes = analysed_shapes(file, options.dims, concrete_shapes(file, options.dims))
    analysis = analyse(model, shapes)
    chosen = None if options.remaps_in_graph else _chosen(analysis, rows)
    if chosen is not None:
        others = len(model.graph.outputs) > 1
        raise PruneError(
            f"{chosen.op_type} {chosen.name!r} gives ids of tokens: the model would take new ones and give old ones",
            advice(("--remap graph keeps the old ids", True), ("keep other outputs only, with --outputs", others)),
        )
    gone = np.setdiff1d(np.arange(rows), np.asarray(wanted.kept))
    atoms, outputs = _coupled(analysis, wanted, gone)
    if outputs and options.remaps_in_graph:
        others = len(model.graph.outputs) > 1
        raise PruneError(
            f"the output {outputs[0]!r} has a place for each token: the model would take old ids and give new ones",
            advice(("use --remap tokenizer", True), ("keep other outputs only, with --outputs", others)),
        )  # fmt: skip
    before = {
        value.name or "": value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value
    }
    axes = {out.name or "": _place(analysis, out, atoms) for out in model.graph.outputs if out.name in outputs}
    remove(model, removed_positions(analysis, atoms), analysis.inputs, other_inputs=analysis.other_inputs)
    after = {n: v.const_value.nbytes for n, v in model.graph.initializers.items() if v.const_value is not None}
    tensors = {name: (size, after[name]) for name, size in before.items() if name in after and after[name] != size}
    if options.remaps_in_graph:
        _remap(model, wanted, rows)
    for out in model.graph.outputs:
        if out.name in axes and out.shape is not None:
            out.shape = ir.Shape([len(wanted.kept) if a == axes[out.name] else d for a, d in enumerate(out.shape)])
    return VocabularyCut(
        model=model,
        before=rows,
        kept=wanted.kept,
        wanted=wanted.tokens,
        input=wanted.input,
        in_graph=options.remaps_in_graph,
        unknown=wanted.unknown,
        outputs=axes,
        tensors=tensors,
        change=_change(wanted, rows, options.remaps_in_graph, axes=axes),
        tokenizer=wanted.tokenizer,
        any_ids=options.remaps_in_graph and not wanted.compared,
    )


def _coupled(analysis: Analysis, wanted: _Wanted, gone: Ints) -> tuple[Array, list[str]]:
    """Return a mask over the atoms that are coupled with the removed rows, and the outputs that have such an axis.

    Raises:
        PruneError: an operator would compute something else without them.
    """
    solved, rows = analysis.components, wanted.lookups[0].rows
    numbers = solved.table.numbers
    starts = [numbers[one.table.way[-1], 0] for one in wanted.lookups]
    outputs = [out for out in analysis.model.graph.outputs if analysis.facts.shapes.get(out, ())[-1:] == (rows,)]
    starts += [numbers[out, len(analysis.facts.shapes[out]) - 1] for out in outputs]
    parts = np.unique(np.concatenate([solved.component[solved.atoms(number)[gone]] for number in starts]))
    atoms = np.isin(solved.component, parts)
    _check_meeting(analysis, atoms, wanted)
    _check_lookups(analysis, atoms, wanted)
    hit = set(np.unique(axis_of_atoms(analysis)[atoms]).tolist())
    roots = {(value, axis): solved.table.find(number) for (value, axis), number in numbers.items()}
    ends = analysis.model.graph.outputs
    return atoms, [out.name or "" for out in ends if any(roots.get((out, a)) in hit for a in _axes(analysis, out))]


def _axes(analysis: Analysis, value: ir.Value) -> range:
    return range(len(analysis.facts.shapes.get(value, ())))


def _check_meeting(analysis: Analysis, atoms: Array, wanted: _Wanted) -> None:
    """Raise PruneError if something freezes the atoms, or a node sums over the tokens."""
    solved = analysis.components
    allowed = {one.node for one in wanted.lookups}
    for freeze in solved.table.freezes:
        places = solved.atoms(freeze.axis) if freeze.positions is None else solved.atoms(freeze.axis)[freeze.positions]
        if atoms[places].any() and not _harmless(freeze.reason):
            raise PruneError(f"the vocabulary cannot be cut: {freeze.reason}", "leave out the output with --outputs")
    finder = Finder(catalogue(analysis), SliceNumbering(analysis))
    for end in finder.ends:
        met = finder.atoms(end.value, end.axis)
        if met is not None and atoms[met].any() and end.node not in allowed:
            raise PruneError(f"the vocabulary cannot be cut: {end.node.op_type} {end.node.name!r} sums over all tokens",
                             "leave out the output with --outputs")  # fmt: skip


def _check_lookups(analysis: Analysis, atoms: Array, wanted: _Wanted) -> None:
    """Raise PruneError if a node looks up other ids than the input's in a table that is cut: nothing renumbers
    those."""
    solved, allowed = analysis.components, {one.node for one in wanted.lookups}
    for freeze in solved.table.freezes:
        value = solved.table.axes[freeze.axis].value
        if value is None or freeze.reason != LOOKED_UP or not atoms[solved.atoms(freeze.axis)].any():
            continue
        for node, index in value.uses():
            looks = node.op_type.startswith("Gather") or (node.domain, node.op_type) in LOOKUPS
            if looks and index == LOOKUPS.get((node.domain, node.op_type), (0,))[0] and node not in allowed:
                raise PruneError(
                    f"the vocabulary cannot be cut: {node.op_type} {node.name!r} looks other ids than those of"
                    f" {wanted.input!r} up in the same table",
                    "leave out the output with --outputs",
                )


def _harmless(reason: str) -> bool:
    """Whether an axis was frozen only because it is an axis of an output, or because its rows are looked up."""
    return reason in ("graph output", LOOKED_UP)


def _place(analysis: Analysis, out: ir.Value, atoms: Array) -> int:
    """Return the axis of an output that has one position per token."""
    solved = analysis.components
    numbers = solved.table.numbers
    return next(a for a in _axes(analysis, out) if (out, a) in numbers and atoms[solved.atoms(numbers[out, a])].any())


def _remap(model: ir.Model, wanted: _Wanted, rows: int) -> None:
    """Insert a table from old ids to new ones before each lookup, in place."""
    assert wanted.unknown is not None
    new = np.full(rows, wanted.kept.index(wanted.unknown), np.int64)
    new[np.asarray(wanted.kept)] = np.arange(len(wanted.kept))
    made: dict[tuple[ir.Value, str], ir.Value] = {}
    tables: dict[str, ir.Value] = {}
    for one in wanted.lookups:
        ids = one.node.inputs[one.index]
        assert ids is not None
        kind = "int32" if ids.dtype == ir.DataType.INT32 or one.node.domain else "int64"
        if kind not in tables:
            tables[kind] = add_constant(model.graph, "token_ids", new.astype(np.int32))
        if (ids, kind) not in made:
            made[ids, kind] = _looked_up(model, one.node, tables[kind], ids=ids)
        one.node.replace_input_with(one.index, made[ids, kind])


def _looked_up(model: ir.Model, before: ir.Node, table: ir.Value, ids: ir.Value) -> ir.Value:
    """Insert a Gather of the ids from the table before a node; return its result."""
    name = free_name(f"{ids.name}.kept", taken_names(model.graph))
    step = ir.Node("", "Gather", [table, ids], [ir.AttrInt64("axis", 0)], num_outputs=1, name=name)
    step.outputs[0].name, step.outputs[0].shape = name, ids.shape
    step.outputs[0].type = ir.TensorType(ir.DataType.INT32)
    model.graph.insert_before(before, step)
    return step.outputs[0]


def _change(wanted: _Wanted, rows: int, in_graph: bool, axes: Mapping[str, int]) -> InterfaceChange:
    """Say how inputs and outputs of the cut model follow from those of the original."""
    kept, name, unknown = np.asarray(wanted.kept), wanted.input, wanted.unknown or 0
    new = np.full(rows, -1)
    new[kept] = np.arange(len(kept))

    def feed(given: Feed) -> Feed:
        ids = np.asarray(given[name])
        return {**given, name: new[ids].astype(ids.dtype)}

    def asked(given: Feed) -> Feed:
        ids = np.asarray(given[name])
        return {**given, name: np.where(new[ids] < 0, unknown, ids).astype(ids.dtype)}

    def outputs(given: Outputs) -> Outputs:
        return {key: value.take(kept, axes[key]) if key in axes else value for key, value in given.items()}

    return InterfaceChange(asked=asked, outputs=outputs) if in_graph else InterfaceChange(feed=feed, outputs=outputs)


def special_tokens(found: VocabularyCut) -> dict[str, Any]:
    """Return the new ids of the special tokens, for programs that store ids elsewhere."""
    if found.tokenizer is None:
        return {}
    new = {old: number for number, old in enumerate(found.kept)}
    return {str(token["content"]): new[int(token["id"])] for token in found.tokenizer.added if int(token["id"]) in new}
