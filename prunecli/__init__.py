"""prunecli: make ONNX models smaller and faster by pruning, with proof of what was done."""

from prunecli._version import __version__

__all__ = ["__version__"]
