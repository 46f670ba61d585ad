"""The pages of the site that are made, not written: `mkdocs.yml` names this file as a hook.

- a page per command, from the table of commands and the class of its options, with what the registries say of the
  criteria, allocations and scopes that it takes;
- the reference of the library, from the functions that `prunecli` exports and what they return;
- the start page, contributing and changelog, from the files of those names.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

import prunecli
from prunecli.cli.commands import COMMANDS, USUAL
from prunecli.masks.allocations import ALLOCATIONS
from prunecli.masks.criteria import CRITERIA
from prunecli.masks.scopes import SCOPES
from prunecli.options.declare import Declared, declared_of

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
MANUAL = {
    "magnitude": "zeros", "gradient": "zeros", "oneshot": "zeros", "pack": "zeros", "unpack": "zeros",
    "quantize": "integers", "structured": "structures",
    "shrink": "shrink", "adaptive": "search", "sensitivity": "search",
    "finetune": "training", "evaluate": "judge", "compare": "judge",
}  # fmt: skip
"""The page of the manual that speaks of a command at length."""


def pages() -> dict[str, str]:
    """Return the text of every made page by its path in the site."""
    made = {page: linked(page, (ROOT / file).read_text(encoding="utf-8")) for page, file in TEXTS.items()}
    made |= {f"commands/{name}.md": command_page(name) for name in COMMANDS}
    return made | {"commands/index.md": commands_page(), "api.md": api_page()}


def linked(page: str, text: str) -> str:
    """Return the text with links as they are inside `docs`, to the pages that are made of other files too."""
    for target, file in TEXTS.items():
        text = text.replace(f"]({file}", f"]({target}")
    return text.replace("](docs/", "](").replace('src="docs/', 'src="')


def command_page(name: str) -> str:
    """Return the page of a command: what it does, its usage, examples, and a table of options per section."""
    entry = COMMANDS[name]
    arguments = " ".join(shown for _, shown, _ in entry.arguments)
    words = (entry.options_class.__doc__ or "").strip().split("\n\n")
    lines = [f"# prune {name}", "", *("\n".join(map(str.strip, word.splitlines())) + "\n" for word in words)]
    if name in MANUAL:
        lines += [f"The [manual](../manual/{MANUAL[name]}.md) says more.", ""]
    lines += ["```text", f"prune {name} {arguments} [OPTIONS]", "```", ""]
    lines += [f"- `{shown}`: {text}" for _, shown, text in entry.arguments]
    lines += ["", "```sh", *entry.examples, "```"]
    for title, options in sections(name).items():
        lines += ["", f"## {title}", "", "| option | value | what |", "|---|---|---|", *map(option_row, options)]
    for one in declared_of(entry.options_class):
        lines += entry_table(name, one)
    return "\n".join(lines) + "\n"


REGISTRIES: dict[str, Iterable[Any]] = {"criterion": CRITERIA, "allocate": ALLOCATIONS, "scope": SCOPES}
"""What the entries of a registry are chosen by; each has a name and a help."""
OF_STRUCTURES = ("structured", "allocate"), ("structured", "scope")
"""Options of structures whose values are no entries of the registries, which are of zeros."""


def entry_table(name: str, one: Declared) -> list[str]:
    """Return a table of the registry's entries that an option of a command takes; nothing for other options."""
    if one.name not in REGISTRIES or (name, one.name) in OF_STRUCTURES:
        return []
    taken = [entry for entry in REGISTRIES[one.name] if takes(one, entry.name)]
    columns = [["name", *(f"`{entry.name}`" for entry in taken)], ["what", *(cell(entry.help) for entry in taken)]]
    if any(map(formula_of, taken)):
        columns.append(["formula", *(cell(formula_of(entry)) for entry in taken)])
    head, *rows = (f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))
    return ["", f"## Values of --{one.name}", "", head, "|---" * len(columns) + "|", *rows]


def takes(one: Declared, value: str) -> bool:
    """Whether the option's values, or its help where these are not listed, name the value."""
    told = one.metavar if one.metavar and "|" in one.metavar else one.option.help
    return re.search(rf"(?<![\w-]){re.escape(value)}(?![\w-])", told) is not None


def formula_of(entry: Any) -> str:
    """Return the formula of an entry: of an allocation, the first sentence of its function; nothing of a scope."""
    if hasattr(entry, "formula"):
        return str(entry.formula)
    words = " ".join((inspect.getdoc(entry.amounts) or "").split()) if hasattr(entry, "amounts") else ""
    return words.partition(". ")[0].removesuffix(".")


def sections(name: str) -> dict[str, list[Declared]]:
    """Return the options of a command under the headings of its help: the usual ones first."""
    entry = COMMANDS[name]
    usual = entry.usual.split()
    found: dict[str, list[Declared]] = {USUAL: []} if usual else {}
    for one in declared_of(entry.options_class):
        found.setdefault(USUAL if one.name in usual else one.option.section, []).append(one)
    if usual:
        found[USUAL].sort(key=lambda one: usual.index(one.name))
    return found


def option_row(one: Declared) -> str:
    names = f"`-{one.option.short}`, `--{one.name}`" if one.option.short else f"`--{one.name}`"
    text = one.option.help + (" (repeatable)" if one.many and "repeatable" not in one.option.help else "")
    return f"| {names} | {value_of(one)} | {cell(text)}{default_of(one)} |"


def value_of(one: Declared) -> str:
    """Return what the option takes: its choices, or what kind of value; nothing for switches."""
    if one.kind is bool:
        return ""
    taken = one.metavar or {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(one.kind, "TEXT")
    return ", ".join(f"`{word}`" for word in taken.split("|"))


def default_of(one: Declared) -> str:
    """Return the default as typed; nothing for switches, for what is off, and where the help says it."""
    unsaid = one.kind is bool or one.many or one.default in (None, "", ()) or not one.option.show_default
    return "" if unsaid or "default" in one.option.help else f"; default `{one.default}`"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def commands_page() -> str:
    """Return the page that lists the commands, and says what may stand before any of them."""
    rows = [f"| [`prune {name}`]({name}.md) | {cell(entry.summary)} |" for name, entry in COMMANDS.items()]
    return "\n".join([COMMANDS_INTRO, *rows, "", COMMANDS_END])


COMMANDS_INTRO = """# Commands

Every command reads ONNX files and writes a new one beside the old, never over it. `prune COMMAND --help` says what
these pages say.

| command | what |
|---|---|"""
COMMANDS_END = """Options that stand before or after the command:

- `-q`: the result's line and errors only; `-v`: every table, and where each value is from
- `--color auto|always|never`; `--isolated` ignores defaults of a `pyproject.toml`
- `--print-recipe` (after the command) writes the command line as a [recipe](../recipes.md) instead of running it

`prune --install-completion` teaches your shell (bash, zsh, fish, PowerShell) to complete commands and options.
"""


def api_page() -> str:
    """Return directives of mkdocstrings: each public function, then the classes that they return."""
    functions = [getattr(prunecli, name) for name in sorted(prunecli._WHERE)]
    results = {kind.__qualname__: kind for kind in map(result_of, functions) if kind is not None}
    named = (
        ("Functions", functions),
        ("Results", map(results.get, sorted(results))),
        ("Errors", [prunecli.PruneError]),
    )
    lines = [API_INTRO]
    for title, things in named:
        lines += ["", f"## {title}", *(directive(thing, 3) for thing in things)]
    return "\n".join(lines)


API_INTRO = """# Reference

The keywords `**changes` of a function are the [options of its command](commands/index.md), with `_` for `-`. Values
are as on the command line, or numbers, paths and switches."""


def result_of(function: Any) -> type | None:
    kind = get_type_hints(function).get("return")
    return kind if isinstance(kind, type) and kind.__module__.startswith("prunecli") else None


def directive(thing: Any, level: int) -> str:
    return f"\n::: {thing.__module__}.{thing.__qualname__}\n    options:\n      heading_level: {level}\n"


def on_files(files: Any, config: Any) -> Any:
    """Add the made pages to the site."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
