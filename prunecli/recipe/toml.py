"""TOML files that are read, by `tomllib`, with the place of every key and value, which that does not tell; and values
that are written.

The scanner of places reads documents that `tomllib` has accepted, so it need not judge them; it only walks over them.
Grammar: https://toml.io/en/v1.0.0
"""

from __future__ import annotations

import json
import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from prunecli.errors import PruneError

MAX_BYTES = 1 << 18
"""The largest file that is read: more than any recipe needs, and little enough for `tomllib` in the worst case."""
MAX_DEPTH = 32
"""The longest dotted key, which `tomllib` takes quadratic time for, and the deepest nesting."""
_AT = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")
_NUMBER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)
_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_LONG_KEY = re.compile(f"(?<![A-Za-z0-9_-])(?:{_PART}){{{MAX_DEPTH}}}")


@dataclass(frozen=True)
class Toml:
    """A document. `name`: the file as messages show it."""

    name: str
    text: str
    values: dict[str, Any]

    def place(self, *path: str | int, value: bool = False) -> Place:
        """Return the place of a key (or of its value); where it is not written, the place of the table that would hold
        it."""
        where = self._places.values if value else self._places.keys
        found = path
        while found and found not in where:
            found = found[:-1]
        return Place(self.name, *self._places.line_column(where[found])) if found else Place(self.name)

    @cached_property
    def _places(self) -> Places:
        return find_places(self.text)


def read_toml(path: Path, needle: str = "") -> Toml:
    """Read an untrusted file. A file without `needle` in it is not parsed and counts as empty.

    Raises:
        PruneError: it cannot be read, is too large, not UTF-8, not TOML (with line and column), or nested too deeply.
    """
    name, text = str(path), _text(path)
    if needle and needle not in text:
        return Toml(name, "", {})
    if match := _LONG_KEY.search(text):
        raise _too_deep(Place(name, text.count("\n", 0, match.start()) + 1, 1))
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(name, text, str(error)) from error
    except RecursionError as error:
        raise _too_deep(Place(name)) from error
    except ValueError as error:
        raise PruneError(f"{name}: a number that is too long", "see https://toml.io") from error
    if not _shallow(values, MAX_DEPTH):
        raise _too_deep(Place(name))
    return Toml(name, text, values)


def _shallow(value: Any, left: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left > 0 and all(_shallow(part, left - 1) for part in parts)


def _too_deep(place: Place) -> PruneError:
    return PruneError(f"{place}: nested too deeply", f"at most {MAX_DEPTH} levels")


def _text(path: Path) -> str:
    if path.is_dir():
        raise PruneError(f"{path} is a folder", "name a .toml file")
    if path.exists() and not path.is_file():
        raise PruneError(f"{path} is not a regular file", "name a .toml file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PruneError(f"cannot read {path}: {error.strerror}", "check the path and its permissions") from error
    if len(content) > MAX_BYTES:
        raise PruneError(f"{path} is larger than {MAX_BYTES >> 10} KiB", "split it up")
    try:
        return content.decode("utf-8").removeprefix("\ufeff")  # which some editors write
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PruneError(f"{path}:{line}: not UTF-8 text", "TOML files are UTF-8") from error


def _not_toml(name: str, text: str, message: str) -> PruneError:
    match = _AT.search(message)
    line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
    if match and match[1]:
        line, column = int(match[1]), int(match[2])
    what = message[: match.start()] if match else message
    return PruneError(f"{Place(name, line, column)}: not valid TOML: {what[:1].lower()}{what[1:]}", _hint(text, line))


def _hint(text: str, line: int) -> str:
    """Return what is usually wrong with a line that TOML does not accept."""
    written = (text.split("\n")[line - 1 : line] or [""])[0]
    if re.search(r"=\s*[^\s\"'\[{]*[%/A-Za-z]", written) and not re.search(r"=\s*(true|false|inf|nan)\b", written):
        return 'texts, paths and percentages are quoted: "50%"'
    return "see https://toml.io"


def toml_text(value: Any) -> str:
    """Return a text, a number, a truth value, or a list of them as TOML.

    Raises:
        PruneError: a text that UTF-8 cannot hold.
    """
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_text, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PruneError(f"{value!r} cannot be written as TOML", "use names that are valid UTF-8") from error
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def number_or_text(text: str) -> Any:
    """Return the number that a text is in TOML, or the text."""
    return tomllib.loads(f"v = {text}")["v"] if _NUMBER.fullmatch(text) else text


def value_of(text: str) -> Any:
    """Return the value of a text in TOML: a number, true, false, a list, a quoted text; else the text."""
    try:
        return tomllib.loads(f"v = {text}")["v"] if "\n" not in text else text
    except (ValueError, RecursionError):
        return text


KeyPath = tuple[str | int, ...]
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
    keys: dict[KeyPath, int] = field(default_factory=dict)
    values: dict[KeyPath, int] = field(default_factory=dict)
    counts: dict[KeyPath, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lines = [0, *(match.end() for match in re.finditer("\n", self.text))]

    def line_column(self, position: int) -> tuple[int, int]:
        """Return line and column of a position, both from 1; columns count characters."""
        line = bisect_right(self._lines, position)
        return line, position - self._lines[line - 1] + 1

    def add(self, path: KeyPath, key: int, value: int) -> None:
        self.keys.setdefault(path, key)
        self.values.setdefault(path, value)


def find_places(text: str) -> Places:
    """Scan a document that `tomllib.loads` accepts."""
    text = text.replace("\r\n", "\n")
    places, at = Places(text), 0
    table: KeyPath = ()
    while (at := _end(_BLANK, text, at)) < len(text):
        if text[at] == "[":
            table, at = _header(places, at)
        else:
            at = _pair(places, table, at)
    return places


def _header(places: Places, at: int) -> tuple[KeyPath, int]:
    """`[a.b]` or `[[a.b]]`: the table that follows, with the position of every array of tables on the way."""
    start, many = at, places.text.startswith("[[", at)
    names, at = _dotted(places.text, at + 1 + many)
    path: KeyPath = ()
    for depth, name in enumerate(names, 1):
        path = (*path, name)
        if many and depth == len(names):
            places.add(path, start, start)
            places.counts[path] = places.counts.get(path, 0) + 1
        if path in places.counts:
            path = (*path, places.counts[path] - 1)
        places.add(path, start, start)
    return path, _end(_SPACE, places.text, at) + 1 + many


def _pair(places: Places, table: KeyPath, at: int) -> int:
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
    """Return the names of a dotted key, and the position after it and the blanks that follow."""
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


def _value(places: Places, path: KeyPath, at: int) -> int:
    """Walk over a value, noting where the parts of arrays and inline tables stand."""
    text = places.text
    if text[at] == "[":
        return _parts(places, at, "]", items=((*path, index) for index in range(len(text))))
    if text[at] == "{":
        return _parts(places, at, "}", items=None, table=path)
    match = _STRING.match(text, at) or _SCALAR.match(text, at)
    assert match is not None, "tomllib accepted the document"
    return match.end()


def _parts(places: Places, at: int, close: str, items: Iterator[KeyPath] | None, table: KeyPath = ()) -> int:
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
