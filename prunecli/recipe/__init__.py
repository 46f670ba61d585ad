"""Recipes as files: TOML with the place of every value, and the result of running one. Knows no command."""
