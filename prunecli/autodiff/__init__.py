"""Reverse-mode differentiation over ONNX graphs: gradients are ONNX nodes, run by the ordinary onnxruntime."""

from __future__ import annotations

from prunecli.autodiff.forward import DifferentiationOptions
from prunecli.autodiff.gradient import GradientModel, differentiate
from prunecli.autodiff.losses import Loss

__all__ = ["DifferentiationOptions", "GradientModel", "Loss", "differentiate"]
