"""The errors a user may see: one line of cause, one line of what to do next."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


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


class InvalidValue(PruneError):  # noqa: N818 - says what is wrong, as the others do
    """A value that an option cannot have. `option`: its name without dashes; `reason`: why, without that name, for who
    says where the value was written."""

    def __init__(self, option: str, reason: str, hint: str) -> None:
        super().__init__(f"invalid value for '--{option}': {reason}", hint)
        self.option = option
        self.reason = reason


class GateFailed(PruneError):  # noqa: N818 - a gate that fails is an outcome, not a defect
    """A `--fail-if` gate or a promised limit was not met. Exit code 1."""

    exit_code = 1


class UnprovedError(PruneError):
    """A proof could not be carried out; nothing is written without one unless it is asked for."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(
            f"nothing is proved, since {reason}", f"{hint}{'; ' if hint else ''}--no-verify writes without proof"
        )


class OutOfMemoryError(PruneError):
    """There was no room for an array, a mapped file or a thread. Whoever takes a PruneError for a fault of the model,
    or goes on without what it asked for, lets this one pass."""

    def __init__(self, what: str = "") -> None:
        super().__init__(f"{what}{': ' if what else ''}out of memory", memory_hint())


def memory_hint() -> str:
    """What to do about too little memory."""
    try:
        from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit
    except ImportError:  # a platform without limits for processes
        return MEMORY_HINT
    limit = getrlimit(RLIMIT_AS)[0]
    if limit == RLIM_INFINITY:
        return MEMORY_HINT
    return f"a process may have {limit / 2**30:.1f} GiB of addresses here, mapped files included: raise ulimit -v"


MEMORY_HINT = "close other programs, or use smaller inputs or a smaller --batch-size"
_NO_MEMORY = (
    "bad_alloc", "bad allocation", "Failed to allocate memory", "Cannot allocate memory", "Arena alloc failed",
    "can't start new thread", "pthread_create failed",
)  # fmt: skip
"""What C++, onnxruntime, protobuf and threads say."""


def short_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that it was made of, says that there was no room for an array, a mapped file or a
    thread."""
    while error is not None:
        mapping = isinstance(error, OSError) and error.errno == errno.ENOMEM
        if mapping or isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def advice(*offers: tuple[str, bool]) -> str:
    """A hint of what there is still to do: each offer with whether it is one, not what was given already."""
    left = [text for text, is_open in offers if is_open]
    return " or ".join([", ".join(left[:-1]), left[-1]] if len(left) > 1 else left)


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def did_you_mean(name: str, known: Collection[str], otherwise: str) -> str:
    """A hint: the names nearest to one that is unknown, or what to do else. Hyphens and underscores are alike."""
    plain = {each.replace("_", "-"): each for each in known}
    asked = name.replace("_", "-").lstrip("-")
    close = get_close_matches(asked, plain, 3, 0.6) or [each for each in plain if asked and asked in each][:3]
    return f"did you mean {' or '.join(plain[each] for each in close)}?" if close else otherwise


def keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Make a keyword that a function of the library does not have a PruneError with the nearest name."""
    names = list(signature(function).parameters)

    @wraps(function)
    def call(*args: P.args, **given: P.kwargs) -> R:
        for name in given:
            check_keyword(name, names, function.__name__)
        return function(*args, **given)

    return call


def check_keyword(name: str, known: Collection[str], owner: str) -> None:
    """Raises PruneError, with the nearest name, for a keyword that is not known."""
    if name not in known:
        raise PruneError(
            f"{owner} has no option {name!r}", did_you_mean(name, known, f"it has {', '.join(sorted(known))}")
        )
