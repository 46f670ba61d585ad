"""Searching for what to remove: unit scores against budgets, blocks, measured latencies."""
