"""The generated parts of docs/autodiff.md, from the registries and the rules' own words.

python -m tests.autodiff.document            writes them into the document
python -m tests.autodiff.document --missing  lists ONNX's operators without a gradient
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx

from prunecli.autodiff import registry, rules
from prunecli.autodiff.registry import STEPS
from prunecli.autodiff.rewrites import REWRITES

DOCUMENT = Path(__file__).parents[2] / "docs" / "autodiff.md"
FOLDER = Path(rules.__file__).parent


def operator_table() -> str:
    """One line per rule: its operators, and the formula its docstring begins with."""
    by_rule: dict[Callable[..., Any], list[str]] = {}
    for (domain, op), function in registry.RULES.items():
        by_rule.setdefault(function, []).append(_name(domain, op))
    lines = ["| operators | gradient |", "|---|---|"]
    plain: list[str] = []
    for function, names in by_rule.items():
        told = _first_sentence(function)
        if told:
            lines.append(f"| {', '.join(names)} | {told} |")
        else:
            plain += names
    return "\n".join([*lines, f"| {', '.join(sorted(plain))} | the textbook derivative |"])


def _name(domain: str, op: str) -> str:
    return f"`{domain}.{op}`".replace("com.microsoft.", "ms.") if domain else f"`{op}`"


def _first_sentence(function: Callable[..., Any]) -> str:
    words = " ".join((function.__doc__ or "").split())
    return words.replace("|", "\\|")


def rewrite_list() -> str:
    """Operators restated while the forward graph is copied: always, or in models of an older opset."""
    always = [_name(*key) for key, entry in REWRITES.items() if entry.before is None]
    older = [f"{_name(*key)} (before {entry.before})" for key, entry in REWRITES.items() if entry.before is not None]
    steps = ", ".join(_name(*key) for key in sorted(STEPS))
    return f"Always: {', '.join(always)}.\n\nOf older opsets: {', '.join(older)}.\n\nZero wherever it exists: {steps}."


def refusals() -> str:
    """Every reason a rule can give, by file, read from the source."""
    lines = []
    for path in sorted(FOLDER.glob("*.py")):
        lines += [f"- {path.stem}: {reason}" for reason in _reasons(ast.parse(path.read_text(encoding="utf-8")))]
    return "\n".join(lines)


def _reasons(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "refuse":
            parts = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else [node.args[0]]
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in parts)


GENERATED = {"operators": operator_table, "rewrites": rewrite_list, "refusals": refusals}


def current() -> str:
    """The document with its generated parts as they should be."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, make in GENERATED.items():
        pattern = rf"(<!-- {name}: generated -->\n).*?(<!-- end -->)"
        text, found = re.subn(pattern, lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text, flags=re.DOTALL)
        assert found == 1, f"docs/autodiff.md has no place for {name}"
    return text


def missing() -> list[str]:
    """Operators of ONNX that have no rule, no rewrite and no definition by others, and are no steps."""
    known = registry.RULES.keys() | REWRITES.keys() | STEPS
    schemas = {(s.domain, s.name): s for s in onnx.defs.get_all_schemas()}
    defined = {key for key, s in schemas.items() if s.has_function or s.has_context_dependent_function}
    return sorted(_name(*key).strip("`") for key in schemas.keys() - known - defined)


if __name__ == "__main__":
    if "--missing" in sys.argv:
        print("\n".join(missing()))
    else:
        DOCUMENT.write_text(current(), encoding="utf-8")
