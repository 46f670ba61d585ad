"""The functions of `prunecli`, called as the README calls them: with paths and plain values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prunecli
from prunecli.errors import PruneError
from tests.tiny import ROOT

SAMPLES = ROOT / "sample_models"
MODEL, TEST, CALIB = (str(SAMPLES / name) for name in ("digits-mlp.onnx", "digits-test.npz", "digits-calib.npz"))
RECIPE = """
model = "{model}"
[[step]]
command = "inspect"
"""


def run(folder: Path) -> Any:
    (folder / "r.toml").write_text(RECIPE.format(model=MODEL))
    return prunecli.run(str(folder / "r.toml"))


def packed(folder: Path) -> str:
    prunecli.magnitude(MODEL, sparsity=0.8, output=str(folder / "z.onnx"))
    prunecli.pack(str(folder / "z.onnx"), output=str(folder / "z.packed.onnx"))
    return str(folder / "z.packed.onnx")


CALLS: dict[str, Callable[[Path], Any]] = {
    "adaptive": lambda at: prunecli.adaptive(
        MODEL, data=TEST, max_drop=0.05, strategy="feedback", jobs=1, output=str(at / "o.onnx")
    ),
    "analyse": lambda at: prunecli.analyse(MODEL),
    "unit_graph": lambda at: prunecli.unit_graph(MODEL),
    "compare": lambda at: prunecli.compare(MODEL, MODEL, data=TEST),
    "evaluate": lambda at: prunecli.evaluate(
        MODEL, MODEL, data=TEST, latency=False, gates=["accuracy.drop>1%"], output_name=None
    ),
    "finetune": lambda at: prunecli.finetune(MODEL, data=CALIB, teacher=MODEL, epochs=1, output=str(at / "o.onnx")),
    "gradient": lambda at: prunecli.gradient(MODEL, data=CALIB, sparsity=0.5, output=str(at / "o.onnx")),
    "inspect": lambda at: prunecli.inspect(MODEL, nm=(2, 4)),
    "magnitude": lambda at: prunecli.magnitude(MODEL, sparsity=0.5, output=str(at / "o.onnx")),
    "oneshot": lambda at: prunecli.oneshot(MODEL, data=CALIB, sparsity=0.5, output=str(at / "o.onnx")),
    "pack": packed,
    "quantize": lambda at: prunecli.quantize(
        MODEL, data=CALIB, limit=32, timing=False, threads=1, output=str(at / "o.onnx")
    ),
    "run": run,
    "sensitivity": lambda at: prunecli.sensitivity(MODEL, data=CALIB, levels=[0.5], jobs=1),
    "shrink": lambda at: prunecli.shrink(MODEL, output=str(at / "o.onnx")),
    "structured": lambda at: prunecli.structured(MODEL, macs=0.5, data=CALIB, output=str(at / "o.onnx")),
    "unpack": lambda at: prunecli.unpack(packed(at), output=str(at / "dense.onnx")),
}


WRITERS = {"adaptive", "finetune", "gradient", "magnitude", "oneshot", "quantize", "structured", "unpack"}
FUNCTIONS = sorted(set(prunecli.__all__) - {"__version__", "PruneError"})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_paths_and_values(name: str, tmp_path: Path) -> None:
    found = CALLS[name](tmp_path)
    assert found is not None and (name not in WRITERS or Path(found.output.path).is_file())


def test_a_gate_is_told_not_raised() -> None:
    found = prunecli.evaluate(MODEL, MODEL, data=TEST, latency=False, gates=["accuracy.drop>=0"])
    assert [gate.passed for gate in found.gates] == [False]


# keyword that no function has, in which call, a piece of the hint
UNKNOWN = [
    ("evaluate", "limt", "did you mean limit"),
    ("shrink", "outptus", "did you mean outputs"),
    ("structured", "ration", "did you mean ratio"),
    ("structured", "mac", "did you mean macs"),
    ("structured", "budget", "--budget is minutes in Python"),
    ("evaluate", "no_timing", "--no-timing is timing=False in Python"),
    ("magnitude", "sparsty", "did you mean sparsity"),
    ("gradient", "step", "did you mean steps"),
    ("quantize", "weight", "did you mean weights"),
    ("oneshot", "methd", "did you mean method"),
    ("finetune", "epoch", "did you mean epochs"),
    ("adaptive", "max_dop", "did you mean max_drop"),
    ("sensitivity", "level", "did you mean levels"),
    ("compare", "gate", "did you mean gates"),
    ("inspect", "dims", "did you mean dim"),
    ("pack", "minsaving", "did you mean min_saving"),
    ("unpack", "dryrun", "did you mean dry_run"),
    ("analyse", "granulrity", "did you mean granularity"),
    ("unit_graph", "granulrity", "did you mean granularity"),
    ("run", "dryrun", "did you mean dry_run"),
]


@pytest.mark.parametrize(("name", "keyword", "hint"), UNKNOWN)
def test_an_unknown_keyword_is_refused_with_the_nearest(name: str, keyword: str, hint: str) -> None:
    with pytest.raises(PruneError, match=f"{name} has no option '{keyword}'") as caught:
        getattr(prunecli, name)(MODEL, *([MODEL] if name == "compare" else []), **{keyword: 5})
    assert hint in caught.value.hint


def test_every_function_refuses_unknown_keywords() -> None:
    assert {name for name, _, _ in UNKNOWN} == set(FUNCTIONS)


@pytest.mark.parametrize(("name", "value"), [("report", "r.json"), ("format", "json")])
def test_what_only_the_command_line_prints_is_refused(name: str, value: str) -> None:
    with pytest.raises(PruneError, match=f"so {name} means nothing"):
        prunecli.magnitude(MODEL, sparsity=0.5, **{name: value})


def test_options_of_another_command_are_refused() -> None:
    with pytest.raises(PruneError, match="magnitude takes options of the class MagnitudeOptions, not dict") as caught:
        prunecli.magnitude(MODEL, {"sparsity": 0.5})
    assert "as keywords" in caught.value.hint


def test_what_is_public_is_found_and_its_errors_are_caught() -> None:
    assert set(prunecli.__all__) <= set(dir(prunecli))
    with pytest.raises(prunecli.PruneError) as refused:
        prunecli.magnitude(MODEL, sparsity=3)
    assert refused.value.hint


WRONG = [("threads", "two"), ("threads", 1.5), ("dim", 5), ("granularity", ["channel"]), ("force", "yes"), ("output", 5),
         ("batch_size", True)]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(PruneError, match=f"--{name.replace('_', '-')}"):
        prunecli.structured(MODEL, ratio=0.5, **{name: value})
