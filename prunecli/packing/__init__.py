"""Storing sparse weights small."""
