"""One training step, forward, loss, backward and all weight gradients: prunecli.autodiff in onnxruntime beside
PyTorch eager (needs the benchmark extra), and the gradient of real models beside their plain inference.

Both sides compute the same network from the same weights, in turn, in one process per network and thread count;
the time is the lower quartile of each side. Ours runs a batch as training does, its halves side by side on two threads.
The gradients of a whole batch are compared with float64 first. Memory is the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, SHARED, OutputProduct, show

import prunecli.autodiff.rules  # noqa: F401  (the memory of imports is not the memory of a step)
from prunecli.arrays import Array
from prunecli.autodiff import DifferentiationOptions, differentiate
from prunecli.autodiff.losses import CrossEntropy
from prunecli.errors import PruneError
from prunecli.model import load
from prunecli.runtime import Session, random_inputs
from prunecli.training.parameters import Parameters, trainable
from prunecli.training.supply import size_of_run
from prunecli.training.trainer import Stepper

sys.path.insert(0, str(HERE / "peers"))
SIZES = {"det": (1, 3, 320, 320), "rec": (1, 3, 48, 320), "cls": (1, 3, 48, 192)}


def our_step(
    path: Path, x: Array, target: Array, threads: int, pieces: int
) -> tuple[Callable[[], float], dict[str, Array]]:
    """A step of training on a batch in so many pieces, and where the gradients appear: cross entropy of the first
    output, by every trained tensor, with batch statistics of each piece."""
    model, size = load(path), len(x) // pieces
    options = DifferentiationOptions(batch_statistics=True)
    weights = [w for w in trainable(model) if w.size > 1]
    built = differentiate(model.ir, [w.name for w in weights], CrossEntropy(), shapes={"x": (size, *x.shape[1:])},
                          options=options)  # fmt: skip
    parameters = Parameters([w for w in weights if w.name in built.gradients])
    stepper = Stepper(built, parameters, threads, pieces)
    feeds = [{"x": x[i : i + size], "labels": target[i : i + size]} for i in range(0, len(x), size)]
    return lambda: stepper.run_many(feeds), {item.name: parameters.gradient(item) for item in parameters.items}


def pieces_of(path: Path, count: int) -> int:
    """As training takes a batch apart."""
    return count // size_of_run(count, None, load(path))


def alternate(sides: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Milliseconds of each side, run in turn: the lower quartile, which other programs on the machine disturb less."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run(), run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(sides))]) < 7:
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: 1e3 * statistics.quantiles(values, n=4)[0] for name, values in times.items()}


def race(name: str, path: Path, threads: int, seconds: float) -> dict[str, float]:
    """Times of both sides, and the largest error of each against float64, relative to the largest gradient."""
    import torch
    import torch_nets

    torch.set_num_threads(threads)
    net, theirs = torch_nets.step(name)
    x, target = torch_nets.network(name)[1].numpy(), torch_nets.labels(name).numpy()
    whole, found = our_step(path, x, target, threads, 1)
    ours, _ = our_step(path, x, target, threads, pieces_of(path, len(x)))
    whole(), ours(), theirs()
    single = {n: p.grad.numpy() for n, p in net.named_parameters() if p.grad is not None}
    exact = torch_nets.exact_gradients(name)
    largest = max(float(np.abs(g).max()) for g in exact.values())
    errors = {
        "error": max(float(np.abs(match(g, found) - exact[n]).max()) for n, g in single.items()) / largest,
        "torch error": max(float(np.abs(g - exact[n]).max()) for n, g in single.items()) / largest,
    }
    return {**alternate({"ours": ours, "torch": theirs}, seconds), **errors}


def match(gradient: Array, found: dict[str, Array]) -> Array:
    """The exporter renames and transposes the matrices of linear layers: the nearest of equal size is the one."""
    near = [g if g.shape == gradient.shape else g.T for g in found.values()
            if g.shape in (gradient.shape, gradient.T.shape)]  # fmt: skip
    near += [g.T for g in found.values() if g.ndim == 2 and g.T.shape == gradient.shape]
    return min(near, key=lambda g: float(np.abs(g - gradient).max()))


def own_memory(path: Path, shape: Sequence[int], threads: int) -> dict[str, float]:
    before = peak_kilobytes()
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal(shape).astype(np.float32), rng.integers(0, 10, shape[0])
    step, _ = our_step(path, x, target, threads, pieces_of(path, len(x)))
    for _ in range(5):
        step()
    peak = peak_kilobytes()
    return {"peak": peak / 1e3, "grown": (peak - before) / 1e3}


def apart(*arguments: object) -> dict[str, float]:
    """The last line a script of this folder printed, in a process of its own."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def against_torch(args: argparse.Namespace) -> None:
    import torch_nets

    rows: list[list[object]] = []
    ratios: dict[int, list[float]] = {t: [] for t in args.threads}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.nets or torch_nets.NETS:
            path, shape = Path(folder) / "net.onnx", torch_nets.NETS[name][1]
            torch_nets.export(name, path)
            for threads in args.threads:
                found = apart(__file__, "--race", name, path, threads, args.seconds)
                ratios[threads].append(found["ours"] / found["torch"])
                row: list[object] = [name, threads, found["ours"], found["torch"], ratios[threads][-1]]
                row += [found["error"], found["torch error"]]
                if args.memory:
                    mine = apart(__file__, "--own-memory", path, threads, *shape)
                    other = apart(HERE / "peers" / "torch_nets.py", name, "--threads", threads)
                    row += [mine["peak"], other["peak"], mine["grown"], other["grown"]]
                rows.append(row)
                print(row, flush=True)
    rows += [["geometric mean", t, "", "", math.exp(statistics.fmean(map(math.log, r)))] for t, r in ratios.items()]
    head = ["network", "threads", "ours ms", "torch ms", "ratio", "error", "torch error"]
    memory = ["peak MB", "torch peak MB", "grown MB", "torch grown MB"] if args.memory else []
    show("A training step", head + memory, rows)


def against_inference(args: argparse.Namespace) -> None:
    rows = []
    for path in real_models():
        for threads in args.threads:
            row = [path.stem, threads, *one_model(path, threads, args.seconds)]
            rows.append(row)
            print(row, flush=True)
    show("Gradient and inference", ("model", "threads", "inference ms", "gradient ms", "ratio"), rows)


def real_models() -> Iterator[Path]:
    yield from sorted((SHARED / "models" / "real").glob("ch_*.onnx"))
    yield from sorted((SHARED / "models" / "arch").glob("*.onnx"))


def one_model(path: Path, threads: int, seconds: float) -> list[object]:
    """The gradient of sum(output * v) by every weight that training changes."""
    plain = Session.open(path, threads=threads)
    size = next((s for k, s in SIZES.items() if f"_{k}_" in path.stem), None)
    shapes = {plain.inputs[0].name: size} if size else None
    feed = random_inputs(plain.inputs, {"batch": 1}, 0, limits=plain.limits, shapes=shapes)
    model = load(path)
    names = [w.name for w in trainable(model)]
    try:
        built = differentiate(model.ir, names, OutputProduct(), shapes={n: a.shape for n, a in feed.items()})
    except PruneError as error:
        return ["", "", error.message]
    session = Session.open(built.model, threads=threads, mode="training")
    weights = {n: t.numpy() for n, t in built.weights.items() if n in {s.name for s in session.inputs}}
    vector = np.ones(built.loss_inputs["vector"][1], np.float32)
    whole = {**feed, **weights, "vector": vector}
    whole = {s.name: whole[s.name] for s in session.inputs}
    outs = {s.name: np.zeros([int(d) for d in s.shape if isinstance(d, int)], np.float32) for s in session.outputs}
    times = alternate({"plain": plain.prepared(feed).run, "gradient": session.bind(whole, outs)}, seconds)
    return [times["plain"], times["gradient"], times["gradient"] / times["plain"]]


def peak_kilobytes() -> int:
    """Of this program alone: what getrusage tells begins with the memory of the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    if sys.argv[1:2] == ["--race"]:
        name, path, threads, seconds = sys.argv[2:]
        print(json.dumps(race(name, Path(path), int(threads), float(seconds))))
        return
    if sys.argv[1:2] == ["--own-memory"]:
        path, threads, *shape = sys.argv[2:]
        print(json.dumps(own_memory(Path(path), [int(d) for d in shape], int(threads))))
        return
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options.add_argument("--seconds", type=float, default=8.0, help="per network")
    options.add_argument("--nets", nargs="+")
    options.add_argument("--memory", action="store_true")
    options.add_argument("--parts", nargs="+", default=["torch", "inference"])
    args = options.parse_args()
    if "torch" in args.parts:
        try:
            against_torch(args)
        except ModuleNotFoundError as error:
            print(f"not run beside PyTorch: {error}")
    if "inference" in args.parts:
        against_inference(args)


if __name__ == "__main__":
    main()
