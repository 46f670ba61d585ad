"""Reports in a real browser: no error, every chart drawn, every text readable in light and in dark."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from prunecli.cli.app import run
from prunecli.report.document import Document, Table
from prunecli.report.render_html import to_html
from tests.cli.conftest import SAMPLES
from tests.report.test_draw import NAMES, SECTIONS

CHROMIUM = os.environ.get("PRUNE_CHROMIUM") or next(
    (found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it, or name it in PRUNE_CHROMIUM")
PROBE = (Path(__file__).parent / "browser.js").read_text(encoding="utf-8")
CNN, TEST, TRAIN = (SAMPLES / name for name in ("digits-cnn.onnx", "digits-test.npz", "digits-train.npz"))

REPORTS: dict[str, tuple[tuple[Any, ...], set[str]]] = {
    # command -> its arguments, the charts that must be there
    "inspect": (
        (CNN, "--histogram"),
        {"Share of the model", "Zeros by threshold", "|w| in each weight"},
    ),
    "magnitude": (
        (CNN, "--sparsity", "0.5", "--dry-run"),
        {"What remains of the original", "Parameters by layer", "What was zeroed: |w| over all weights", "What was zeroed: |w| in each weight"},
    ),
    "gradient": (
        (CNN, "--sparsity", "0.5", "--data", TEST, "--limit", "32", "--dry-run"),
        {"What remains of the original", "Parameters by layer", "What was zeroed: |w| over all weights", "What was zeroed: |w| in each weight"},
    ),
    "oneshot": (
        (CNN, "--sparsity", "0.5", "--data", TEST, "--limit", "32", "--dry-run"),
        {"What remains of the original", "Parameters by layer", "What was zeroed: |w| over all weights", "What was zeroed: |w| in each weight"},
    ),
    "structured": (
        (CNN, "--ratio", "0.3", "--steps", "2", "--finetune-epochs", "2", "--data", TRAIN, "-o", "{folder}/cut.onnx"),
        {"What remains of the original", "Parameters by layer", "Units by coupled group", "Scores of units, by group", "Training curves"},
    ),
    "finetune": (
        (CNN, "--epochs", "2", "--data", TRAIN, "-o", "{folder}/tuned.onnx"),
        {"Training curves"},
    ),
    "evaluate": (
        (CNN, "--baseline", CNN, "--data", TEST, "--robustness", "--per-class", "--latency-runs", "5"),
        {"Quality side by side", "Latency of single runs", "F1 of each class", "Robustness curves"},
    ),
    "compare": ((CNN, CNN), set()),
}  # fmt: skip


def browse(page: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr")
    command = [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", *options, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def check_as_it_is(page: Path, folder: Path) -> None:
    """No error and no refusal by the page's own policy."""
    opened = browse(page, folder)
    assert [line for line in opened.stderr.splitlines() if "CONSOLE" in line] == []


def check(
    page: Path, folder: Path, charts: set[str], schemes: tuple[str, ...] = ("light", "dark"), width: int = 1280
) -> None:
    """Open a copy of the page that measures itself: without the policy, which forbids scripts."""
    text = page.read_text(encoding="utf-8")
    measuring = folder / "measuring.html"
    copy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    measuring.write_text(copy.replace("</head>", f"<script>{PROBE}</script></head>"), encoding="utf-8")
    for scheme in schemes:
        setting = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
        done = browse(measuring, folder, setting, f"--window-size={width},2000")
        assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
        match = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
        assert match is not None
        found = json.loads(html.unescape(match[1]))
        assert found["dark"] == (scheme == "dark")
        assert found["texts"] > 5
        assert found["unreadable"] == []
        assert {svg["title"] for svg in found["svgs"]} >= charts
        for svg in found["svgs"]:
            assert (svg["faint"], svg["covered"], svg["outside"], svg["small"]) == (0, [], [], []), (scheme, svg)
            assert svg["height"] > 30
            assert svg["drawn"] > 0 or svg["title"] not in charts, svg


LONG = {"gradient", "oneshot", "finetune", "compare", "structured", "evaluate"}
"""They take long, and most of their sections are those of other commands."""


@pytest.mark.parametrize("command", [pytest.param(c, marks=pytest.mark.slow if c in LONG else ()) for c in REPORTS])
def test_reports_open_and_read_well(command: str, tmp_path: Path) -> None:
    args, charts = REPORTS[command]
    page = tmp_path / "report.html"
    words = [str(arg).format(folder=tmp_path) for arg in args]
    code = run([command, *words, "--report", str(page)])
    assert code == 0 or (command == "finetune" and code == 1)  # it was trained already: nothing may get better
    assert page.stat().st_size < 1_000_000
    check(page, tmp_path, charts)


@pytest.mark.slow
def test_every_kind_of_section_on_a_narrow_screen(tmp_path: Path) -> None:
    """Any name, any drawing; the page itself does not scroll sideways."""
    page = tmp_path / "all.html"
    table = Table("Names", (), [])
    page.write_text(
        to_html(Document("All " + NAMES[2], [table, *(section for _, section, _ in SECTIONS)])), encoding="utf-8"
    )
    check_as_it_is(page, tmp_path)
    check(page, tmp_path, set(), ("dark",), width=500)


def test_the_probe_sees_bad_pages(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    text = (
        to_html(Document("t", [SECTIONS[0][1]]))
        .replace("--fg: #1b1f24", "--fg: #ddd")
        .replace("--c0: #2a6fb5", "--c0: #eee")
    )
    page.write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError):
        check(page, tmp_path, set(), ("light",))
    page.write_text("<!DOCTYPE html><html><head></head><body><script>console.error('x')</script></body></html>")
    with pytest.raises(AssertionError, match="CONSOLE"):
        check_as_it_is(page, tmp_path)
