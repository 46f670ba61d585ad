"""Loading, understanding and saving ONNX models."""

from prunecli.model.layout import Layout
from prunecli.model.load import Model, load
from prunecli.model.weights import Use, Weight, Weights, find_weights

__all__ = ["Layout", "Model", "Use", "Weight", "Weights", "find_weights", "load"]
