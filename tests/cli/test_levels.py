"""How much a command prints: a line with --quiet, at most a small table by default, everything with --verbose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import SAMPLES, Prune

CNN, MLP, TEST = (SAMPLES / name for name in ("digits-cnn.onnx", "digits-mlp.onnx", "digits-test.npz"))
DATA = ("--data", TEST, "--limit", "64")
PLAIN = 17
"""Lines of a plain run, notes aside."""

COMMANDS = [
    # command line, lines at most by default, lines at most with --quiet, what only --verbose says
    (("inspect", CNN), PLAIN, 1, "Layers"),
    (("magnitude", CNN, "--sparsity", "0.5", "--dry-run"), PLAIN, 1, "Layers"),
    (("oneshot", MLP, *DATA, "--sparsity", "0.5", "--dry-run"), PLAIN, 1, "output error"),
    (("structured", CNN, "--macs", "0.5", "--dry-run"), PLAIN + 1, 1, "Units"),
    (("evaluate", CNN, *DATA, "--no-latency"), PLAIN, 1, "Quality"),
    (("evaluate", MLP, "--baseline", MLP, *DATA, "--no-latency", "--fail-if", "accuracy<0.1"), PLAIN + 6, 2, "Fidelity"),
    (("compare", MLP, MLP), PLAIN, 1, None),
    (("shrink", MLP, "--dry-run"), PLAIN, 1, None),
]  # fmt: skip


@pytest.mark.parametrize(("words", "plain", "quiet", "hidden"), COMMANDS)
def test_lines_at_each_level(
    words: tuple[object, ...], plain: int, quiet: int, hidden: str | None, prune: Prune
) -> None:
    texts = {level: prune(*level, *words).out for level in ((), ("-q",), ("-v",))}
    lines = {level: text.splitlines() for level, text in texts.items()}
    assert 1 <= len(lines["-q",]) <= quiet
    assert quiet < len(lines[()]) <= plain + sum(line.startswith(("warning", "note")) for line in lines[()])
    assert len(lines["-v",]) >= len(lines[()]) - 1  # which says what --verbose has
    assert set(lines["-q",]) <= set(lines[()])
    if hidden is not None:
        assert hidden in texts["-v",]
        shown = texts[()].partition("-v shows more")[0]
        assert hidden not in shown


def test_levels_of_pack(tmp_path: Path, prune: Prune) -> None:
    sparse = tmp_path / "sparse.onnx"
    assert prune("-q", "magnitude", MLP, "--sparsity", "0.9", "-o", sparse).code == 0
    assert len(prune("-q", "pack", sparse, "--dry-run").out.splitlines()) == 1
    assert len(prune("pack", sparse, "--dry-run").out.splitlines()) <= PLAIN
    assert "Tensors" in prune("-v", "pack", sparse, "--dry-run").out


def test_a_report_file_has_everything(tmp_path: Path, prune: Prune) -> None:
    for suffix in (".md", ".html"):
        page = tmp_path / f"r{suffix}"
        assert prune("-q", "structured", CNN, "--ratio", "0.5", "--dry-run", "--report", page).code == 0
        text = page.read_text(encoding="utf-8")
        for told in ("Units", "Layers", "What stays", "How this was made", "prune -q structured", "prunecli 0", "seed"):
            assert told in text


GATES = ("evaluate", MLP, *DATA, "--no-latency", "--fail-if", "accuracy<0.1", "--format", "markdown")


def test_gates_come_first_in_markdown(prune: Prune) -> None:
    text = prune(*GATES).out
    assert (
        text.index("The gate passed") < text.index("### Gates") < text.index("### Figures") < text.index("### Quality")
    )
