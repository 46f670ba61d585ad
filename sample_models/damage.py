"""Makes prunecli/predicted/damage.onnx: the graph neural network that predicts how much each layer can lose.

    python sample_models/damage.py [--work FOLDER] [--each N] [--epochs N] [--output PATH] [--without ARCHITECTURE]

Networks of `zoo.py` are trained on the digits for a few epochs, their layers and groups of channels are cut one by one
as `prune sensitivity` does it, and what the outputs lose is learned from what the file says. What is measured is kept
in FOLDER, so that a second run only fits. Everything follows from SEED. --without leaves an architecture out, to be
predicted by what the others teach.
"""

from __future__ import annotations

import argparse
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from damage_network import Scaling, network
from layers import Array, build
from train import Split, train
from zoo import ZOO, folded

import prunecli
from prunecli.model import Dims, load
from prunecli.predicted.features import (
    ELEMENT_LEVELS,
    UNIT_LEVELS,
    WIDTH,
    DescribedGraph,
    describe_groups,
    describe_weights,
)
from prunecli.structures.prunable import open_cuttable

SEED, HERE = 20261129, Path(__file__).parent
GRANULARITIES = {"element": ("l1", ELEMENT_LEVELS), "channel,head": ("l2-in", UNIT_LEVELS)}
NODES, COPIES, NOISE = 64, 4, 0.8
MEMBERS = 5
LEAST, MOST = 1e-6, 20.0
"""Damage below and above is not told apart."""


def digits(part: str) -> Split:
    with np.load(HERE / f"digits-{part}.npz") as found:
        return Split(found["image"].astype(np.float32), found["labels"])


def networks(work: Path, each: int, epochs: int) -> Iterator[Path]:
    """Trained networks, `each` of every architecture; of those with BatchNormalization a second file has it folded."""
    data = digits("train")
    for number in range(each):
        for kind, make in ZOO.items():
            path = work / f"{kind}-{number}.onnx"
            if not path.exists():
                seed = zlib.crc32(f"{SEED} {kind} {number}".encode())
                start = build(make(np.random.default_rng(seed)), seed, kind, "image", (1, 8, 8), "logits", 10)
                model = train(start, data, epochs)
                if (plain := folded(model)) is not None:
                    onnx.save(plain, path.with_stem(f"{path.stem}-folded"))
                onnx.save(model, path)
            yield from (one for one in (path, path.with_stem(f"{path.stem}-folded")) if one.exists())


def measured(path: Path, granularity: str) -> dict[str, Array]:
    """By layer or group, what `prune sensitivity` measures: (fraction, damage), kept beside the model."""
    criterion, levels = GRANULARITIES[granularity]
    place = path.with_name(f"{path.stem}.{granularity[:7]}.npz")
    if not place.exists():
        widths = {} if granularity == "element" else {"round_to": 1}
        try:
            found = prunecli.sensitivity(
                path, data=HERE / "digits-calib.npz", granularity=granularity, criterion=criterion, levels=levels,
                limit=256, metric="top1_agreement", jobs=1, **widths,
            )  # fmt: skip
        except prunecli.PruneError as error:
            print(f"{path.stem}, {granularity}: {error.message}")
            return {}
        np.savez(place, **{r.layer.name: np.array([(p.fraction, p.damage) for p in r.points]) for r in found.rows})
    with np.load(place) as kept:
        return {name: kept[name] for name in kept.files}


def described(path: Path, granularity: str) -> DescribedGraph:
    if granularity == "element":
        return describe_weights(load(path))
    found = open_cuttable(path, granularity, Dims())
    return describe_groups(replace(found.file, ir=found.work), found.units)


@dataclass(frozen=True)
class Example:
    """A graph and the measured logarithms of damage at its levels, NaN at nodes that were not measured."""

    kind: str
    graph: DescribedGraph
    damage: Array


def examples(paths: Iterable[Path]) -> Iterator[Example]:
    for path in paths:
        for granularity, (_, levels) in GRANULARITIES.items():
            found = measured(path, granularity)
            if not found:
                continue
            graph = described(path, granularity)
            damage = np.full((len(graph.names), len(levels)), np.nan)
            for row, name in zip(damage, graph.names, strict=True):
                if name in found:
                    fractions, values = found[name].T
                    logs = np.log(np.clip(np.nan_to_num(values, posinf=MOST), LEAST, MOST))
                    row[:] = np.interp(levels, fractions, np.maximum.accumulate(logs))
            if len(graph.names) <= NODES and not np.isnan(damage).all():
                yield Example(path.stem.split("-")[0], graph, damage)


def padded(found: list[Example]) -> dict[str, Array]:
    """All graphs in arrays of one size."""
    levels, count = len(ELEMENT_LEVELS), len(found)
    shapes = {"features": (NODES, WIDTH), "gone": (NODES, levels), "reads": (NODES, NODES), "present": (NODES, 1)}
    out = {name: np.zeros((count, *shape), np.float32) for name, shape in shapes.items()}
    out["labels"] = np.zeros((count, NODES, levels), np.float32)
    for k, example in enumerate(found):
        n = len(example.graph.names)
        known = ~np.isnan(example.damage).any(axis=1)
        for name in ("features", "gone"):
            out[name][k, :n] = getattr(example.graph, name)
        out["reads"][k, :n, :n] = example.graph.reads
        out["present"][k, :n, 0] = known
        out["labels"][k, :n] = np.where(known[:, None], example.damage, 0.0)
    return out


def shaken(data: dict[str, Array], seed: int) -> dict[str, Array]:
    """COPIES of the graphs with noise on the figures of their nodes: what is not much the same for a network that is a
    little different is not to be learned."""
    rng, real = np.random.default_rng(seed), data["present"][..., 0] > 0
    out = {name: np.concatenate([array] * COPIES) for name, array in data.items()}
    deviation = data["features"][real].std(axis=0)
    out["features"] += (NOISE * deviation * rng.standard_normal(out["features"].shape) * out["present"]).astype(
        np.float32
    )
    return out


def fit(found: list[Example], epochs: int, seed: int = 7) -> onnx.ModelProto:
    """AdamW on the mean squared error of the logarithms, by `prunecli.finetune`."""
    data = padded(found)
    real = data["present"][..., 0] > 0
    rows = np.concatenate([data["features"][real], data["gone"][real]], axis=1)
    start = network(len(ELEMENT_LEVELS), WIDTH, Scaling(rows.mean(axis=0), np.maximum(rows.std(axis=0), 0.1)), seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(start, folder / "start.onnx")
        np.savez(folder / "data.npz", **shaken(data, seed))
        prunecli.finetune(
            folder / "start.onnx", data=folder / "data.npz", output=folder / "damage.onnx", epochs=epochs, batch_size=8,
            optimizer="adamw", rate=3e-3, weight_decay=2.0, val_split=0.0, freeze=("features.*",), seed=seed,
            threads=1, timing=False, verify=False,
        )  # fmt: skip
        return onnx.load(folder / "damage.onnx")


def ensemble(models: list[onnx.ModelProto]) -> onnx.ModelProto:
    """The mean of what several networks say, as one network: it varies less with what each happened to learn."""
    out = onnx.ModelProto()
    out.CopyFrom(models[0])
    graph, shared = out.graph, {value.name for value in out.graph.input}
    answer = graph.output[0].name
    for field in (graph.node, graph.initializer, out.metadata_props):  # the last names temporary files
        del field[:]
    for number, model in enumerate(models):
        graph.node.extend(renamed(node, number, shared) for node in model.graph.node)
        for tensor in model.graph.initializer:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = f"{number}.{tensor.name}"
    graph.node.append(onnx.helper.make_node("Mean", [f"{k}.{answer}" for k in range(len(models))], [answer]))
    onnx.checker.check_model(out, full_check=True)
    return out


def renamed(node: onnx.NodeProto, number: int, shared: set[str]) -> onnx.NodeProto:
    """A node of one of several networks; `shared`: what they all read."""
    out = onnx.NodeProto()
    out.CopyFrom(node)
    out.name = f"{number}.{node.name}"
    for names in (out.input, out.output):
        names[:] = [name if name in shared else f"{number}.{name}" for name in names]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("damage"))
    parser.add_argument("--each", type=int, default=3, help="networks of every architecture")
    parser.add_argument("--epochs", type=int, default=8, help="of their training")
    parser.add_argument("--fit-epochs", type=int, default=15)
    parser.add_argument("--without", help="leave this architecture out")
    parser.add_argument("--output", type=Path, default=HERE.parent / "prunecli" / "predicted" / "damage.onnx")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    made = examples(networks(options.work, options.each, options.epochs))
    found = [one for one in made if one.kind != options.without]
    model = ensemble([fit(found, options.fit_epochs, seed) for seed in range(MEMBERS)])
    options.output.write_bytes(model.SerializeToString(deterministic=True))
    nodes = sum(len(one.graph.names) for one in found)
    print(f"{len(found)} graphs, {nodes} nodes, {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
