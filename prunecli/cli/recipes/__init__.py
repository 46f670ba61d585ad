"""`prune run`: read a recipe, resolve the references of its steps, check it, run it, or print it."""
