"""Loading, understanding and saving ONNX models."""

from prunecli.model.loading import Model, load
from prunecli.model.saving import Provenance, SaveOptions, save
from prunecli.model.shapes import Dims, Shapes, concrete_shapes
from prunecli.model.sizes import Macs, count_macs, totals
from prunecli.model.weights import Use, Weight, Weights, find_weights
from prunecli.operators.layout import Layout

__all__ = [
    "Dims",
    "Layout",
    "Macs",
    "Model",
    "Provenance",
    "SaveOptions",
    "Shapes",
    "Use",
    "Weight",
    "Weights",
    "concrete_shapes",
    "count_macs",
    "find_weights",
    "load",
    "save",
    "totals",
]
