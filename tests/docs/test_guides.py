"""The commands of every guide run on a small model of that kind, in the order of the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from prunecli.cli.app import run
from tests.docs.models import KINDS

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every code block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_every_guide_has_a_model() -> None:
    assert sorted(KINDS) == sorted(path.stem for path in (DOCS / "guides").glob("*.md") if path.stem != "index")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_commands_of_a_guide_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    KINDS[kind](tmp_path)
    monkeypatch.chdir(tmp_path)
    ran = 0
    for language, text in blocks(f"guides/{kind}.md"):
        if language == "python":
            file = re.match(r"# (\w+\.py)\n", text)
            Path(file[1]).write_text(text, encoding="utf-8") if file else exec(text, {})
        for line in text.splitlines() if language == "sh" else []:
            program, *words = shlex.split(line, comments=True)
            assert program == "prune"
            code = run(words)
            told = capsys.readouterr()
            # 1: the weights are random, so that training may improve nothing and gates may fail; 2 would be a refusal
            assert code == 0 or (code == 1 and (words[0] == "finetune" or "--fail-if" in words)), f"{line}\n{told.err}"
            ran += 1
    assert ran >= 4


@pytest.mark.slow
def test_the_workflow_and_the_recipe_for_ci_pass_on_a_sample_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    KINDS["classifier"](tmp_path)
    (tmp_path / "classifier.onnx").rename(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    found = dict(reversed(blocks("ci.md")))  # the first of each language
    lines = re.findall(r"^ +(prune .*)$", found["yaml"].replace("\\\n", " "), re.MULTILINE)
    assert [line.split()[1] for line in lines] == ["structured", "evaluate"]
    for line in lines:
        assert run(shlex.split(line.partition(">>")[0])[1:]) == 0, capsys.readouterr().err
    Path("recipe.toml").write_text(found["toml"], encoding="utf-8")
    assert run(["run", "recipe.toml"]) == 0, capsys.readouterr().err
