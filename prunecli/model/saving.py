"""Saving a model completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

from prunecli.errors import PruneError
from prunecli.model import bulk, preserve
from prunecli.model.graphs import all_graphs
from prunecli.model.loading import Model
from prunecli.model.provenance import Provenance, record
from prunecli.model.staging import Staging, data_name, staging, sync
from prunecli.types import FileRef

LIMIT = (1 << 31) - 1
"""Protobuf's size limit for one message."""
SMALL = 1024
"""Bytes below which a tensor stays inside the .onnx file."""
MARGIN = 64 << 20
"""Room left for everything that is not an initializer when deciding whether a model fits into one file."""

Verify = Callable[[Path], object]


@dataclass(frozen=True)
class SaveOptions:
    """`external_data`: `auto` does what the input did, and external above 2 GiB; `force` overwrites."""

    external_data: Literal["auto", "always", "never"] = "auto"
    force: bool = False
    provenance: Provenance | None = None


def save(
    model: Model, path: str | Path, options: SaveOptions | None = None, verify: Verify | None = None
) -> FileRef:
    """Write `model` to `path`, through a staging folder beside it.

    The ONNX checker and then `verify(staged_path)` must accept the file (external data included) before it
    appears. The same model, options and program version give the same bytes.

    Raises:
        PruneError: bad target, too large for one file, no space, rejected by the checker; whatever `verify`
            raises passes through. The target is then as it was.
    """
    target, options = Path(path), options or SaveOptions()
    check_target(model, target, options.force)
    with _disk_errors(target), staging(target) as stage:
        data, sha256 = _write(model, stage, options)
        _check(model, stage.model)
        if verify is not None:
            verify(stage.model)
        stage.commit(data)
    return FileRef(str(target), sha256)


def check_target(model: Model, target: Path, force: bool) -> None:
    """Refuse a target that is the input itself, a folder, in no folder, or exists without `force`."""
    if not target.parent.is_dir():
        raise PruneError(f"the folder {target.parent} does not exist", "create it first")
    if target.is_dir():
        raise PruneError(f"{target} is a folder", "give the output a file name")
    inputs = [model.path, *model.data_files]
    if target.exists() and any(source.exists() and target.samefile(source) for source in inputs):
        raise PruneError(f"{target} is the input itself", "choose another name with --output")
    if os.path.lexists(target) and not force:
        raise PruneError(f"{target} already exists", "choose another name with --output, or pass --force")


def _write(model: Model, stage: Staging, options: SaveOptions) -> tuple[str | None, str]:
    """Write data and model into the staging folder; the data file's name and the model's SHA-256."""
    outside = _to_move_out(model, options)
    places = bulk.spans([_tensor(value) for value in outside])
    _check_space(stage, places, model)
    name: str | None = None
    if outside:
        draft = stage.folder / "data"
        digest = bulk.write(draft, [_tensor(value) for value in outside], places)
        name = data_name(stage.target, digest)
        draft.rename(stage.folder / name)
        sync(stage.folder / name)
    with _moved_out(outside, places, name or ""):
        proto = ir.to_proto(model.ir)
        preserve.attach(proto, model.ir)
    if options.provenance is not None:
        record(proto, options.provenance, model.sha256)
    return name, _write_proto(proto, stage.model)


def _write_proto(proto: onnx.ModelProto, path: Path) -> str:
    data = proto.SerializeToString(deterministic=True)
    path.write_bytes(data)
    sync(path)
    return hashlib.sha256(data).hexdigest()


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _to_move_out(model: Model, options: SaveOptions) -> list[ir.Value]:
    """The initializers that go to the data file."""
    movable = [
        value
        for graph in all_graphs(model.ir)
        for value in graph.initializers.values()
        if value.const_value is not None
        and value.const_value.dtype != ir.DataType.STRING
        and value.const_value.nbytes >= SMALL
    ]
    total = sum(_tensor(value).nbytes for value in movable)
    too_large = total + MARGIN > LIMIT
    if options.external_data == "never" and too_large:
        raise PruneError(
            f"the weights take {total} bytes and a single ONNX file ends at 2 GiB",
            "use --external-data auto or always",
        )
    wanted = options.external_data == "always" or (options.external_data == "auto" and bool(model.data_files))
    return movable if wanted or too_large else []


def _check_space(stage: Staging, places: list[bulk.Span], model: Model) -> None:
    needed = sum(place.length for place in places)
    free = shutil.disk_usage(stage.folder).free
    if needed > free:
        raise PruneError(
            f"no space for {stage.target}: {needed} bytes needed, {free} free",
            "free some space or save elsewhere",
        )


@contextlib.contextmanager
def _moved_out(values: list[ir.Value], places: list[bulk.Span], name: str) -> Iterator[None]:
    """While serialising, the initializers `values` refer to the data file `name`."""
    originals = [_tensor(value) for value in values]
    try:
        for value, tensor, place in zip(values, originals, places, strict=True):
            value.const_value = _reference(tensor, value.name or "", place, name)
        yield
    finally:
        for value, tensor in zip(values, originals, strict=True):
            value.const_value = tensor


def _reference(tensor: ir.TensorProtocol, name: str, place: bulk.Span, location: str) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location,
        place.offset,
        place.length,
        tensor.dtype,
        shape=ir.Shape(bulk.dims(tensor)),
        name=name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _check(model: Model, path: Path) -> None:
    """The ONNX checker's verdict, unless it already objected to the input: then that is noted instead."""
    problem = _objection(path)
    if problem is None or problem.startswith("No Op registered"):
        return
    if _objection(model.path) is None:
        raise PruneError(f"the pruned model is invalid: {problem}", "nothing was written; please report this")
    model.notes.append(f"the ONNX checker objects to the input, and so to the output: {problem}")


def _objection(path: Path) -> str | None:
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # the checker raises several unrelated types
        lines = str(error).strip().splitlines()
        return lines[0][:300] if lines else type(error).__name__
    return None


@contextlib.contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space or save elsewhere" if full else "check the folder and its permissions"
        raise PruneError(f"cannot write {target}: {error.strerror or error}", hint) from error
