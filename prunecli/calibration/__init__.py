"""Measurements on data that criteria need."""
