"""How the options of commands are declared, and the groups of options that commands share. Imports nothing heavy."""

from prunecli.options.declare import Declared, Option, Options

__all__ = ["Declared", "Option", "Options"]
