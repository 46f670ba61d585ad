"""Measuring models: quality against labels, fidelity to another model, robustness, latency, size, gates."""
