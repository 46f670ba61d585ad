"""`prune magnitude` on the command line: options, exit codes, and the contract's JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.cli.conftest import SAMPLES, Prune
from tests.model.build import floats, node, proto, save_proto

KEYS = [
    "schema", "command", "version", "seconds", "model", "output", "before", "after", "sparsity", "layers", "skipped",
    "verification",
]  # fmt: skip
SIZES = {"params", "nonzero", "macs", "file_bytes", "gzip_bytes"}
LAYER = {"name", "op", "weight", "shape_before", "shape_after", "params_before", "params_after", "nonzero", "sparsity"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    nodes = [node("Gemm", ["x", "w1", "b1"], ["h"], "fc1"), node("MatMul", ["h", "w2"], ["y"], "fc2")]
    weights = {"w1": floats(6, 8, seed=1), "b1": floats(8), "w2": floats(8, 4, seed=2)}
    return save_proto(proto(nodes, {"x": ("batch", 6)}, weights=weights), tmp_path)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_json_follows_the_contract(prune: Prune, path: Path) -> None:
    out = path.with_name("out.onnx")
    done = prune("magnitude", path, "--sparsity", "50%", "--format", "json", "-o", out)
    assert (done.code, done.err) == (0, "")
    found = done.json
    assert [key for key in found if key in KEYS] == KEYS
    assert (found["schema"], found["command"]) == ("prunecli/1", "magnitude")
    assert found["model"] == {"path": str(path), "sha256": sha256(path)}
    assert found["output"] == {"path": str(out), "sha256": sha256(out)}
    assert found["before"].keys() >= SIZES
    assert found["after"].keys() >= SIZES
    assert (found["before"]["nonzero"], found["after"]["nonzero"]) == (88, 48)
    assert found["after"]["file_bytes"] == out.stat().st_size
    assert found["sparsity"] == 0.5
    assert found["layers"][0].keys() >= LAYER
    row = {key: found["layers"][0][key] for key in LAYER}
    assert row == {"name": "fc1", "op": "Gemm", "weight": "w1", "shape_before": [6, 8], "shape_after": [6, 8],
                   "params_before": 48, "params_after": 48, "nonzero": 24, "sparsity": 0.5}  # fmt: skip
    assert found["skipped"] == [{"name": "b1", "reason": "biases are left alone unless --also bias is given"}]
    proof = found["verification"]
    assert (proof["kind"], proof["max_abs_error"], proof["max_rel_error"], proof["samples"]) == ("exact", 0.0, 0.0, 1)


def test_a_dry_run_prints_everything_and_writes_nothing(prune: Prune, path: Path) -> None:
    done = prune("magnitude", path, "--threshold", "0.5", "--dry-run", "--format", "json")
    assert done.code == 0
    assert done.json["output"] is None
    assert done.json["dry_run"] is True
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    table = prune("magnitude", path, "--threshold", "0.5", "--dry-run")
    assert "what would be zeroed" in table.out
    assert "written" not in table.out


def test_the_default_name_and_force(prune: Prune, path: Path) -> None:
    assert prune("magnitude", path, "--pattern", "2:4").code == 0
    out = path.with_name("m.pruned.onnx")
    before = out.read_bytes()
    again = prune("magnitude", path, "--sparsity", "0.9")
    assert again.code == 2
    assert "already exists" in again.err
    assert out.read_bytes() == before
    assert prune("magnitude", path, "--sparsity", "0.9", "--force").code == 0
    assert out.read_bytes() != before


def test_reports_plans_and_proofs_go_where_they_are_asked(prune: Prune, path: Path) -> None:
    plan, report = path.with_name("plan.json"), path.with_name("report.md")
    done = prune("magnitude", path, "--sparsity", "0.5", "--save-plan", plan, "--report", report, "--no-verify",
                 "--format", "markdown")  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert "not proved: left out by --no-verify" in done.out
    assert "| w1" in report.read_text()
    assert json.loads(plan.read_text())["schema"] == "prunecli-plan/1"
    replayed = prune("magnitude", path, "--plan", plan, "-o", path.with_name("again.onnx"), "--format", "json")
    assert replayed.json["sparsity"] == 0.5
    first, second = (onnx.load(path.with_name(name)) for name in ("m.pruned.onnx", "again.onnx"))
    assert first.graph == second.graph


def test_options_of_choice_and_execution(prune: Prune, path: Path) -> None:
    done = prune("magnitude", path, "--sparsity", "0.5", "--include", "w?", "--exclude", "fc2", "--scope", "global",
                 "--threads", "1", "--provider", "cpu", "--dim", "batch=3", "--also", "bias", "--external-data",
                 "always", "--seed", "1", "--criterion", "random", "--format", "json")  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert [row["weight"] for row in done.json["layers"]] == ["w1"]
    assert done.json["recipe"] == {
        "pattern": "element", "scope": "global", "criterion": "random", "sparsity": 0.5, "seed": 1,
        "include": ["w?"], "exclude": ["fc2"], "also": ["bias"],
    }  # fmt: skip
    assert done.json["before"]["macs"] == 3 * (48 + 32)


# options -> a piece of the error line, a piece of the hint line
BAD = [
    ("", "how much to prune is not given", "--sparsity"),
    ("--sparsity 0.5 --threshold 0.1", "contradict", "one of them"),
    ("--sparsity 2", "--sparsity", "2%"),
    ("--sparsity half", "--sparsity", "50%"),
    ("--threshold -1", "'--threshold': -1 is out of its range", "at least 0"),
    ("--threshold nan", "'nan' is not a number", "at least 0"),
    ("--threshold 0.1 --scope global", "--scope makes no sense", "--sparsity"),
    ("--threshold 0.1 --pattern 2:4", "--threshold makes no sense", "--pattern element"),
    ("--pattern 4:2", "4:2", "N:M"),
    ("--pattern blocks", "'blocks' is not a pattern", "2:4"),
    ("--pattern 2:4 --sparsity 0.7", "means a sparsity of 0.5", "--sparsity"),
    ("--pattern 2:4 --scope global", "--scope global makes no sense", "--scope"),
    ("--pattern row --scope row --sparsity 0.5", "makes no sense", "--scope"),
    ("--sparsity 0.5 --scope everywhere", "everywhere", "choose from layer"),
    ("--sparsity 0.5 --criterion l3", "l3", "l1"),
    ("--sparsity 0.5 --include fc3", "--include 'fc3' matches nothing", "fc1"),
    ("--sparsity 0.5 --also stuff", "'stuff' is unknown", "bias"),
    ("--sparsity 0.5 -o {model}", "is the input itself", "--output"),
    ("--sparsity 0.5 -o {folder}/no/out.onnx", "does not exist", ""),
    ("--sparsity 0.5 --save-plan {folder}/no/plan.json", "does not exist", ""),
    ("--sparsity 0.5 --provider abacus", "abacus", "cpu"),
    ("--sparsity 0.5 --dim width=2", "width", "batch"),
    ("--plan {folder}/none.json", "none.json", ""),
    ("--plan {model}", "is not JSON", "--save-plan"),
    ("--plan {model} --sparsity 0.5 --include x", "--plan fixes what is pruned", "leave out --sparsity, --include"),
]


@pytest.mark.parametrize(("options", "error", "hint"), BAD)
def test_bad_usage_is_two_lines_and_exit_2(options: str, error: str, hint: str, prune: Prune, path: Path) -> None:
    done = prune("magnitude", path, *options.format(model=path, folder=path.parent).split())
    assert (done.code, done.out) == (2, "")
    lines = done.err.splitlines()
    assert len(lines) == 2, done.err
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert lines[1].startswith("hint: ")
    assert hint in lines[1]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_weight_with_nan_is_refused_by_name(prune: Prune, path: Path) -> None:
    model = onnx.load(path)
    broken = floats(8, 4)
    broken[3, 3] = np.nan
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(broken, "w2"))
    path.write_bytes(model.SerializeToString())
    done = prune("magnitude", path, "--sparsity", "0.5")
    assert done.code == 2
    assert done.err.startswith("error: weight w2 holds 1 NaN or infinite values (first: NaN at flat index 15)")


def test_the_table_of_a_sample(prune: Prune, tmp_path: Path) -> None:
    done = prune("magnitude", SAMPLES / "digits-cnn.onnx", "--sparsity", "0.5", "-o", tmp_path / "out.onnx")
    assert (done.code, done.err) == (0, "")
    for told in (
        "zeros in the pruned weights",
        "50.0 %",
        "proved: onnxruntime's outputs",
        "`prune structured` makes both",
    ):
        assert told in " ".join(done.out.split())


def test_help_says_how_patterns_and_ties_work(prune: Prune) -> None:
    text = " ".join(prune("magnitude", "--help").out.split())
    for told in ("reduction axis", "input channels", "never more", "the later go first", "--also"):
        assert told in text
