"""Reading an ONNX file that nobody vouches for."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

import prunecli.model.graphs as graphs
import prunecli.model.lossless as preserve
from prunecli.errors import OutOfMemoryError, PruneError, short_of_memory
from prunecli.model.external_data import DataFolder
from prunecli.model.noise import noise_notes
from prunecli.model.protos import drop_repeated, normalise
from prunecli.model.sparse import densify, note
from prunecli.model.tensors import MappedTensor, in_memory
from prunecli.model.validate import DAMAGED, check_graph, check_tensors
from prunecli.storage import PackedTensor, resolve
from prunecli.types import FileRef

SIGNATURES = (
    (b"PK\x03\x04", "it is a ZIP archive (a PyTorch or Keras model?): export the model to ONNX first"),
    (b"\x89HDF", "it is an HDF5 file (Keras?): export the model to ONNX first"),
    (b"\x80\x02", "it is a Python pickle: export the model to ONNX first"),
    (b"\x80\x04", "it is a Python pickle: export the model to ONNX first"),
    (b"\x1f\x8b", "it is gzip-compressed: unpack it first"),
    (b"version https://git-lfs", "it is a Git LFS pointer: run `git lfs pull`"),
    (b"\x93NUMPY", "it is a NumPy array: the model comes first, data goes to --data"),
    (b"\x89PNG", "it is an image: the model comes first, data goes to --data"),
    (b"\x7fELF", "it is a program: give an .onnx file"),
)


def _foreign(head: bytes) -> str:
    """A hint if `head` begins like something well known that no ONNX file begins like, else ''."""
    for signature, text in SIGNATURES:
        if head.startswith(signature):
            return text
    if head[4:8] in (b"TFL3", b"ORTM"):
        return "it is a TensorFlow Lite or ORT-format file: give the original .onnx file"
    return ""


def _hint(path: Path, data: bytes) -> str:
    """What to do about `data` that did not parse as ONNX."""
    if _is_text(data[:512]):
        return "it is a text file: give an .onnx file"
    if path.suffix.lower() != ".onnx":
        return "give an .onnx file"
    return "it was cut off or damaged: export or download it again"


def _is_text(head: bytes) -> bool:
    printable = sum(32 <= byte < 127 or byte in b"\t\n\r" for byte in head)
    return printable > 0.97 * len(head)


# onnx-ir warns on stderr about models it repairs; what matters is checked here and reported properly.
logging.getLogger("onnx_ir").setLevel(logging.ERROR)


@dataclass
class Model:
    """A loaded model. `ir` may be edited freely; the file it came from is never written to.

    `sha256` is of the .onnx file; `data_files` are the external data files (real paths, in order of first
    use); `notes` are sentences for the report about what loading had to change. `packed`: tensors that the file
    stores as chains and that are dense here; `plain`: a dense copy of that file, once there is one. `sparse`: names
    of what it stores as sparse tensors, dense here, too, and the bytes those take.
    """

    ir: ir.Model
    path: Path
    sha256: str
    data_files: tuple[Path, ...] = ()
    notes: list[str] = field(default_factory=list)
    packed: tuple[PackedTensor, ...] = ()
    plain: Path | None = None
    sparse: Mapping[str, int] = field(default_factory=dict)

    @property
    def ref(self) -> FileRef:
        return FileRef(str(self.path), self.sha256)


def load(path: str | Path, allow_outside_data: bool = False) -> Model:
    """Parse and check the model at `path`; external data is mapped, not read.

    Args:
        path: an ONNX file in protobuf form, of any name.
        allow_outside_data: accept external data outside the model's folder.

    Raises:
        PruneError: whatever is wrong with the file, found before anything of the size it claims is allocated.
    """
    path = Path(path)
    data = read_file(path)
    sha256 = hashlib.sha256(data).hexdigest()
    proto = parse(path, data)
    del data
    try:
        model, folder, sparse, notes = _build(proto, path, allow_outside_data)
        packed = resolve(graphs.all_graphs(model), (f.graph for f in model.functions.values()), str(path))
        for each in packed:
            if each.described:
                preserve.describe(each.graph, each.name)
        notes += [f"{len(packed)} packed tensors were read as dense"] if packed else []
    except PruneError:
        raise
    except Exception as error:  # libraries raise anything on nonsense; the file is not trusted to make sense
        if short_of_memory(error):
            raise OutOfMemoryError(f"{path} cannot be read") from error
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise PruneError(f"{path}: the model makes no sense: {reason}", DAMAGED) from error
    return Model(model, path, sha256, data_files=tuple(folder.sizes), notes=notes, packed=tuple(packed), sparse=sparse)


def _build(
    proto: onnx.ModelProto, path: Path, allow_outside_data: bool
) -> tuple[ir.Model, DataFolder, dict[str, int], list[str]]:
    normalise(proto)
    folder = check_tensors(proto, path, allow_outside_data)
    sparse = densify(proto, path)
    notes = [*([note(sparse)] if sparse else []), *noise_notes(proto), *_tidy(proto)]
    check_graph(proto, path)
    lost = preserve.detach(proto)
    model = ir.from_proto(proto)
    preserve.pin(model, lost)
    graphs.replace_tensors(model, _mapped, _inline)
    return model, folder, sparse, [*notes, *_sort(model, path)]


def _tidy(proto: onnx.ModelProto) -> list[str]:
    """What onnxruntime lets pass and onnx-ir does not."""
    notes = []
    if proto.training_info:
        notes.append("training_info is kept as it is; it still describes the unpruned model")
    before = proto.ByteSize()
    proto.DiscardUnknownFields()
    if proto.ByteSize() != before:
        notes.append("fields that this version of ONNX does not know were dropped; is the file newer?")
    if spare := drop_repeated(proto.graph):
        notes.append(f"{spare} unnamed or repeated initializers were dropped")
    return notes


def _sort(model: ir.Model, path: Path) -> list[str]:
    """Bring nodes into an order in which each follows what it reads."""
    unsorted = [g for g in (model.graph, *(f.graph for f in model.functions.values())) if not graphs.is_sorted(g)]
    for graph in unsorted:
        try:
            graph.sort()
        except ValueError as error:
            raise PruneError(f"{path}: nodes of '{graph.name}' depend on each other in a circle", DAMAGED) from error
    return ["nodes were sorted: some came before what they read"] if unsorted else []


def _mapped(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Our own mapping in place of onnx-ir's, which refuses files that a model cache has linked."""
    if isinstance(tensor, ir.serde.TensorProtoTensor):
        del tensor.raw.metadata_props[:]  # onnx-ir holds a copy, and would write both
    if not isinstance(tensor, ir.ExternalTensor) or isinstance(tensor, MappedTensor):
        return tensor
    mapped = MappedTensor(Path(tensor.location), tensor.offset or 0, tensor.dtype, shape=tensor.shape, name=tensor.name)
    mapped.doc_string = tensor.doc_string
    mapped.metadata_props.update(tensor.metadata_props)
    return mapped


def _inline(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Attributes of operators other than Constant stay inline when the model is saved."""
    mapped = _mapped(tensor)
    return in_memory(mapped) if isinstance(mapped, MappedTensor) else mapped


def read_file(path: Path) -> bytes:
    """The bytes of a regular file that protobuf could hold (at most 2 GiB).

    Raises:
        PruneError: missing, a folder, a device or pipe, empty, unreadable, or too large.
    """
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise PruneError(f"{path} is a folder", "give the .onnx file inside it")
        if not stat.S_ISREG(info.st_mode):
            raise PruneError(f"{path} is not a regular file", "give an .onnx file")
        if info.st_size == 0:
            raise PruneError(f"{path} is empty", "export or download the model again")
        if info.st_size >= 1 << 31:
            raise PruneError(f"{path} has {info.st_size} bytes; ONNX files end at 2 GiB", "give the .onnx file")
        return _read(path)
    except FileNotFoundError as error:
        raise PruneError(f"{path} does not exist", "check the path") from error
    except (OSError, ValueError) as error:
        if short_of_memory(error):
            raise OutOfMemoryError(f"{path} cannot be read") from error
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise PruneError(f"{path} cannot be read: {reason}", "check the path and its permissions") from error


def _read(path: Path) -> bytes:
    """All bytes; a file that cannot be ONNX is given up after its first ones."""
    with path.open("rb") as file:
        head = file.read(512)
        if hint := _foreign(head):
            raise PruneError(f"{path} is not an ONNX model", hint)
        return head + file.read()


def parse(path: Path, data: bytes) -> onnx.ModelProto:
    """Decode the protobuf message.

    Raises:
        PruneError: not ONNX, cut off, or without a graph.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        if short_of_memory(error):
            raise OutOfMemoryError(f"{path} cannot be read") from error
        raise PruneError(f"{path} is not a complete ONNX model", _hint(path, data)) from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise PruneError(f"{path} is not an ONNX model", _hint(path, data))
    return proto


def file_sha256(path: Path) -> str:
    """SHA-256 of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
