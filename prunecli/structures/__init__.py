"""Cutting structures: channels, neurons, heads and residual blocks leave the graph."""
