"""stdout carries the result and nothing else; report files are whole or absent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunecli.cli import output
from prunecli.errors import PruneError
from prunecli.options.groups import check_report_path
from prunecli.report.document import Column, Document, Table
from prunecli.types import Json


@dataclass
class Result:
    value: Any = None
    name: str = "layer"

    def to_json(self) -> Json:
        return {"value": self.value}

    def to_document(self) -> Document:
        rows = [(f"{self.name}{row}", row) for row in range(40)]
        return Document("Title", [Table("T", (Column("name"), Column("n", "count")), rows, top=3, top_by="n")])


# value -> JSON text: numbers are numbers, whatever made them; what is no number is null
PLAIN = [
    (1, "1"),
    (1.5, "1.5"),
    (True, "true"),
    (None, "null"),
    ("é\n", '"é\\n"'),
    (float("nan"), "null"),
    (float("-inf"), "null"),
    (np.float32(0.5), "0.5"),
    (np.float64("nan"), "null"),
    (np.int64(7), "7"),
    (np.uint8(255), "255"),
    (np.bool_(True), "true"),
    (np.array([1, 2]), "[1,2]"),
    (np.array([[0.5, np.inf]]), "[[0.5,null]]"),
    (np.float16(0.25), "0.25"),
    ((1, (2, 3)), "[1,[2,3]]"),
    ({"a": {"b": np.int32(1)}, 2: []}, '{"a":{"b":1},"2":[]}'),
    (Path("a/b"), '"a/b"'),
    (2**70, str(2**70)),
]


@pytest.mark.parametrize(("value", "text"), PLAIN)
def test_json_values(value: Any, text: str) -> None:
    found = json.loads(output.to_json_text(Result(value)))
    assert json.dumps(found["value"], separators=(",", ":"), ensure_ascii=False) == text


def test_what_json_cannot_hold_is_an_error() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        output.to_json_text(Result(object()))


def test_json_is_all_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit(Result(1), "json")
    assert json.loads(capsys.readouterr().out) == {"value": 1}


def test_a_pipe_gets_every_row_with_verbose(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.terminal, "verbose", True)
    output.emit(Result(), "table")
    out = capsys.readouterr().out
    assert [row for row in range(40) if f"layer{row} " not in out] == []
    assert "more" not in out


REPORTS = [
    ("r.json", "table", '"value": 1'),
    ("r.JSON", "markdown", '"value": 1'),
    ("r.md", "json", "| layer39 | 39 |"),
    ("r.html", "table", "<td"),
]


@pytest.mark.parametrize(("name", "form", "text"), REPORTS)
def test_report_file_by_suffix(
    name: str, form: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.emit(Result(1), form, [tmp_path / name])
    assert text in (tmp_path / name).read_text(encoding="utf-8")
    assert capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_report_replaces_an_old_one_with_ordinary_permissions(tmp_path: Path) -> None:
    path, other = tmp_path / "r.json", tmp_path / "other"
    path.write_text('{\n  "schema": "prunecli/1"}')
    other.write_text("")
    output.emit(Result(2), "json", [path])
    assert json.loads(path.read_text()) == {"value": 2}
    assert path.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("name", ["r", "r.pdf", ".json", "folder.json", "no/r.json"])
def test_bad_report_paths_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(PruneError):
        check_report_path(tmp_path / name)


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    path.write_text('{\n  "schema": "prunecli/1"}')
    before = path.read_text()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(PruneError, match="No space left"):
        output.emit(Result(1), "json", [path])
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
