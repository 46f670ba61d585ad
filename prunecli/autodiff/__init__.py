"""Reverse-mode differentiation over ONNX graphs: gradients are ONNX nodes, run by the ordinary onnxruntime."""

from __future__ import annotations

from prunecli.autodiff.gradient import DifferentiationOptions, GradientModel, differentiate
from prunecli.autodiff.losses import Loss

__all__ = ["DifferentiationOptions", "GradientModel", "Loss", "differentiate"]
