"""Names of a model in little space: the common prefix is dropped, and the rest shortened while all names stay
different."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

SEPARATORS = "/.:"
SHORTEST_PREFIX = 4
"""Least letters of a common prefix that is dropped."""


def common_beginning(names: Sequence[str]) -> str:
    """Return the common prefix of all names, up to a separator; empty if it is short, or one of the names."""
    distinct = set(names)
    if len(distinct) < 2:
        return ""
    pairs = zip(min(distinct), max(distinct), strict=False)
    shared = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    end = max(shared.rfind(separator) for separator in SEPARATORS) + 1
    return shared[:end] if end >= SHORTEST_PREFIX and all(len(name) > end for name in distinct) else ""


def shortened(names: Sequence[str], width: int) -> list[str] | None:
    """Return the names in at most `width` letters, cut in the middle, all different; None where no place of the cut
    achieves that."""
    distinct = list(dict.fromkeys(names))
    if all(len(name) <= width for name in distinct):
        return list(names)
    if width < 1:
        return None
    for tail in _tails(width):
        texts = [cut(name, width, tail) for name in distinct]
        if len(set(texts)) == len(texts):
            break
    else:
        texts = _one_by_one(distinct, width)
    by_name = dict(zip(distinct, texts, strict=False))
    return [by_name[name] for name in names] if len(texts) == len(distinct) else None


def _one_by_one(names: Sequence[str], width: int) -> list[str]:
    """Cut each name where it differs from all others; return a shorter list where there is no such place."""
    used = {name for name in names if len(name) <= width}
    texts: list[str] = []
    for name in names:
        if len(name) > width:
            found = (text for tail in _tails(width) if (text := cut(name, width, tail)) not in used)
            short = next(found, None)
            if short is None:
                return texts
            used.add(short)
            texts.append(short)
        else:
            texts.append(name)
    return texts


def cut(name: str, width: int, tail: int) -> str:
    """The name in `width` letters, of which `tail` are its last ones: `/model/la…n.weight`."""
    if len(name) <= width:
        return name
    return f"{name[: width - 1 - tail]}…{name[len(name) - tail :]}"


def _tails(width: int) -> Iterator[int]:
    """Yield lengths of the part after the cut: three fifths first, where layers' names differ most, then all others."""
    usual = (width - 1) * 3 // 5
    yield from sorted(range(width), key=lambda tail: abs(tail - usual))


def least_width(names: Sequence[str], least: int) -> int:
    """The smallest width, of at least `least`, at which the names stay different."""
    longest = max(map(len, names), default=0)
    return next((width for width in range(min(least, longest), longest) if shortened(names, width)), longest)


def in_about(names: Sequence[str], width: int) -> list[str]:
    """Return the names in `width` letters, or in as few more as keep them different."""
    return shortened(names, max(width, least_width(names, width))) or list(names)
