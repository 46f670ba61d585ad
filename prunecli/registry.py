"""Choices that a user makes, and rules of operators, to which a plug-in may add: a dictionary and a decorator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from prunecli.errors import PruneError, did_you_mean


class Named(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def help(self) -> str: ...


Entry = TypeVar("Entry", bound=Named)


Function = TypeVar("Function")


def into(table: dict[str, Function]) -> Callable[..., Callable[[Function], Function]]:
    """A decorator `@add("name", ...)` that puts a function into a table under each of the names."""

    def named(*names: str) -> Callable[[Function], Function]:
        def add(function: Function) -> Function:
            table.update(dict.fromkeys(names, function))
            return function

        return add

    return named


def into_operators(table: dict[tuple[str, str], Function]) -> Callable[..., Callable[[Function], Function]]:
    """A decorator `@add("Gemm", ..., domain="")` that puts a function into a table of operators, (domain, type)."""

    def named(*ops: str, domain: str = "") -> Callable[[Function], Function]:
        def add(function: Function) -> Function:
            table.update({(domain, op): function for op in ops})
            return function

        return add

    return named


class Registry(Generic[Entry]):
    """Entries by name, in the order in which they were added."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, entry: Entry) -> Entry:
        """Raises ValueError if the name is taken."""
        if entry.name in self._entries:
            raise ValueError(f"{self.kind} {entry.name} exists already")
        self._entries[entry.name] = entry
        return entry

    def get(self, name: str) -> Entry:
        """Raises PruneError, with what was probably meant, if there is none."""
        if name not in self._entries:
            hint = did_you_mean(name, self._entries, f"choose from {', '.join(self._entries)}")
            raise PruneError(f"no {self.kind} is called {name!r}", hint)
        return self._entries[name]

    def only(self, wanted: Callable[[Entry], bool]) -> Registry[Entry]:
        """Some of the entries, with the same errors."""
        found: Registry[Entry] = Registry(self.kind)
        for entry in filter(wanted, self):
            found.add(entry)
        return found

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())
