"""`prune run`: read a recipe, settle what its steps refer to, check it, carry it out, or print it."""
