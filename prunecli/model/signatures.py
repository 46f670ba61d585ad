"""What a file that is not ONNX seems to be, as a hint to the user."""

from __future__ import annotations

from pathlib import Path

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


def foreign(head: bytes) -> str:
    """A hint if `head` begins like something well known that no ONNX file begins like, else ''."""
    for signature, text in SIGNATURES:
        if head.startswith(signature):
            return text
    if head[4:8] in (b"TFL3", b"ORTM"):
        return "it is a TensorFlow Lite or ORT-format file: give the original .onnx file"
    return ""


def hint(path: Path, data: bytes) -> str:
    """What to do about `data` that did not parse as ONNX."""
    if _is_text(data[:512]):
        return "it is a text file: give an .onnx file"
    if path.suffix.lower() != ".onnx":
        return "give an .onnx file"
    return "it was cut off or damaged: export or download it again"


def _is_text(head: bytes) -> bool:
    printable = sum(32 <= byte < 127 or byte in b"\t\n\r" for byte in head)
    return printable > 0.97 * len(head)
