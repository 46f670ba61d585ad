"""Damaged data, plans, state files, checkpoints and recipes: each is one clear error, or read as it stands."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import prunecli
from campaigns.driver import Campaign, command
from campaigns.models import in_bytes
from prunecli.data.options import DataOptions
from prunecli.errors import PruneError
from tests.dependency.cases import rows
from tests.dependency.net import Net

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, float("nan"), 1 << 70, "", "x", "é\0", "9" * 5000, [], {}, [[[]]], {"0": []},
)  # fmt: skip
DATA = ("--data", "d.npz", "--limit", "32")
# the file that is damaged, and the command that reads it
LINES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("d.npz", ("evaluate", "m.onnx", "--no-latency", "--data", "d.npz")),
    ("x.npy", ("evaluate", "m.onnx", "--no-latency", "--data", "x.npy", "--labels", "y.npy")),
    ("y.npy", ("evaluate", "m.onnx", "--no-latency", "--data", "x.npy", "--labels", "y.npy")),
    ("t.csv", ("evaluate", "m.onnx", "--no-latency", "--data", "t.csv", "--label-column", "label")),
    ("masks.json", ("magnitude", "m.onnx", "--plan", "masks.json")),
    ("cut.json", ("structured", "m.onnx", "--plan", "cut.json")),
    ("state", ("sensitivity", "m.onnx", *DATA, "--levels", ".5", "-j", "1", "--state", "state")),
    ("c/checkpoint.npz", ("finetune", "m.onnx", *DATA, "--epochs", "2", "--checkpoint", "c", "--resume")),
    ("r.toml", ("run", "r.toml", "--dry-run")),
    ("pyproject.toml", ("magnitude", "m.onnx", "--sparsity", ".5", "--dry-run")),
)
RECIPE = """model = "m.onnx"
[data]
d = "d.npz"
[[step]]
command = "magnitude"
sparsity = 0.5
exclude = ["w3"]
[[step]]
command = "evaluate"
data = "d"
fail-if = ["accuracy<0.1", "params>1M"]
"""
DEFAULTS = """[tool.prune]
external-data = "never"
[tool.prune.magnitude]
sparsity = "50%"
exclude = ["w3"]
"""


@cache
def originals() -> Path:
    """A folder with a small model and a whole file of every kind."""
    home = Path(tempfile.mkdtemp(prefix="campaign-"))
    net, chance = rows(Net(), lambda n, h: str(n("Relu", h))), np.random.default_rng(0)
    x, y = chance.standard_normal((64, 4)).astype(np.float32), chance.integers(0, 3, 64)
    (home / "m.onnx").write_bytes(net.model().SerializeToString())
    np.savez(home / "d.npz", x0=x, labels=y)
    np.save(home / "x.npy", x)
    np.save(home / "y.npy", y)
    lines = [",".join(map(str, [*sample, label])) for sample, label in zip(x, y, strict=True)]
    (home / "t.csv").write_text("\n".join(["a,b,c,d,label", *lines]))
    (home / "r.toml").write_text(RECIPE)
    at = str(home) + "/"
    for made in (
        ("magnitude", at + "m.onnx", "--sparsity", ".5", "--save-plan", at + "masks.json", "-o", at + "o.onnx"),
        ("structured", at + "m.onnx", "--ratio", ".5", "--save-plan", at + "cut.json", "-o", at + "p.onnx"),
        ("sensitivity", at + "m.onnx", "--data", at + "d.npz", *DATA[2:], *LINES[6][1][4:8], "--state", at + "state"),
    ):
        done = command(*made)
        assert done.code == 0, done.err
    with contextlib.suppress(PruneError):  # that training improved nothing
        prunecli.finetune(home / "m.onnx", data=DataOptions(at + "d.npz", limit=32), epochs=2, checkpoint=home / "c",
                          checkpoint_every=0.0, output=home / "q.onnx")  # fmt: skip
    for name in ("o.onnx", "p.onnx", "q.onnx"):
        (home / name).unlink(missing_ok=True)
    return home


def in_json(data: bytes, chance: Random) -> bytes:
    """Of a JSON document, or of lines of it, values replaced, lost or moved."""
    lines = data.split(b"\n") if data.count(b"\n{") else [data]
    at = chance.randrange(len(lines))
    try:
        document = json.loads(lines[at])
    except ValueError:
        return in_bytes(data, chance)
    where = _places(document)
    holder, key = chance.choice(where) if where else (None, None)
    if holder is None:
        return data
    way = chance.randrange(4)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        value = holder[key]
        near = [value + 1, -value, value * 1e9] if isinstance(value, int | float) else []
        holder[key] = chance.choice((*VALUES, *near, *near, chance.choice(where)[0]))
    try:
        lines[at] = json.dumps(document).encode()
    except ValueError:  # it holds itself
        return data
    return b"\n".join(lines)


def _places(document: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        item = waiting.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        found += [(item, key) for key in keys]
        waiting += [item[key] for key in keys]
    return found


def in_zip(data: bytes, chance: Random) -> bytes:
    """One member of an archive damaged, renamed, doubled or lost."""
    out, source = io.BytesIO(), zipfile.ZipFile(io.BytesIO(data))
    names = source.namelist()
    chosen, way = chance.choice(names), chance.randrange(5)
    with zipfile.ZipFile(out, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as target:
        for name in names:
            content = source.read(name)
            if name != chosen:
                target.writestr(name, content)
            elif way < 2:
                target.writestr(name, in_bytes(content, chance))
            elif way == 2:
                target.writestr(chance.choice(("../x.npy", "y.npy", name[:-4], chosen + chosen)), content)
            elif way == 3:
                target.writestr(name, _header(content, chance))
    return out.getvalue()


def _header(content: bytes, chance: Random) -> bytes:
    """Of an array in npy form, another type or shape with the same bytes."""
    array = np.load(io.BytesIO(content))
    text = chance.choice((
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 64), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }",
        "{'descr': '<U1000', 'fortran_order': True, 'shape': (), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '<f2', 'fortran_order': False, 'shape': " + repr(array.shape) + ", }",
    )).encode()  # fmt: skip
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + array.tobytes()


WAYS: dict[str, Callable[[bytes, Random], bytes]] = {
    ".npz": in_zip, ".json": in_json, "": in_json, ".npy": lambda data, chance: _header(data, chance),
}  # fmt: skip


def case(seed: int, number: int, folder: Path) -> str:
    chance = Random(f"{seed} {number}")
    shutil.copytree(originals(), folder, dirs_exist_ok=True)
    name, line = LINES[number % len(LINES)]
    path = folder / name
    if name == "pyproject.toml":
        path.write_text(DEFAULTS)
    way = WAYS.get(path.suffix, in_bytes) if chance.random() < 0.7 else in_bytes
    path.write_bytes(way(path.read_bytes(), chance))
    fault = command(*line).fault
    return fault and f"{name}: {fault}"


if __name__ == "__main__":
    Campaign("damaged data, plans, states, recipes", "none wrong", case, 1000).main()
