"""The errors a user may see: one line of cause, one line of what to do next."""

from __future__ import annotations


class PruneError(Exception):
    """Bad usage, bad input, or a refusal. The command line prints it and exits with `exit_code` (2).

    Args:
        message: what is wrong and where, one line, no trailing full stop.
        hint: what the user can do about it, one line.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class GateFailed(PruneError):  # noqa: N818 - a gate that fails is an outcome, not a defect
    """A `--fail-if` gate or a promised limit was not met. Exit code 1."""

    exit_code = 1
