"""Where the external data of a model may lie, that it is really there, and model files read with it.

onnx's own reader and checker refuse data reached through symbolic or hard links, as all of a model cache is, and
onnxruntime refuses absolute paths. So a location is resolved here, once, by one rule (`DataFolder`), and replaced by
the absolute path of the bytes; `Session.open` and the rest take them from there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from prunecli.errors import PruneError
from prunecli.model.protos import check_room, drop_repeated, tensors
from prunecli.model.tensors import byte_count

ALLOW_HINT = "save the model again with its data in its own folder: a model must not make others read any file"


@dataclass
class DataFolder:
    """Resolves the locations that one model names.

    A location is looked up beside the path the user gave. After resolving links it must lie in that folder
    or in the folder of the model file itself once its own links are resolved: model caches keep both as
    links into one store.
    """

    model: Path
    allow_outside: bool = False
    sizes: dict[Path, int] = field(default_factory=dict)
    _resolved: dict[str, Path] = field(default_factory=dict)

    def locate(self, location: str, tensor: str) -> Path:
        """The real file behind `location`.

        Raises:
            PruneError: it is empty, absolute, leaves the folder, is missing, or is no regular file.
        """
        if location not in self._resolved:
            self._resolved[location] = self._locate(location, tensor)
        return self._resolved[location]

    def _locate(self, location: str, tensor: str) -> Path:
        if not location or "\0" in location:
            raise PruneError(f"{self.model}: tensor '{tensor}' names no external data file", "re-export the model")
        given = self.model.parent / location
        try:
            real = Path(os.path.realpath(given, strict=True))
            info = real.stat()
        except OSError as error:
            raise self._missing(location, tensor, error) from error
        if not self.allow_outside and not self._inside(location, real):
            raise PruneError(
                f"{self.model}: external data '{location}' of '{tensor}' lies outside the model's folder",
                ALLOW_HINT,
            )
        self._check_file(location, info)
        self.sizes[real] = info.st_size
        return real

    def _missing(self, location: str, tensor: str, error: OSError) -> PruneError:
        if not self.allow_outside and self._lexically_outside(location):
            return PruneError(
                f"{self.model}: external data '{location}' of '{tensor}' lies outside the model's folder",
                ALLOW_HINT,
            )
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        return PruneError(
            f"{self.model}: external data file '{location}' {reason}",
            f"put it beside the model, in {self.model.parent}",
        )

    def _lexically_outside(self, location: str) -> bool:
        path = Path(os.path.normpath(location))
        return path.is_absolute() or path.parts[:1] == (os.pardir,)

    def _inside(self, location: str, real: Path) -> bool:
        if self._lexically_outside(location):
            return False
        homes = {Path(os.path.realpath(self.model.parent)), Path(os.path.realpath(self.model)).parent}
        return any(real.is_relative_to(home) for home in homes)

    def _check_file(self, location: str, info: os.stat_result) -> None:
        if not stat.S_ISREG(info.st_mode):
            raise PruneError(f"{self.model}: external data '{location}' is not a regular file", "re-export the model")
        # A hard link has no target to resolve; one to somebody else's file is how it could leave the folder.
        owner = self.model.stat().st_uid
        if info.st_nlink > 1 and info.st_uid != owner and not self.allow_outside:
            raise PruneError(
                f"{self.model}: external data '{location}' is a hard link to another user's file", ALLOW_HINT
            )


def locate(model: onnx.ModelProto, folder: DataFolder) -> None:
    """Replace every reference to external data by the absolute path and the offset of its bytes, in place.

    Raises:
        PruneError: as `resolve`.
    """
    for tensor in external(model):
        refer(tensor, *resolve(tensor, folder))


def refer(tensor: onnx.TensorProto, place: Path | str, offset: int) -> None:
    """Let the bytes of a tensor lie in a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=str(place))
    tensor.external_data.add(key="offset", value=str(offset))


def external(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The tensors whose bytes lie in other files."""
    return (tensor for tensor in tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL)


def read_proto(path: Path) -> onnx.ModelProto:
    """A model file by the plain onnx package, with its references to external data as `locate` leaves them and each
    initializer once."""
    model = onnx.load(str(path), load_external_data=False, format="protobuf")
    drop_repeated(model.graph)
    locate(model, DataFolder(path))
    return model


def portable(path: Path) -> dict[str, bytes]:
    """The files of a model by name, the model's own first, as they can lie in one folder elsewhere: wherever its data
    are, it refers to them by these names."""
    model = read_proto(path)
    names: dict[str, str] = {}
    for tensor in external(model):
        place, offset, _ = located(tensor)
        refer(tensor, names.setdefault(place, f"{path.name}.{len(names)}"), offset)
    found = {path.name: model.SerializeToString(deterministic=True)}
    return found | {name: Path(place).read_bytes() for place, name in names.items()}


def read_whole(path: Path) -> onnx.ModelProto:
    """A model file by the plain onnx package, external data included."""
    model = read_proto(path)
    for tensor in external(model):
        pull_in(tensor)
    return model


def pull_in(tensor: onnx.TensorProto) -> None:
    """Read the bytes of an external tensor that `locate` has seen."""
    place, offset, length = located(tensor)
    with Path(place).open("rb") as file:
        file.seek(offset)
        content = file.read(length)
    check_room(length)
    tensor.raw_data = content
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def located(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """File, offset and length of the bytes of a tensor that `locate` has seen, or that is being edited in memory.

    Raises:
        PruneError: its location is relative: nothing has resolved it.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not Path(entries["location"]).is_absolute():
        raise PruneError(f"internal: '{entries['location']}' of {tensor.name} is not resolved", "please report this")
    needed = byte_count(ir.DataType(tensor.data_type), tuple(tensor.dims))
    return entries["location"], int(entries.get("offset", 0)), needed


def resolve(tensor: onnx.TensorProto, folder: DataFolder) -> tuple[Path, int]:
    """File and offset of an external tensor, checked against its shape and the file's size.

    Raises:
        PruneError: unusable location, offset or length, or a file too short for the tensor.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = folder.locate(entries.get("location", ""), tensor.name)
    needed = byte_count(ir.DataType(tensor.data_type), tuple(tensor.dims))
    offset = _number(entries, "offset", 0, tensor=tensor, folder=folder)
    length = _number(entries, "length", needed, tensor=tensor, folder=folder)
    if length != needed:
        raise PruneError(
            f"{folder.model}: tensor '{tensor.name}' of shape {list(tensor.dims)} needs {needed} bytes, "
            f"its external data entry says {length}",
            "the model is damaged; export it again",
        )
    if offset + needed > folder.sizes[path]:
        raise PruneError(
            f"{folder.model}: external data '{entries['location']}' is too short: '{tensor.name}' ends at "
            f"byte {offset + needed}, the file has {folder.sizes[path]}",
            "the file was cut off; copy or download it again",
        )
    return path, offset


def _number(entries: dict[str, str], key: str, default: int, tensor: onnx.TensorProto, folder: DataFolder) -> int:
    text = entries.get(key)
    if text is None or text == "":
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise PruneError(
            f"{folder.model}: tensor '{tensor.name}' has the external data {key} '{text[:40]}'",
            "the model is damaged; export it again",
        )
    return int(text)
