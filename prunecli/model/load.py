"""Reading an ONNX file that nobody vouches for."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from prunecli.errors import PruneError
from prunecli.model import graphs
from prunecli.model.outside import DataFolder, resolve
from prunecli.model.protos import tensors
from prunecli.model.tensors import CHUNK, MappedTensor
from prunecli.types import FileRef

# onnx-ir warns on stderr about models it repairs; what matters is checked here and reported properly.
logging.getLogger("onnx_ir").setLevel(logging.ERROR)


@dataclass
class Model:
    """A loaded model. `ir` may be edited freely; the file it came from is never written to.

    `sha256` is of the .onnx file; `data_files` are the external data files (real paths, in order of first
    use); `notes` are sentences for the report about what loading had to change.
    """

    ir: ir.Model
    path: Path
    sha256: str
    data_files: tuple[Path, ...] = ()
    notes: list[str] = field(default_factory=list)

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
    folder = DataFolder(path, allow_outside_data)
    for tensor in tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _point_at(tensor, *resolve(tensor, folder))
    model = ir.from_proto(proto)
    graphs.replace_tensors(model, _mapped)
    return Model(model, path, sha256, tuple(folder.sizes))


def _point_at(tensor: onnx.TensorProto, path: Path, offset: int) -> None:
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=str(path))
    tensor.external_data.add(key="offset", value=str(offset))


def _mapped(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Our own mapping in place of onnx-ir's, which refuses files that a model cache has linked."""
    if not isinstance(tensor, ir.ExternalTensor) or isinstance(tensor, MappedTensor):
        return tensor
    mapped = MappedTensor(Path(tensor.location), tensor.offset or 0, tensor.dtype, tensor.shape, tensor.name)
    mapped.doc_string = tensor.doc_string
    mapped.metadata_props.update(tensor.metadata_props)
    return mapped


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
            raise PruneError(
                f"{path} has {info.st_size} bytes; ONNX files end at 2 GiB", "give the .onnx file"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise PruneError(f"{path} does not exist", "check the path") from error
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise PruneError(f"{path} cannot be read: {reason}", "check the path and its permissions") from error


def parse(path: Path, data: bytes) -> onnx.ModelProto:
    """Decode the protobuf message.

    Raises:
        PruneError: not ONNX, cut off, or without a graph.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise PruneError(f"{path} is not a complete ONNX model", _hint(path, data)) from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise PruneError(f"{path} is not an ONNX model", _hint(path, data))
    return proto


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


SIGNATURES = (
    (b"PK\x03\x04", "it is a ZIP archive (a PyTorch checkpoint or Keras file?): export it to ONNX first"),
    (b"\x89HDF", "it is an HDF5 file (Keras?): export it to ONNX first"),
    (b"\x80\x02", "it is a Python pickle: export the model to ONNX first"),
    (b"\x80\x04", "it is a Python pickle: export the model to ONNX first"),
    (b"\x1f\x8b", "it is gzip-compressed: unpack it first"),
    (b"version https://git-lfs", "it is a Git LFS pointer: run `git lfs pull`"),
    (b"\x93NUMPY", "it is a NumPy array; the model comes first, data goes to --data"),
)


def _hint(path: Path, data: bytes) -> str:
    for signature, hint in SIGNATURES:
        if data.startswith(signature):
            return hint
    if data[4:8] in (b"TFL3", b"ORTM"):
        return "it is a TensorFlow Lite or ORT-format file: give the original .onnx file"
    if _is_text(data[:512]):
        return "it is a text file: give an .onnx file"
    if path.suffix.lower() != ".onnx":
        return "give an .onnx file"
    return "it was cut off or damaged: export or download it again"


def _is_text(head: bytes) -> bool:
    printable = sum(32 <= byte < 127 or byte in b"\t\n\r" for byte in head)
    return printable > 0.97 * len(head)
