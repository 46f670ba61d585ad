"""The pages of docs/: links lead somewhere, every page is in the table of contents, made pages say what the options say."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from prunecli.cli.commands import COMMANDS
from prunecli.options.declare import declared_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def _hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    sys.modules["hooks"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = _hooks()
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")} | hooks.pages()


def _prose(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def _anchors(text: str) -> set[str]:
    """As toc makes them of headings: letters, digits, dashes."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_to_pages_and_headings(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(PAGES[page])):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = Path(page).parent / path if path else Path(page)
        place = Path(*_resolved(target.parts)).as_posix()
        assert place in PAGES or (DOCS / place).is_file(), f"{page}: {link}"
        assert not anchor or anchor in _anchors(PAGES[place]), f"{page}: {link}"


def _resolved(parts: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for part in parts:
        found = found[:-1] if part == ".." else [*found, part]
    return found


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "sample_models/README.md"])
def test_links_of_files_lead_to_files(file: str) -> None:
    for link in re.findall(r"\]\(([^)\s#]+)", _prose((ROOT / file).read_text("utf-8"))):
        assert link.startswith("http") or (ROOT / file).parent.joinpath(link).is_file(), link


def test_the_results_of_readme_are_those_of_the_benchmarks() -> None:
    table = (ROOT / "README.md").read_text("utf-8").partition("## Results")[2].partition("| | made by |")[0]
    figures = set(re.findall(r"\d[\d,]*\.?\d*", re.sub(r"\[\d\]|-\d+|\d %|Lite0", "", table)))
    said = set(re.findall(r"\d[\d,]*\.?\d*", (DOCS / "benchmarks.md").read_text("utf-8")))
    assert len(figures) > 20 and figures - said == set()


def test_every_page_is_in_the_contents() -> None:
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8"))
    assert sorted(listed) == sorted(PAGES)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_a_command_has_every_option_once(name: str) -> None:
    rows = re.findall(r"^\| (?:`-\w`, )?`(--[\w-]+)` \|", hooks.command_page(name), re.MULTILINE)
    assert sorted(rows) == sorted(f"--{one.name}" for one in declared_of(COMMANDS[name].options_class))


@pytest.mark.parametrize("registry", hooks.REGISTRIES)
def test_what_can_be_chosen_is_told_with_its_formula(registry: str) -> None:
    """Every entry of a registry stands on the page of a command, and a page lists what its option takes."""
    told = set()
    for name in COMMANDS:
        for one in declared_of(COMMANDS[name].options_class):
            table = hooks.entry_table(name, one) if one.name == registry else []
            rows = re.findall(r"^\| `([\w-]+)` \| .+ \|$", "\n".join(table), re.MULTILINE)
            assert not table or not one.choices or sorted(rows) == sorted(one.choices)
            told |= {*rows}
    assert told == {entry.name for entry in hooks.REGISTRIES[registry]}


def test_the_reference_has_every_function_of_the_library() -> None:
    import prunecli

    text = hooks.api_page()
    assert all(f".{name}\n" in text for name in prunecli._WHERE)


@pytest.mark.slow
def test_the_picture_is_of_this_report() -> None:
    """Letters and lengths: matplotlib's own numbers differ from version to version."""
    sys.path.insert(0, str(ROOT / "sample_models"))
    from picture import picture

    def said(svg: str) -> list[str]:
        return re.findall(r">([^<>]+)</(?:text|title)>", svg)

    kept = (DOCS / "report.svg").read_text("utf-8")
    assert said(picture()) == said(kept)
    assert len(kept) < 20_000 and "http" not in kept.replace("http://www.w3.org/2000/svg", "")
