"""One module per command: analyse, measure, decide, apply, verify. Returns results; prints nothing."""
