"""The command line. The only part of the program that knows Typer and the only one that prints."""
