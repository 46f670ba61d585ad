"""docs/autodiff.md: its list of operators is that of the registry, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prunecli.autodiff import unfuse
from prunecli.autodiff.registry import RULES
from prunecli.autodiff.rewrites import REWRITES
from prunecli.autodiff.rules import load_rules

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "autodiff.md"


def listing() -> str:
    load_rules()
    assert unfuse is not None
    own = sorted(op for domain, op in RULES if not domain)
    fused = sorted({op for domain, op in (*RULES, *REWRITES) if domain})
    restated = sorted({op for domain, op in REWRITES if not domain and (domain, op) not in RULES})
    parts = {
        "Rules for standard operators": own,
        "Standard operators restated by others": restated,
        "Operators of `com.microsoft`": fused,
    }
    return "\n\n".join(f"{title} ({len(ops)}): " + ", ".join(ops) + "." for title, ops in parts.items())


def test_the_list_of_operators_is_current() -> None:
    found = DOCUMENT.read_text(encoding="utf-8").split("keeps this list -->\n\n")[1].split("\n\n## ")[0]
    assert found.split() == listing().split(), "replace the list by that of tests/autodiff/test_docs.py"


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    load_rules()
    before = dict(RULES)
    try:
        for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL):
            exec(block, {})
    finally:
        RULES.clear()
        RULES.update(before)
