"""`prune pack` and `prune unpack` on the command line: options, exit codes, and the contract's JSON."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from prunecli.model import load
from tests.cli.conftest import SAMPLES, Prune
from tests.cli.test_magnitude import KEYS, LAYER, SIZES, sha256
from tests.model.build import save_proto
from tests.storage.sparse import matmul, sparse


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_proto(matmul(sparse("50%", shape=(64, 96))), tmp_path)


def test_json_follows_the_contract(prune: Prune, path: Path) -> None:
    out = path.with_name("m.packed.onnx")
    done = prune("pack", path, "--format", "json")
    assert (done.code, done.err) == (0, "")
    found = done.json
    assert [key for key in found if key in KEYS] == KEYS
    assert (found["schema"], found["command"]) == ("prunecli/1", "pack")
    assert found["output"] == {"path": str(out), "sha256": sha256(out)}
    assert found["before"].keys() >= SIZES
    assert found["after"].keys() >= SIZES
    assert found["before"]["params"] == found["after"]["params"] == 64 * 96
    assert found["before"]["nonzero"] == found["after"]["nonzero"]
    assert found["layers"][0].keys() >= LAYER
    assert found["packing"]["tensors"][0]["encoding"] == "mask"
    proof = found["verification"]
    assert (proof["kind"], proof["max_abs_error"], proof["samples"]) == ("exact", 0.0, 4)
    back = prune("unpack", out, "--format", "json")
    assert (back.code, back.json["command"]) == (0, "unpack")
    assert back.json["output"]["path"] == str(path.with_name("m.dense.onnx"))
    assert back.json["after"]["file_bytes"] > 1.5 * found["after"]["file_bytes"]


def test_coo_goes_with_any_form_of_report(prune: Prune, tmp_path: Path) -> None:
    path = save_proto(matmul(sparse("95%", shape=(64, 96))), tmp_path)
    done = prune("pack", path, "--format", "coo", "--format", "json")
    assert (done.code, done.json["packing"]["format"]) == (0, "coo")
    assert len(onnx.load(tmp_path / "m.packed.onnx").graph.sparse_initializer) == 1
    assert "Size" in prune("pack", path, "--format", "coo", "--force").out


def test_an_error_beyond_the_limit_exits_with_1(prune: Prune, path: Path) -> None:
    done = prune("pack", path, "--values", "int8", "--max-error", "1e-9")
    assert done.code == 1
    far = re.match(r"error: outputs differ by ([0-9.]+) of the largest element, --max-error allows 1e-09\n", done.err)
    assert far is not None
    assert len(far[1]) < 9
    assert not path.with_name("m.packed.onnx").exists()


REFUSED = [
    ("nothing is smaller", ["--min-saving", "60%"], "would become 60% smaller"),
    ("both lossy and exact", ["--max-error", "1%"], "--max-error is of"),
    ("an unknown type", ["--values", "int4"], "int4"),
]


@pytest.mark.parametrize(("name", "options", "words"), REFUSED, ids=[r[0] for r in REFUSED])
def test_refusals_exit_with_2(prune: Prune, path: Path, name: str, options: list[str], words: str) -> None:
    done = prune("pack", path, *options)
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 2
    assert "hint: " in done.err


COMMANDS = [
    ["inspect"], ["magnitude", "--sparsity", "0.9"], ["evaluate"], ["unpack"], ["pack"], ["structured", "--ratio", "0.5"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=[c[0] for c in COMMANDS])
def test_tampered_files_end_every_command(prune: Prune, path: Path, command: list[str]) -> None:
    assert prune("pack", path, "--no-verify").code == 0
    model = onnx.load(path.with_name("m.packed.onnx"))
    bits = next(t for t in model.graph.initializer if t.name.endswith("bits"))
    bits.CopyFrom(numpy_helper.from_array(np.full(tuple(bits.dims), 255, np.uint8), bits.name))
    bad = save_proto(model, path.parent, "bad.onnx")
    done = prune(command[0], bad, *command[1:])
    assert done.code == 2
    assert "the packed tensor 'w32' makes no sense" in done.err
    assert done.err.count("\n") == 2


@pytest.mark.usefixtures("fresh_loads")
def test_pack_with_magnitude(prune: Prune, tmp_path: Path) -> None:
    out = tmp_path / "o.onnx"
    done = prune("magnitude", SAMPLES / "digits-cnn.onnx", "--sparsity", "80%", "--pack", "-o", out, "--format", "json")
    assert done.code == 0
    assert done.json["output"] == {"path": str(out), "sha256": sha256(out)}
    assert done.json["after"]["file_bytes"] < 0.3 * done.json["before"]["file_bytes"]
    assert done.json["packing"]["load"]["after"]["seconds"] > 0


PACKING = [
    ("gradient", ["--data", SAMPLES / "digits-calib.npz", "--sparsity", "80%"]),
    ("oneshot", ["--data", SAMPLES / "digits-calib.npz", "--sparsity", "80%"]),
    ("adaptive", ["--data", SAMPLES / "digits-test.npz", "--max-drop", "5%", "-j", 1]),
]


@pytest.mark.parametrize(("command", "given"), PACKING, ids=[c[0] for c in PACKING])
def test_commands_that_write_zeros_pack_them(
    command: str, given: list[str | int | Path], prune: Prune, tmp_path: Path
) -> None:
    out = tmp_path / "o.onnx"
    done = prune(command, SAMPLES / "digits-mlp.onnx", *given, "--pack", "-o", out, "--format", "json")
    assert done.code == 0, done.err
    assert done.json["output"] == {"path": str(out), "sha256": sha256(out)}
    assert done.json["after"]["file_bytes"] == out.stat().st_size < 0.7 * done.json["before"]["file_bytes"]
    assert load(out).packed


def test_pack_with_finetune(prune: Prune, tmp_path: Path) -> None:
    zeros, out = tmp_path / "z.onnx", tmp_path / "o.onnx"
    prune("magnitude", SAMPLES / "digits-mlp.onnx", "--sparsity", "80%", "-o", zeros)
    given = ["--data", SAMPLES / "digits-train.npz", "--epochs", "1", "--limit", "200", "--val-split", "0"]
    done = prune("finetune", zeros, *given, "--pack", "-o", out, "--format", "json")
    assert done.code == 0, done.err
    assert done.json["output"] == {"path": str(out), "sha256": sha256(out)}
    assert out.stat().st_size < 0.3 * zeros.stat().st_size
    assert done.json["packing"]["tensors"]
    dense = prune("finetune", out, *given, "--pack", "-o", tmp_path / "again.onnx", "--format", "json")
    assert dense.code == 0, dense.err  # a packed file is trained like any other
    dense = prune("finetune", SAMPLES / "digits-mlp.onnx", *given, "--pack", "-o", out, "--force")
    assert dense.code == 0, dense.err
    assert "it is stored as it is" in dense.out
    assert not load(out).packed
