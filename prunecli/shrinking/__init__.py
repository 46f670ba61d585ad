"""Removing exactly what a model carries for nothing."""
