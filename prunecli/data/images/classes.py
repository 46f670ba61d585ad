"""What the folders of an image set mean: class numbers, in the order of names or as a file says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from prunecli.data.dataset import Classes
from prunecli.errors import PruneError

_MAX_BYTES = 16 << 20
_SEVERAL = -1
_EXAMPLE = "a name per line (.txt), or JSON: a list of names, or {name: number}"


@dataclass(frozen=True)
class Numbering:
    """`numbers`: the class number of each folder, in the folders' order; `classes`: the names by number."""

    numbers: list[int]
    classes: Classes


def number_folders(folders: Sequence[str], how: str | Path | None, source: str) -> Numbering:
    """Class numbers of sub-folders.

    Args:
        folders: their names, sorted.
        how: "sorted": 0, 1, ... in the order of names, as torchvision and Keras do; "numbers": the name is the number;
            None: "numbers" where the names are 0, 1, ... without a gap, else "sorted"; or a file.

    Raises:
        PruneError: names are other numbers, and `how` does not say what is meant; a folder that the file does not
            name.
    """
    if how is None and all(name.isdecimal() for name in folders):
        numbers = [int(name) for name in folders]
        if sorted(numbers) != list(range(len(folders))):
            raise PruneError(
                f"the folders of {source} are numbers, but not those from 0 on ({', '.join(folders[:4])}, ...)",
                "add --classes numbers if the names are class numbers, or --classes sorted as torchvision would",
            )
        return Numbering(numbers, Classes(dict(zip(numbers, folders, strict=True)), complete=True))
    if how in (None, "sorted"):
        return Numbering(list(range(len(folders))), Classes(dict(enumerate(folders)), complete=True))
    if how == "numbers":
        return _by_number(folders, source)
    return _by_file(folders, Path(str(how)))


def _by_number(folders: Sequence[str], source: str) -> Numbering:
    other = next((name for name in folders if not name.isdecimal() or len(name) > 9), None)
    if other is not None:
        raise PruneError(f"the folder {other} of {source} is no class number", "leave out --classes numbers")
    numbers = [int(name) for name in folders]
    return Numbering(numbers, Classes(dict(zip(numbers, folders, strict=True)), complete=False))


def _by_file(folders: Sequence[str], path: Path) -> Numbering:
    names, complete = read_classes(path)
    numbers = []
    for folder in folders:
        if folder not in names:
            close = get_close_matches(folder, names, n=3)
            meant = f"close ones are {', '.join(close)}" if close else f"it has {', '.join(list(names)[:4])}, ..."
            raise PruneError(f"{path} has no class {folder}", meant)
        if names[folder] == _SEVERAL:
            raise PruneError(f"{path} has several classes named {folder}", "rename the folder and the class")
        numbers.append(names[folder])
    titles = {number: name for name, number in reversed(names.items()) if number != _SEVERAL}
    return Numbering(numbers, Classes(titles, complete))


def read_classes(path: Path) -> tuple[dict[str, int], bool]:
    """Class numbers by name, and whether the file lists all classes.

    .txt: line k names class k; its first word is a name too (`n01440764 tench, Tinca tinca`). .json: a list of
    names, {name: number}, or {number: name or names} as Keras writes it.

    Raises:
        PruneError: unreadable. A name of several classes, as in ImageNet's, is an error only where it is used.
    """
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise PruneError(
                f"--classes {path} is no file of class names", f"it takes `sorted`, `numbers` or {_EXAMPLE}"
            )
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            return _from_lines(text.splitlines()), True
        return _from_json(path, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise PruneError(f"--classes {path} cannot be read: {str(error)[:120]}", f"write {_EXAMPLE}") from error


def _from_lines(lines: list[str]) -> dict[str, int]:
    kept = [line.strip() for line in lines]
    while kept and not kept[-1]:
        kept.pop()
    words = [name.split()[0] if name else "" for name in kept]
    return _numbered(words) | _numbered(kept)


def _from_json(path: Path, found: Any) -> tuple[dict[str, int], bool]:
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return _numbered(found), True
    if isinstance(found, dict) and found and all(type(v) is int and v >= 0 for v in found.values()):
        return dict(found), False
    if isinstance(found, dict) and found and all(key.isdecimal() for key in found):
        listed = {int(key): [value] if isinstance(value, str) else value for key, value in found.items()}
        if all(isinstance(v, list) and all(isinstance(name, str) for name in v) for v in listed.values()):
            return _merged([(name, k) for k, v in sorted(listed.items()) for name in v]), False
    raise PruneError(f"--classes {path} is not a mapping of class names", f"write {_EXAMPLE}")


def _numbered(names: list[str]) -> dict[str, int]:
    return _merged([(name, number) for number, name in enumerate(names)])


def _merged(pairs: list[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, number in pairs:
        found[name] = number if found.get(name, number) == number else _SEVERAL
    return found
