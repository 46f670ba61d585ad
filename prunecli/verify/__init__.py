"""Carrying out decisions: zeroing weights, and proving that nothing else changed."""
