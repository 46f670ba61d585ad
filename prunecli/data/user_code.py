"""Functions that the user names, as `file.py:function` or `package.module:function`: his own code, run as he asks."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.errors import PruneError


def names_function(text: str) -> bool:
    """Whether a text has the form PLACE:FUNCTION."""
    place, sign, function = text.rpartition(":")
    return bool(sign and place) and function.isidentifier()


@dataclass(frozen=True)
class UserFunction:
    """A function of the user's. `text`: as he gave it; `option`: what it was given to, for messages."""

    text: str
    option: str

    @property
    def name(self) -> str:
        return self.text.rpartition(":")[2]

    @property
    def path(self) -> Path | None:
        """The file that it is in; None of an installed module."""
        place = self.text.rpartition(":")[0]
        return Path(place) if place.endswith(".py") else None

    def load(self) -> Callable[..., Any]:
        """Import the file or module and return the function.

        Raises:
            PruneError: there is no such file or function, or importing it raised.
        """
        place = self.text.rpartition(":")[0]
        hint = f"write {self.option} FILE.py:FUNCTION"
        with self.guarded():
            module = importlib.import_module(place) if self.path is None else _module_from_file(self.path, hint)
            function = getattr(module, self.name, None)
        if not callable(function):
            raise PruneError(f"{place} has no function {self.name}", hint)
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise PruneError(f"{self.text} is async", "write a plain function: nothing here awaits it")
        return function  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Run the user's code: what it prints goes to stderr, what it raises becomes an error with its line. It imports
        as a script in its own folder does; modules that are named are looked for in the working directory last.

        Raises:
            PruneError: the code raised, or ended the program.
        """
        try:
            with contextlib.redirect_stdout(sys.stderr), self._importing():  # stdout carries the report only
                yield
        except PruneError:
            raise
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise PruneError(
                f"{self.text} raised {type(error).__name__}: {error}{self._where(error)}",
                "run it on its own; PRUNE_DEBUG=1 shows more",
            ) from error

    @contextlib.contextmanager
    def _importing(self) -> Iterator[None]:
        """Only while the user's code runs, since files of his may have the names of modules that others import later.
        What he adds to the path himself stays."""
        folder = str((Path() if self.path is None else self.path.parent).resolve())
        sys.path.insert(len(sys.path) if self.path is None else 0, folder)
        try:
            yield
        finally:
            places = [at for at, place in enumerate(sys.path) if place == folder]
            if places:
                del sys.path[places[-1 if self.path is None else 0]]

    def _where(self, error: BaseException) -> str:
        """The last line of the user's file that the error passed through, else the last of all."""
        if isinstance(error, SyntaxError) and error.filename:
            return f" ({Path(error.filename).name} line {error.lineno})"
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if self.path is not None and Path(f.filename).name == self.path.name]
        frame = (own or frames)[-1]
        # importlib's own frames tell nothing: the message says which module
        return "" if frame.filename.startswith("<") else f" ({Path(frame.filename).name} line {frame.lineno})"


def _module_from_file(path: Path, hint: str) -> Any:
    if not path.is_file():
        raise PruneError(f"{path} does not exist", hint)
    spec = importlib.util.spec_from_file_location(f"_prunecli_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise PruneError(f"{path} is not a Python file", hint)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
