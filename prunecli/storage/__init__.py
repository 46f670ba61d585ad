"""Sparse tensors stored small in standard ONNX: encodings, the chains of operators that decode them, reading them."""

from prunecli.storage.encodings import ENCODINGS, choose
from prunecli.storage.fitting import VALUES, choose_narrow, fit
from prunecli.storage.reading import PackedTensor, resolve
from prunecli.storage.writing import Writer

__all__ = ["ENCODINGS", "VALUES", "PackedTensor", "Writer", "choose", "choose_narrow", "fit", "resolve"]
