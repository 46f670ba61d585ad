"""Kill saves at random moments and check what is left. Run by `test_saving` in a process of its own.

    python killed.py FOLDER ROUNDS [external]

Writes FOLDER/out/m.onnx over and over, with values 1 and 2 in turn, in children that are killed with SIGKILL
after a random part of the time a save takes. After each kill the target must load, with all values of one
version.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from prunecli.model import SaveOptions, find_weights, load, save
from tests.model.build import floats, node, proto, save_proto

TENSORS, SIDE = 6, 256


def source(folder: Path) -> Path:
    nodes = [node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(TENSORS)]
    weights = {f"w{i}": floats(SIDE, SIDE) for i in range(TENSORS)}
    return save_proto(proto(nodes, {"h0": (1, SIDE)}, [f"h{TENSORS}"], weights), folder, "source.onnx")


def write(path: Path, target: Path, value: float, external: bool) -> None:
    model = load(path)
    for weight in find_weights(model).prunable:
        weight.replace(lambda a: np.full_like(a, value))
    save(model, target, SaveOptions("always" if external else "never", force=True))


def version(target: Path) -> float:
    """The one value that all weights of the saved model have."""
    values = {float(v) for w in find_weights(load(target)).prunable for v in np.unique(w.array())}
    assert len(values) == 1, f"a mixture: {values}"
    return values.pop()


def main(folder: Path, rounds: int, external: bool) -> None:
    path, target = source(folder), folder / "out" / "m.onnx"
    target.parent.mkdir()
    start = time.perf_counter()
    write(path, target, 1, external)
    usual = time.perf_counter() - start
    chance, seen = random.Random(0), Counter[str]()
    for number in range(rounds):
        before = version(target)
        child = os.fork()
        if child == 0:
            write(path, target, 3 - before, external)
            os._exit(0)
        time.sleep(usual * chance.random() * 1.2)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        after = version(target)
        left = [p.name for p in target.parent.iterdir()]
        seen["new" if after != before else "old"] += 1
        seen["leftovers"] += len(left) > (2 if external else 1)
        assert number < 0 or after in (1, 2)
    write(path, target, 1, external)
    print(dict(seen), sorted(p.name for p in target.parent.iterdir()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "external" in sys.argv)
