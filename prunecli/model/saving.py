"""Saving a model completely or not at all, with a record of how it was made in its metadata_props."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

import prunecli.model.lossless as preserve
import prunecli.model.writing as writing
from prunecli._version import __version__
from prunecli.errors import OutOfMemoryError, PruneError, short_of_memory
from prunecli.files import Scratch, Staging, check_paths, data_name, staging, sync
from prunecli.model.constants import Holder, holders
from prunecli.model.external_data import pull_in, read_proto, refer
from prunecli.model.loading import Model
from prunecli.model.protos import dense_tensors, normalise
from prunecli.model.sparse import sparsify
from prunecli.model.tensors import MappedTensor, byte_count, in_memory
from prunecli.model.writing import Span, size_of, spans, write_data, write_model
from prunecli.types import FileRef, Json

PREFIX = "prunecli."
HISTORY = PREFIX + "history"
KEYS = ("version", "command", "recipe", "input_sha256")


@dataclass(frozen=True)
class Provenance:
    """`command` is the name of the command, `recipe` its options as JSON: enough to do it again."""

    command: str
    recipe: Json = field(default_factory=dict)


def record(proto: onnx.ModelProto, provenance: Provenance, input_sha256: str) -> None:
    """Write the entries; those of an earlier run move to the end of `prunecli.history`, a JSON list."""
    old = {p.key: p.value for p in proto.metadata_props if p.key.startswith(PREFIX)}
    kept = [(p.key, p.value) for p in proto.metadata_props if p.key not in old]
    new = {
        PREFIX + "version": __version__,
        PREFIX + "command": provenance.command,
        PREFIX + "recipe": _compact(provenance.recipe),
        PREFIX + "input_sha256": input_sha256,
    }
    if history := _history(old):
        new[HISTORY] = _compact(history)
    del proto.metadata_props[:]
    for key, value in sorted([*kept, *new.items()]):
        proto.metadata_props.add(key=key, value=value)


def _history(old: dict[str, str]) -> list[Json]:
    try:
        earlier = json.loads(old.get(HISTORY, "[]"))
    except ValueError:
        earlier = []
    last = {key: old[PREFIX + key] for key in KEYS if PREFIX + key in old}
    return [*(earlier if isinstance(earlier, list) else []), *([last] if last else [])]


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


SMALL = 1024
"""Bytes below which a tensor stays inside the .onnx file."""
STREAM_FROM = 1 << 20
"""Bytes from which an inline tensor is written without passing through a proto."""
MARGIN = 64 << 20
"""Room left for everything that is not a tensor when deciding whether a model fits into one file."""

Verify = Callable[[Path], object]


@dataclass(frozen=True)
class SaveOptions:
    """`external_data`: `auto` does what the input did, and external above 2 GiB; `force` overwrites; `sparse`: names
    of initializers of the main graph to be written as sparse_initializer."""

    external_data: Literal["auto", "always", "never"] = "auto"
    force: bool = False
    provenance: Provenance | None = None
    sparse: frozenset[str] = frozenset()


def save(model: Model, path: str | Path, options: SaveOptions | None = None, verify: Verify | None = None) -> FileRef:
    """Write `model` to `path`, through a staging folder beside it.

    The ONNX checker and then `verify(staged_path)` must accept the file (external data included) before it
    appears. The same model, options and program version give the same bytes.

    Raises:
        PruneError: bad target, too large for one file, no space, rejected by the checker; whatever `verify`
            raises passes through. The target is then as it was.
    """
    target, options = Path(path), options or SaveOptions()
    check_paths({"output": target}, [model.path, *model.data_files], options.force)
    with _disk_errors(target), staging(target, options.force) as stage:
        data, sha256 = _write(model, stage, options)
        _check(model, stage.file)
        if verify is not None:
            verify(stage.file)
        stage.commit(data)
    return FileRef(str(target), sha256)


def check_target(model: Model, target: Path | None, options: object) -> None:
    """Refuse what `check_paths` refuses of `target` and of the other paths in a command's options, before any work.

    Args:
        target: None if nothing is saved, as in a dry run (`options.dry_run`).
        options: `force`, if they have it, allows existing files.
    """
    saved = None if getattr(options, "dry_run", False) else target
    check_paths({"output": saved, "": options}, [model.path, *model.data_files], getattr(options, "force", False))


@dataclass
class StoragePlan:
    """Which tensors leave the .onnx file, in order, and where they go in the data file."""

    outside: list[Holder]
    places: list[Span]
    name: str = ""
    streamed: dict[str, ir.TensorProtocol] = field(default_factory=dict)


def _write(model: Model, stage: Staging, options: SaveOptions) -> tuple[str | None, str]:
    """Write data and model into the staging folder; the data file's name and the model's SHA-256."""
    outside = _outside(model, options)
    plan = StoragePlan(outside, spans([holder.tensor for holder in outside]))
    _check_space(stage, model)
    if outside:
        draft = stage.folder / "data"
        digest = write_data(draft, [holder.tensor for holder in outside], plan.places)
        plan.name = data_name(stage.target, digest)
        draft.rename(stage.folder / plan.name)
        sync(stage.folder / plan.name)
    proto = _to_proto(model, plan, options.sparse)
    sparsify(proto, options.sparse)
    if options.provenance is not None:
        record(proto, options.provenance, model.sha256)
    sha256 = write_model(proto, plan.streamed, stage.file)
    sync(stage.file)
    return plan.name or None, sha256


def _outside(model: Model, options: SaveOptions) -> list[Holder]:
    """The tensors that go to the data file: initializers, and Constants if they are large."""
    stored = [h for h in holders(model.ir) if h.tensor.dtype != ir.DataType.STRING and h.name not in options.sparse]
    total = sum(size_of(h.tensor) for h in stored)
    too_large = total + MARGIN > writing.LIMIT
    if options.external_data == "never" and too_large:
        raise PruneError(
            f"the weights take {total} bytes and a single ONNX file ends at 2 GiB",
            "use --external-data auto or always",
        )
    wanted = options.external_data == "always" or (options.external_data == "auto" and bool(model.data_files))
    if not (wanted or too_large):
        return []
    return [h for h in stored if size_of(h.tensor) >= (SMALL if h.node is None else STREAM_FROM)]


def _check_space(stage: Staging, model: Model) -> None:
    needed = sum(size_of(h.tensor) for h in holders(model.ir) if h.tensor.dtype != ir.DataType.STRING)
    free = shutil.disk_usage(stage.folder).free
    if needed > free:
        raise PruneError(
            f"no space for {stage.target}: {needed} bytes needed, {free} free",
            "free some space or save elsewhere",
        )


def _to_proto(model: Model, plan: StoragePlan, sparse: frozenset[str]) -> onnx.ModelProto:
    """The serialised model, with references in place of the tensors that are written separately."""
    with contextlib.ExitStack() as undo:
        for holder, place in zip(plan.outside, plan.places, strict=True):
            _swap(holder, _reference(holder, place, plan.name), undo)
        for value in model.ir.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and _streams(tensor) and value.name not in sparse:
                plan.streamed[value.name or ""] = tensor
                _swap(Holder(value, model.ir.graph), _reference(Holder(value, model.ir.graph)), undo)
        _pull_in(model, undo)
        proto = _serialise(model)
        preserve.attach(proto, model.ir)
        if not sparse:  # which are no inputs
            preserve.list_initializers(proto, model.ir)
    return proto


def _serialise(model: Model) -> onnx.ModelProto:
    try:
        return ir.to_proto(model.ir)
    except Exception as error:  # onnx-ir wraps whatever it meets, level by level
        if short_of_memory(error):
            raise OutOfMemoryError(f"{model.path} cannot be written again") from error
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        raise PruneError(f"{model.path} cannot be written again: {str(root)[:200]}", "re-export the model") from error


def _streams(tensor: ir.TensorProtocol) -> bool:
    is_reference = isinstance(tensor, ir.ExternalTensor) and not isinstance(tensor, MappedTensor)
    return tensor.dtype != ir.DataType.STRING and not is_reference and size_of(tensor) >= STREAM_FROM


def _pull_in(model: Model, undo: contextlib.ExitStack) -> None:
    """Compute what stays inline and is not in memory: onnx-ir would refer to the input's data file."""
    for holder in holders(model.ir):
        tensor = holder.tensor
        if isinstance(tensor, (MappedTensor, ir.LazyTensor)):
            _swap(holder, in_memory(tensor), undo)


def _swap(holder: Holder, tensor: ir.TensorProtocol, undo: contextlib.ExitStack) -> None:
    undo.callback(holder.put, holder.tensor)
    holder.put(tensor)


def _reference(holder: Holder, place: Span | None = None, location: str = "") -> ir.ExternalTensor:
    tensor = holder.tensor
    return ir.ExternalTensor(
        location,
        place.offset if place else None,
        place.length if place else None,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=holder.name if holder.node is None else tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _check(model: Model, path: Path) -> None:
    """The ONNX checker's verdict, unless it already objected to the input: then that is noted instead."""
    problem = objection(path)
    if problem is None or problem.startswith("No Op registered"):
        return
    before = objection(model.path)
    if before is None:
        raise PruneError(f"internal: the pruned model is invalid: {problem}", "nothing was written; please report this")
    if before != problem:
        raise PruneError(
            f"the ONNX checker rejects the result: {problem}",
            f"it rejects {model.path} too: {before}; repair or re-export the model",
        )
    model.notes.append(f"the ONNX checker objects to the input, and so to the output: {problem}")


def objection(path: Path, strict: bool = False) -> str | None:
    """What the ONNX checker holds against a model file, in its normal form; `strict`: shape inference, too.

    It refuses external data behind links, so it is given a copy whose large tensors lie in a file of zeros, with a hole
    in place of their bytes.
    """
    model, largest = read_proto(path), 0
    normalise(model)
    with Scratch() as folder:
        for tensor in dense_tensors(model):
            is_external = tensor.data_location == onnx.TensorProto.EXTERNAL
            if not is_external and not tensor.HasField("raw_data"):
                continue
            size = byte_count(ir.DataType(tensor.data_type), tuple(tensor.dims))
            largest = max(largest, size)
            if size > SMALL:
                refer(tensor, "zeros", 0)
            elif is_external:
                pull_in(tensor)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        with (folder / "zeros").open("wb") as zeros:
            zeros.truncate(largest)
        try:
            onnx.checker.check_model(str(folder / "model.onnx"), full_check=strict)
        except Exception as error:  # the checker raises several unrelated types
            if short_of_memory(error):
                raise OutOfMemoryError(f"{path} cannot be checked") from error
            lines = str(error).strip().splitlines()
            return lines[0][:300] if lines else type(error).__name__
    return None


@contextlib.contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if short_of_memory(error):
            raise OutOfMemoryError(f"cannot write {target}") from error
        hints = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space or save elsewhere")
        hints[errno.EFBIG] = "files may not be so large here: raise ulimit -f, or save elsewhere"
        hint = hints.get(error.errno or 0, "check the folder and its permissions")
        raise PruneError(f"cannot write {target}: {error.strerror or error}", hint) from error
