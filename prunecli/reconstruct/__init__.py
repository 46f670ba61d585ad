"""Closed forms that make up for what pruning removed."""
