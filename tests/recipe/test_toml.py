"""Places of keys and values against documents whose places are known, hostile files, and values that are written."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli.errors import PruneError
from prunecli.recipe.toml import MAX_BYTES, find_places, number_or_text, read_toml, toml_text, value_of

SCALARS = [
    "1", "-0.5", "1e-3", "+inf", "nan", "true", "false", "0xff", "1_000", "1979-05-27", "1979-05-27T07:32:00Z",
    "07:32:00", '"text"', '"# ] } , = \\" \\\\"', "'C:\\ # ]'", '""', "''", '"""\nmulti ] # " \\""" line\n"""', '""""a"""""',
    "'''\nraw ' ] #\n'''", "''''b'''''", '"é \\u00e9"',
]  # fmt: skip
KEYS = ["a", "fail-if", "0", '"b c"', "'d.e'", '"\\u0061\\""', "B_2"]
GAPS = ["", " ", "  \t"]
BREAKS = ["", " ", "\n", ' # a comment ] } "\n', "\n\n\t"]


@st.composite
def literals(draw: st.DrawFn, depth: int = 2) -> tuple[str, list[tuple[tuple[Any, ...], str]]]:
    """(the text of a value, (path below it, text) of its parts)."""
    kind = draw(st.sampled_from(["scalar", "scalar", "array", "table"] if depth else ["scalar"]))
    if kind == "scalar":
        return draw(st.sampled_from(SCALARS)), []
    text, parts = "[" if kind == "array" else "{", []
    keys = draw(st.lists(st.sampled_from(KEYS), max_size=3, unique=True))
    for at, key in enumerate(keys):
        literal, below = draw(literals(depth - 1))
        gap = draw(st.sampled_from(BREAKS if kind == "array" else GAPS))
        path: Any = at if kind == "array" else name_of(key)
        text += ("," if at else "") + gap + ("" if kind == "array" else f"{key}{draw(st.sampled_from(GAPS))}= ")
        parts += [((path,), literal), *(((path, *rest), piece) for rest, piece in below)]
        text += literal + draw(st.sampled_from(GAPS))
    return text + ("]" if kind == "array" else "}"), parts


def name_of(key: str) -> str:
    return next(iter(tomllib.loads(f"{key} = 1")))


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, list[tuple[tuple[Any, ...], str]]]:
    """(a document, (path, literal) of all its values)."""
    text, parts, counts = draw(st.sampled_from(["", "# first\n\n"])), [], {}
    tables: list[Any] = [None, *draw(st.lists(st.sampled_from(["[x]", "[[s]]", "[ [s] ]", "[y.'z w']"]), max_size=4))]
    seen = set()
    for table in tables:
        path: tuple[Any, ...] = ()
        if table == "[ [s] ]" or table in seen:
            table = "[[s]]"
        if table:
            seen.add(table)
            text += f"{table} # {{\n"
            path = {"[x]": ("x",), "[y.'z w']": ("y", "z w"), "[[s]]": ("s", counts.get("s", 0))}[table]
            counts["s"] = counts.get("s", 0) + (table == "[[s]]")
        for key in draw(st.lists(st.sampled_from(KEYS), max_size=3, unique_by=name_of)):
            literal, below = draw(literals())
            end = draw(st.sampled_from(["\n", "\r\n", " # x = 1\n"]))
            sub = draw(st.sampled_from(["", " . deep", ".'q'"]))
            own = (*path, name_of(key), *([name_of(sub.strip(" ."))] if sub else []))
            text += f"{draw(st.sampled_from(GAPS))}{key}{sub} = {literal}{end}"
            parts += [(own, literal), *(((*own, *rest), piece) for rest, piece in below)]
    return text, parts


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from leaves(part, (*path, key))


@settings(max_examples=100)
@given(documents())
def test_every_value_is_found_where_it_was_written(document: tuple[str, list[tuple[tuple[Any, ...], str]]]) -> None:
    text, parts = document
    values = tomllib.loads(text)
    places = find_places(text)
    plain = text.replace("\r\n", "\n")
    for path, literal in parts:
        assert plain.startswith(literal, places.values[path]), path
        line, column = places.line_column(places.values[path])
        assert plain.split("\n")[line - 1][column - 1 :].startswith(literal.split("\n")[0])
    assert {path for path in leaves(values) if path} == set(places.keys)


def test_headers_and_keys_have_places_too(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('a = 1\n\n  [[step]]\nx.y = "z"\n[[step]]\n[step.sub]\n')
    toml = read_toml(file)
    found = [toml.place("a"), toml.place("step", 0), toml.place("step", 0, "x", "y"), toml.place("step", 1)]
    assert [(place.line, place.column) for place in found] == [(1, 1), (3, 3), (4, 1), (5, 1)]
    assert (toml.place("step", 0, "x", "y", value=True).column, toml.place("step", 1, "sub").line) == (7, 6)
    assert toml.place("step", 1, "no", "such").line == 5
    assert str(toml.place("nothing")) == str(file)


# what a file holds -> the place (line and column), a piece of the message
HOSTILE = [
    (b"a = 50%", ":1:7", "not valid TOML"),
    (b"a = 1\nb = model.onnx\n", ":2:5", "not valid TOML"),
    (b"a = 1\na = 2\n", ":2:6", "overwrite"),
    (b"a = [1,\n ", ":2:2", "not valid TOML"),
    (b"a = \xff", ":1:", "not UTF-8"),
    (b"a = " + b"[" * 100_000, "", "nested too deeply"),
    (b"x = 1\n" + b"a." * 100_000 + b"a = 1", ":2:1", "nested too deeply"),
    (b"a = " + b"{a=" * 100 + b"1" + b"}" * 100, "", "nested too deeply"),
    (b"a = " + b"9" * 5000, "", "too long"),
    (b"#" * (MAX_BYTES + 1), "", "larger than 256 KiB"),
]


@pytest.mark.parametrize(("content", "place", "message"), HOSTILE, ids=[message for _, _, message in HOSTILE])
def test_hostile_files_are_refused_with_their_place(content: bytes, place: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_bytes(content)
    with pytest.raises(PruneError) as error:
        read_toml(file)
    assert message in error.value.message
    assert error.value.message.startswith(f"{file}{place}") or not place
    assert error.value.hint


def test_unquoted_texts_get_a_hint_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("macs = 50%\n")
    with pytest.raises(PruneError) as error:
        read_toml(tmp_path / "r.toml")
    assert '"50%"' in error.value.hint


@pytest.mark.parametrize("what", ["folder", "missing", "fifo"])
def test_what_is_not_a_file_is_refused(what: str, tmp_path: Path) -> None:
    import os

    path = tmp_path / "r.toml"
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    with pytest.raises(PruneError):
        read_toml(path)


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.one_of(texts, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False), st.lists(texts)))
def test_what_is_written_reads_back_the_same(value: Any) -> None:
    assert tomllib.loads(f"v = {toml_text(value)}")["v"] == value


def test_a_name_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(PruneError, match="cannot be written"):
        toml_text("\udcff")


@pytest.mark.parametrize("text", ["0.5", "5e-4", "-3", "50%", "1_0", "0x1", "007", "nan", "", "1.", "١"])
def test_numbers_are_numbers_only_where_nothing_is_lost(text: str) -> None:
    found = number_or_text(text)
    assert found == text or math.isclose(found, float(text))
    assert isinstance(found, str) == (text not in ("0.5", "5e-4", "-3"))


# what follows --set NAME= -> its value
SET = [("0.4", 0.4), ("true", True), ('["a", "b"]', ["a", "b"]), ("50%", "50%"), ("a.onnx", "a.onnx"), ("'x'", "x"),
       ("", ""), ("1\nb=2", "1\nb=2"), ("[" * 5000, "[" * 5000)]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SET, ids=range(len(SET)))
def test_what_a_command_line_sets(text: str, value: Any) -> None:
    assert value_of(text) == value
