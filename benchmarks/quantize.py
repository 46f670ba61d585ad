"""Small integers: quality, size and CPU time of a run, beside others' quantisers on the same samples.

`onnxruntime` is `quantize_static` with least and largest values, per channel, after its preprocessing (int4: its
MatMulNBits quantiser); `NNCF` runs with --peer-python. `cut` is half the multiply-accumulates, `blocks` the same by
whole residual blocks, `zeros` 80 %, `integers` a cut of what `onnxruntime` has made, beside onnxsim's at about the same
work. Times are of one run on one thread, as parts of that of the float model, measured in turn; `x int8` is how much
faster than onnxruntime's integers of the uncut model.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import SHARED, parser, peer, show

from prunecli import inspect, oneshot, pack, quantize, structured
from prunecli.evaluation.evaluate import evaluate
from prunecli.evaluation.options import EvaluateOptions
from prunecli.evaluation.speed import measure_speed
from prunecli.quantization.options import QuantizeOptions
from prunecli.runtime import QuantisedGraph, Session, quantise

DATA, MODELS = SHARED / "data", SHARED / "models" / "real"
IMAGES = {"mean": "127", "std": "128", "scale": "1", "classes": str(DATA / "imagenet-classes.txt")}
CIFAR = (DATA / "cifar10-train.npz", DATA / "cifar10-test.npz", {})
CASES: dict[str, tuple[Path, Path, dict[str, str]]] = {
    "resnet20-cifar10": CIFAR,
    "resnet56-cifar10": CIFAR,
    "efficientnet-lite0": (DATA / "imagenet-calib", DATA / "imagenet-test", IMAGES),
    "minilm-l6": (DATA / "sick-calib.npz", DATA / "sick-pairs.npz", {}),
}
WAYS = ("plain", "cut", "blocks", "zeros", "integers")


def accuracy(path: Path, options: QuantizeOptions, test: Path) -> float:
    given = options.like(test)
    found = evaluate(path, options=EvaluateOptions(data=replace(given, limit=None), latency=False, threads=1))
    return float(found.to_json()["models"][0]["metrics"]["accuracy"])


def cosine(path: Path, model: Path, pairs: Path) -> float:
    """Mean cosine with the float model's embeddings of sentences that nothing was fitted to."""
    with np.load(pairs) as data:
        feed = {name: data[f"a_{name}"][:500].astype(np.int64) for name in ("input_ids", "attention_mask")}
    one, other = (Session.open(each, threads=1).run(feed)["embedding"] for each in (model, path))
    return float((one * other).sum(axis=1).mean())


def tool(model: Path, options: QuantizeOptions, folder: Path) -> Path:
    """The model by onnxruntime's quantiser alone, on the samples that ours is fitted and judged on."""
    if options.form == "nbits":
        place = folder / "tool.onnx"
        onnx.save(QuantisedGraph("nbits", "int4").of(model), place)
        return place
    assert options.source is not None
    data = options.source.open(Session.open(model).inputs)
    data = data.shuffled(0).take(512) if options.limit is None else data
    return quantise(model, (batch.feed for batch in data.batches(16)), folder, "tool")


class Table:
    """Rows of one model: each file beside the float one."""

    def __init__(self, name: str, options: QuantizeOptions, test: Path) -> None:
        self.name, self.model, self.options, self.test = name, MODELS / f"{name}.onnx", options, test
        self.rows: list[list[Any]] = []
        self.baseline: Path | None = None

    def add(self, label: str, path: Path, timed: bool) -> None:
        four = self.options.form == "nbits"
        quality = cosine(path, self.model, self.test) if four else accuracy(path, self.options, self.test)
        size = path.stat().st_size / self.model.stat().st_size
        self.rows.append([self.name, label, quality, size, *(self._times(path) if timed else ("", ""))])
        print(self.rows[-1], flush=True)

    def _times(self, path: Path) -> tuple[Any, Any]:
        pairs = [measure_speed(path, base, self.options).pair for base in (self.model, self.baseline) if base]
        gains = ["" if pair is None or pair.gain.reason else pair.gain.speedup for pair in pairs]
        return (1 / gains[0] if gains[0] else ""), (gains[1] if len(gains) > 1 else "")


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--models", nargs="+", default=list(CASES))
    made.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    made.add_argument("--limit", type=int)
    made.add_argument("--no-timing", action="store_true")
    args = made.parse_args()
    rows: list[list[Any]] = []
    for name in args.models:
        calibration, test, images = CASES[name]
        weights = "int4-block32" if name == "minilm-l6" else "int8"
        options = QuantizeOptions(
            data=str(calibration), limit=args.limit, threads=1, timing=False, weights=weights, **images
        )
        with tempfile.TemporaryDirectory() as folder:
            rows += measured(Table(name, options, test), args.ways, Path(folder), not args.no_timing, args.peer_python)
    show("Small integers", ("model", "file", "quality", "size", "time", "x int8"), rows)


def cut_by_onnxsim(table: Table, folder: Path, python: str | None) -> list[list[Any]]:
    """onnxsim's cut of the quantised model that leaves nearest to half the work, or why there is none."""
    found: list[tuple[float, Path]] = []
    assert table.baseline is not None
    whole = inspect(table.baseline).totals.macs or 1
    for sparsity in (0.2, 0.25, 0.3, 0.35, 0.4):
        out = folder / f"onnxsim{sparsity}.onnx"
        told = peer(python, "onnxsim_prune.py", table.baseline, sparsity, out)
        if isinstance(told, str):
            return [[f"onnxruntime, cut by onnxsim: {told}", "", "", "", ""]]
        found.append(((inspect(out).totals.macs or 0) / whole, out))
    share, best = min(found, key=lambda one: abs(one[0] - 0.5))
    table.add(f"onnxruntime, cut by onnxsim, {share:.2f} remains", best, False)
    return []


def samples(model: Path, options: QuantizeOptions) -> dict[str, np.ndarray]:
    """What onnxruntime's quantiser and ours see, as one array per input."""
    assert options.source is not None
    data = options.source.open(Session.open(model).inputs)
    data = data.shuffled(0).take(512) if options.limit is None else data
    feeds = [batch.feed for batch in data.batches(16)]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def measured(table: Table, ways: list[str], folder: Path, timed: bool, python: str | None = None) -> list[list[Any]]:
    model, options = table.model, table.options
    table.add("float", model, False)
    table.baseline = tool(model, options, folder)
    table.add("onnxruntime", table.baseline, timed)
    if python is not None and options.form == "qdq":
        given = samples(model, options)
        np.savez(folder / "peer.npz", **given)
        count = len(next(iter(given.values())))
        told = peer(python, "nncf_quantize.py", model, folder / "peer.npz", count, folder / "nncf.onnx")
        if isinstance(told, str):
            table.rows.append([table.name, f"NNCF {told}", "", "", "", ""])
        else:
            table.add("NNCF", folder / "nncf.onnx", timed)
    if "plain" in ways:
        quantize(model, replace(options, output=folder / "plain.onnx"))
        table.add("prune quantize", folder / "plain.onnx", timed)
    if options.form == "nbits":
        return table.rows
    common = {"data": options.data, "limit": options.limit, "threads": 1,
              **{name: getattr(options, name) for name in IMAGES}}  # fmt: skip
    kinds = {"cut": {}, "blocks": {"granularity": "block"}}
    for way in (way for way in kinds if way in ways):
        cut, both = folder / f"{way}.onnx", folder / f"{way}8.onnx"
        structured(model, macs="50%", output=cut, timing=False, **common, **kinds[way])
        table.add(way, cut, timed)
        quantize(cut, replace(options, output=both))
        table.add(f"{way}, prune quantize", both, timed)
        (folder / way).mkdir()
        table.add(f"{way}, onnxruntime", tool(cut, options, folder / way), timed)
    if "integers" in ways:
        cut = folder / "integers.onnx"
        structured(table.baseline, macs="50%", output=cut, timing=False, **common)
        table.add("onnxruntime, cut", cut, timed)
        table.rows += [[table.name, *row] for row in cut_by_onnxsim(table, folder, python)]
    if "zeros" in ways:
        zero, both, small = (folder / f"{name}.onnx" for name in ("zero", "zero8", "zero8p"))
        oneshot(model, sparsity=0.8, output=zero, **common)
        table.add("zeros", zero, False)
        quantize(zero, replace(options, output=both))
        table.add("zeros, prune quantize", both, False)
        pack(both, output=small, threads=1)
        table.add("zeros, prune quantize, pack", small, False)
    return table.rows


if __name__ == "__main__":
    main()
