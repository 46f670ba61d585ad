"""`prune structured` on the command line: options, exit codes, and the contract's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import SAMPLES, Prune
from tests.structures import cuts
from tests.structures.cuts import net_file

KEYS = {
    "schema", "command", "version", "seconds", "model", "output", "before", "after", "sparsity", "layers", "skipped",
    "verification",
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return net_file(tmp_path, cuts.conv_net, opset=18)


def test_json_follows_the_contract(prune: Prune, path: Path) -> None:
    done = prune("structured", path, "--ratio", "50%", "--format", "json", "-o", path.with_name("cut.onnx"))
    assert (done.code, done.err) == (0, "")
    found = done.json
    assert set(found) >= KEYS
    assert (found["schema"], found["command"]) == ("prunecli/1", "structured")
    assert found["output"]["path"] == str(path.with_name("cut.onnx"))
    assert found["after"]["params"] < found["before"]["params"]
    assert found["after"]["macs"] < found["before"]["macs"]
    assert found["verification"]["kind"] == "exact"
    assert found["verification"]["samples"] == 4
    row = next(r for r in found["layers"] if r["weight"] == "w2")
    assert (row["op"], row["shape_before"], row["shape_after"]) == ("Conv", [8, 8, 3, 3], [4, 4, 3, 3])
    assert (row["params_before"], row["params_after"]) == (576, 144)
    group = found["groups"][0]
    assert (group["units_before"], group["units_after"]) == (8, 4)
    assert {(item["name"], item["reason"].split(": ")[-1]) for item in found["skipped"]} >= {("w0", "graph input")}
    assert {(axis["tensor"], axis["axis"], axis["reason"]) for axis in found["frozen"]} == {
        ("w0", 1, "graph input"), ("w4", 0, "graph output"), ("w5", 0, "graph output"),
    }  # fmt: skip


def test_a_dry_run_prints_the_plan_and_writes_nothing(prune: Prune, path: Path) -> None:
    done = prune("-v", "structured", path, "--macs", "0.5", "--dry-run")
    assert done.code == 0
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    for told in ("Units", "w0", "channel", "graph output", "What stays", "proved", "w2[0]"):
        assert told in done.out
    assert "written" not in done.out


def test_a_saved_plan_is_replayed(prune: Prune, path: Path) -> None:
    first, second, plan = (path.with_name(n) for n in ("a.onnx", "b.onnx", "plan.json"))
    assert prune("structured", path, "--ratio", "0.5", "--recover", "none", "-o", first, "--save-plan", plan).code == 0
    assert prune("structured", path, "--plan", plan, "--recover", "none", "-o", second).code == 0
    assert first.read_bytes() == second.read_bytes()
    assert set(json.loads(plan.read_text())) >= {"schema", "model", "recipe", "weights", "tensors", "units", "frozen"}


def test_the_default_output_is_beside_the_model_and_never_overwritten(prune: Prune, path: Path) -> None:
    assert prune("structured", path, "--ratio", "0.5", "--recover", "none").code == 0
    assert path.with_name("conv_net.pruned.onnx").exists()
    again = prune("structured", path, "--ratio", "0.5")
    assert (again.code, again.out) == (2, "")
    assert "already exists" in again.err
    assert prune("structured", path, "--ratio", "0.5", "--recover", "none", "--force").code == 0


OF_THE_SELECTION = [
    ["--max-ratio", "0.1"], ["--exclude", "*"], ["--include", "x*"], ["--round-to", "7"], ["--criterion", "random"],
    ["--granularity", "block"], ["--scope", "layer"], ["--steps", "3"], ["--allocate", "uniform"], ["--normalize", "mean"],
    ["--damping", "0.5"],
]  # fmt: skip
"""Options that decide what a plan has decided."""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "how much is to be cut"),
        (["--ratio", "0.5", "--macs", "0.5"], "only one of"),
        (["--ratio", "half"], "not a number"),
        (["--ratio", "1.5"], "between 0 and 1"),
        (["--ratio", "0.5", "--granularity", "rows"], "granularity"),
        (["--ratio", "0.5", "--exclude", "nothing"], "matches nothing"),
        (["--ratio", "0.5", "--exclude", "*"], "--exclude leaves nothing to cut"),
        (["--ratio", "0.5", "--criterion", "nonsense"], "nonsense"),
        (["--ratio", "0.5", "--scope", "nonsense"], "nonsense"),
        (["--ratio", "0.5", "--normalize", "nonsense"], "nonsense"),
        (["--ratio", "0.5", "--damping", "0.5"], "--damping is of --criterion pagerank"),
        (["--ratio", "0.5", "--limit", "8"], "--limit was given without data"),
        (["--ratio", "0.5", "--plan", "p.json"], "leave out --ratio"),
        *((["--plan", "p.json", *given], f"leave out {given[0]}") for given in OF_THE_SELECTION),
        (["--plan", "absent.json"], "cannot read the plan"),
        (["--ratio", "0.5", "--dim", "Z=3"], "no dimension of that name"),
        (["--ratio", "0.5", "--labels", "y.npy"], "without data"),
        (["--ratio", "0.5", "-o", "absent/cut.onnx"], "does not exist"),
        (["--ratio", "0.5", "--save-plan", "absent/plan.json"], "does not exist"),
    ],
)
def test_usage_errors_are_one_line_and_write_nothing(prune: Prune, path: Path, arguments: list[Any], told: str) -> None:
    done = prune("structured", path, *arguments)
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 2
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_nothing_to_cut_is_told_with_reasons(prune: Prune, tmp_path: Path) -> None:
    path = net_file(tmp_path, cuts.norm_net, opset=18)
    done = prune("structured", path, "--ratio", "0.5")
    assert done.code == 2
    assert "nothing can be cut" in done.err
    assert "LayerNormalization" in done.err
    assert prune("structured", path, "--ratio", "0.5", "--granularity", "all", "--dry-run").code == 0


@pytest.mark.parametrize("suffix", ["json", "md", "html"])
def test_reports_are_written(prune: Prune, path: Path, suffix: str) -> None:
    report = path.with_name(f"report.{suffix}")
    assert prune("structured", path, "--ratio", "0.5", "--recover", "none", "--dry-run", "--report", report).code == 0
    assert "w2" in report.read_text()


def test_help_lists_what_there_is_and_what_is_default() -> None:
    """The help is written out, so that it needs no numpy; it must not lag behind the registries."""

    from prunecli.masks.criteria import of_structures
    from prunecli.options.declare import declared_of
    from prunecli.structures import normalisers as normalise
    from prunecli.structures.options import MAX_RATIO, CutOptions

    options = {one.field: one for one in declared_of(CutOptions)}
    for field, names in (("criterion", of_structures()), ("normalize", normalise.NORMALISERS)):
        text = options[field].option.help
        for name in names:
            assert name in text
        assert f"{options[field].default} (default" in text
    assert f"default {MAX_RATIO:g}" in options["max_ratio"].option.help


def test_help_is_complete(prune: Prune) -> None:
    done = prune("structured", "--help")
    assert done.code == 0
    for option in ("--ratio", "--macs", "--params", "--latency", "--granularity", "--criterion", "--normalize", "--scope", "--max-ratio",
                   "--round-to", "--steps", "--seed", "--data", "--plan", "--save-plan", "--dry-run", "--no-verify"):  # fmt: skip
        assert option in done.out


def test_a_latency_out_of_reach_ends_with_one(prune: Prune, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promised limit that is not met is a gate that fails; nothing is written."""
    from prunecli.evaluation.latency import Speedup
    from prunecli.structures.latency import CutTimer

    monkeypatch.setattr(CutTimer, "compare", lambda self, model: Speedup(1.0, 0.97, 1.03))
    monkeypatch.setattr(CutTimer, "layer_times", lambda self, removed: [{"conv3": 2 - mask.mean()} for mask in removed])
    done = prune("structured", path, "--latency", "0.5")
    assert (done.code, done.out) == (1, "")
    assert "no faster model exists within these limits" in done.err
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_blocks_from_the_command_line(prune: Prune, path: Path) -> None:
    done = prune("structured", path, "--granularity", "block", "--ratio", "0.9", "--max-ratio", "1", "--format", "json")
    assert done.code == 0
    assert [g["kind"] for g in done.json["groups"]] == ["block"]
    assert done.json["verification"]["kind"] == "exact"


@pytest.mark.parametrize("words", ["structured --ratio 0.3 --no-timing", "magnitude --sparsity 0.3"])
def test_sizes_that_were_assumed_stand_beside_the_work_before_and_after(words: str, prune: Prune) -> None:
    command, *asked = words.split()
    found = prune(command, SAMPLES / "digits-cnn.onnx", *asked, "--dry-run", "--format", "json").json
    assert [found[when]["assumed"] for when in ("before", "after")] == [["batch of image = 1"]] * 2
