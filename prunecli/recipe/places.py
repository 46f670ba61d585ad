"""Where every key and value of a TOML document stands, which `tomllib` does not tell.

The scanner reads documents that `tomllib` has accepted, so it need not judge them; it only walks over them.
Grammar: https://toml.io/en/v1.0.0
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

Path = tuple[str | int, ...]
"""Keys and positions from the top: ("step", 1, "fail-if", 0)."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*'""")
_STRING = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?'{3,5}|"(?:\\.|[^"\\])*"|'[^']*\'''', re.DOTALL
)  # the long forms first; up to two quotes may stand before the three that close
_SCALAR = re.compile(r"[^,\]}#\r\n]+")


@dataclass(frozen=True)
class Place:
    """Where something is written. `line` and `column` count from 1; 0: the whole source."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass
class Places:
    """`keys`: where a key or a table's header begins; `values`: where a value begins. By path, characters from 0."""

    text: str
    keys: dict[Path, int] = field(default_factory=dict)
    values: dict[Path, int] = field(default_factory=dict)
    counts: dict[Path, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lines = [0, *(match.end() for match in re.finditer("\n", self.text))]

    def line_column(self, position: int) -> tuple[int, int]:
        """Both from 1; columns count characters."""
        line = bisect_right(self._lines, position)
        return line, position - self._lines[line - 1] + 1

    def add(self, path: Path, key: int, value: int) -> None:
        self.keys.setdefault(path, key)
        self.values.setdefault(path, value)


def find_places(text: str) -> Places:
    """Scan a document that `tomllib.loads` accepts."""
    text = text.replace("\r\n", "\n")
    places, at = Places(text), 0
    table: Path = ()
    while (at := _end(_BLANK, text, at)) < len(text):
        if text[at] == "[":
            table, at = _header(places, at)
        else:
            at = _pair(places, table, at)
    return places


def _header(places: Places, at: int) -> tuple[Path, int]:
    """`[a.b]` or `[[a.b]]`: the table that follows, with the position of every array of tables on the way."""
    start, many = at, places.text.startswith("[[", at)
    names, at = _dotted(places.text, at + 1 + many)
    path: Path = ()
    for depth, name in enumerate(names, 1):
        path = (*path, name)
        if many and depth == len(names):
            places.add(path, start, start)
            places.counts[path] = places.counts.get(path, 0) + 1
        if path in places.counts:
            path = (*path, places.counts[path] - 1)
        places.add(path, start, start)
    return path, _end(_SPACE, places.text, at) + 1 + many


def _pair(places: Places, table: Path, at: int) -> int:
    """`a.b = value`; returns where it ends."""
    start = at
    names, at = _dotted(places.text, at)
    at = _end(_SPACE, places.text, at + 1)
    path = table
    for name in names:
        path = (*path, name)
        places.add(path, start, at)
    return _value(places, path, at)


def _dotted(text: str, at: int) -> tuple[list[str], int]:
    """A dotted key, and the position behind it and the space that follows."""
    names: list[str] = []
    while True:
        at = _end(_SPACE, text, at)
        match = _KEY.match(text, at)
        assert match is not None, "tomllib accepted the document"
        names.append(_unquoted(match[0]))
        at = _end(_SPACE, text, match.end())
        if not text.startswith(".", at):
            return names, at
        at += 1


def _unquoted(key: str) -> str:
    if key[0] == "'":
        return key[1:-1]
    return str(tomllib.loads(f"v = {key}")["v"]) if key[0] == '"' else key


def _value(places: Places, path: Path, at: int) -> int:
    """Walk over a value, noting where the parts of arrays and inline tables stand."""
    text = places.text
    if text[at] == "[":
        return _parts(places, at, "]", ((*path, index) for index in range(len(text))))
    if text[at] == "{":
        return _parts(places, at, "}", None, path)
    match = _STRING.match(text, at) or _SCALAR.match(text, at)
    assert match is not None, "tomllib accepted the document"
    return match.end()


def _parts(places: Places, at: int, close: str, items: Iterator[Path] | None, table: Path = ()) -> int:
    text = places.text
    at = _end(_BLANK, text, at + 1)
    while text[at] != close:
        if items is not None:
            path = next(items)
            places.add(path, at, at)
            at = _value(places, path, at)
        else:
            at = _pair(places, table, at)
        at = _end(_BLANK, text, at)
        if text[at] == ",":
            at = _end(_BLANK, text, at + 1)
    return at + 1


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()
