"""Zeroing weights: magnitude, gradient and one-shot pruning."""
