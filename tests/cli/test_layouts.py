"""Every command on every layout of a model's files: the result is that of the same model in one file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from prunecli.model import SaveOptions, load, save
from prunecli.model.constants import holders
from prunecli.runtime import Session
from tests.cli.conftest import Prune
from tests.model.build import floats, info, node, proto

COMMANDS = {
    "inspect": "inspect {model}",
    "magnitude": "magnitude {model} --sparsity .5 -o {out}",
    "magnitude --finetune-epochs": "magnitude {model} --sparsity .5 -o {out} --data {data} --finetune-epochs 1 --lr 1e-4",
    "magnitude --pack": "magnitude {model} --sparsity .9 -o {out} --pack",
    "gradient": "gradient {model} --sparsity .5 -o {out} --data {data}",
    "gradient --criterion fisher": "gradient {model} --sparsity .5 -o {out} --data {data} --criterion fisher",
    "gradient --data synthetic": "gradient {model} --sparsity .5 -o {out} --data synthetic --limit 8",
    "oneshot": "oneshot {model} --sparsity .5 -o {out} --data {data}",
    "oneshot --data synthetic": "oneshot {model} --sparsity .5 -o {out} --data synthetic --limit 8",
    "structured": "structured {model} --ratio .3 -o {out}",
    "structured --data": "structured {model} --ratio .3 -o {out} --data {data}",
    "structured --criterion fisher": "structured {model} --ratio .3 -o {out} --data {data} --criterion fisher",
    "structured --granularity all": "structured {model} --macs .7 -o {out} --granularity all --data {data}",
    "structured --criterion obs": "structured {model} --ratio .3 -o {out} --data {data} --criterion obs",
    "structured --finetune-epochs": "structured {model} --ratio .3 -o {out} --data {data} --finetune-epochs 1 --lr 1e-4",
    "finetune": "finetune {model} --data {data} --teacher {model} --epochs 1 --val-split 0 -o {out}",
    "adaptive": "adaptive {model} --data {data} --max-drop 40% --jobs 1 -o {out}",
    "adaptive --granularity channel": "adaptive {model} --data {data} --max-drop 40% --granularity channel -j 1 -o {out}",
    "sensitivity": "sensitivity {model} --data {data} -j 1",
    "evaluate": "evaluate {model} --data {data} --baseline {model} --no-latency",
    "compare": "compare {model} {model}",
    "pack": "pack {model} -o {out}",
    "pack --external-data": "pack {model} -o {out} --external-data always",
}


def network() -> onnx.ModelProto:
    """Two convolutions, a BatchNormalization and a fully connected layer; some weights are zero."""
    weights = {
        "c1": floats(16, 1, 3, 3), "scale": np.ones(16, np.float32), "shift": floats(16), "mean": floats(16, seed=1),
        "var": np.ones(16, np.float32), "c2": floats(16, 16, 3, 3, seed=2), "w": floats(16, 3, seed=3), "b": floats(3),
    }  # fmt: skip
    weights["c2"][:, :, 1:] = 0
    nodes = [
        node("Conv", ["x", "c1"], ["a"], "conv1"),
        node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["n"], "norm"),
        node("Relu", ["n"], ["r"]),
        node("Conv", ["r", "c2"], ["d"], "conv2"),
        node("Relu", ["d"], ["e"]),
        node("GlobalAveragePool", ["e"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w", "b"], ["y"], "fc"),
    ]
    model = proto(nodes, {"x": ("n", 1, 6, 6)}, ["y"], weights)
    model.graph.output[0].CopyFrom(info("y", ["n", 3]))
    return model


def write(
    folder: Path, location: Callable[[int], str] = lambda _: "m.data", keys: tuple[str, ...] = ("offset", "length")
) -> Path:
    """The network with every tensor outside, in the file that `location` names by its number."""
    model, ends = network(), dict[str, int]()
    for number, tensor in enumerate(model.graph.initializer):
        place, data = location(number), tensor.raw_data
        offset = ends.setdefault(place, 0)
        entries = {"location": place, "offset": str(offset), "length": str(len(data))}
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key in ("location", *keys):
            tensor.external_data.add(key=key, value=entries[key])
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        with (folder / place).open("ab") as file:
            file.write(data)
        ends[place] += len(data)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def inline(folder: Path) -> Path:
    (folder / "m.onnx").write_bytes(network().SerializeToString())
    return folder / "m.onnx"


def cached(folder: Path) -> Path:
    """As the hub cache: a snapshot's files are links into a folder of blobs named by digests."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "x"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate((write(blobs), blobs / "m.data")):
        path.rename(blobs / f"d{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/d{number}")
    return snapshot / "m.onnx"


def linked_folder(folder: Path) -> Path:
    (folder / "real").mkdir()
    (folder / "link").symlink_to("real")
    return folder / "link" / write(folder / "real").name


def hard_links(folder: Path) -> Path:
    path = write(folder)
    os.link(folder / "m.data", folder / "other.data")
    os.link(path, folder / "other.onnx")
    return path


def written(folder: Path) -> Path:
    """As this program writes external data."""
    return Path(save(load(inline(folder)), folder / "w.onnx", SaveOptions("always")).path)


def bare(folder: Path) -> Path:
    """A bare name in the working folder."""
    return Path(write(folder).name)


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "one file": write,
    "many files": lambda folder: write(folder, lambda number: f"t{number}.bin"),
    "no length": lambda folder: write(folder, keys=("offset",)),
    "location only": lambda folder: write(folder, lambda number: f"t{number}.bin", ()),
    "sub-folder": lambda folder: write(folder, lambda number: "data/m.data"),
    "cache": cached,
    "linked folder": linked_folder,
    "hard links": hard_links,
    "written": written,
    "bare name": bare,
}
EXPECTED: dict[str, Any] = {}
TWINS = {
    "gradient --criterion fisher", "gradient --data synthetic", "oneshot --data synthetic", "structured --criterion fisher",
    "structured --granularity all", "structured --criterion obs", "adaptive --granularity channel",
}  # fmt: skip
"""Commands that read the files as the same command with other options does."""
PAIRS = [
    (layout, command) if command == "magnitude" or (layout == "location only" and command not in TWINS)
    else pytest.param(layout, command, marks=pytest.mark.slow)
    for layout in LAYOUTS
    for command in COMMANDS
]  # fmt: skip
"""`make test` tries every kind of command on one layout and one command on every layout, `make test-slow` the others."""


def result(prune: Prune, command: str, model: Path, folder: Path) -> Any:
    """The tensors of the file that a command writes, or what it reports."""
    out, data = folder / "out.onnx", folder / "data.npz"
    x = floats(96, 1, 6, 6, seed=4)
    np.savez(data, x=x, labels=Session.open(network()).run({"x": x})["y"].argmax(1))
    line = COMMANDS[command].format(model=model, out=out, data=data)
    done = prune(*line.split(), "--format", "json", "--no-progress")
    assert done.code == 0, done.err
    if "{out}" not in COMMANDS[command]:
        return str([done.json.get("layers"), done.json.get("fidelity", {}).get("outputs")])  # nan is unlike itself
    return {holder.name: np.asarray(holder.tensor.numpy()) for holder in holders(load(out).ir)}


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "command"), PAIRS)
def test_every_command_on_every_layout(
    layout: str, command: str, prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if command not in EXPECTED:
        (tmp_path / "inline").mkdir()
        EXPECTED[command] = result(prune, command, inline(tmp_path / "inline"), tmp_path / "inline")
    found, wanted = result(prune, command, LAYOUTS[layout](tmp_path), tmp_path), EXPECTED[command]
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    else:
        assert found == wanted
