"""The index relations of operators, by family. Importing the package fills the registry."""

from prunecli.channels.rules import elementwise, linear, norms, shapes, windows  # noqa: F401
