"""Deciding which weights go: criteria, patterns, scopes, decisions. Imports numpy only."""
