"""onnxruntime's latency after `prune structured --macs 0.5`, beside the share of the work that remains; and the work
that remains after `--latency 0.5`.

Original and cut model run in turn in one process; medians of the ratios of pairs, with the interval.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import SHARED, parser, show
from generate import resnet50

from prunecli import structured
from prunecli.errors import PruneError
from prunecli.evaluation.latency import TimingOptions, measure_pair
from prunecli.model import Dims
from prunecli.runtime import Execution, Session

SHAPES = {"resnet56-cifar10": (1, 3, 32, 32), "ch_PP-OCRv4_det_infer": (1, 3, 320, 320), "resnet50": (1, 3, 224, 224)}


WAYS: dict[str, dict[str, object]] = {
    "--macs 0.5": {"macs": 0.5},
    "--macs 0.5 --round-to 8": {"macs": 0.5, "round_to": 8},
    "--macs 0.5 --round-to 16": {"macs": 0.5, "round_to": 16},
    "--latency 0.5": {"latency": 0.5},
}


def compare(path: Path, way: str, out: Path, runs: int) -> Iterator[list[object]]:
    """Cut, then time with one and with two threads (a latency is asked for on as many as are timed)."""
    shape, name = SHAPES[path.stem], Session.open(path).inputs[0].name
    feed = {name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    for threads in (1, 2):
        execution = Execution(threads=threads)
        try:
            found = structured(path, dims=Dims(shapes={name: shape}), output=out, force=True, execution=execution,
                               **WAYS[way])  # fmt: skip
        except PruneError as error:
            yield [threads, "", "", "", error.message]
            continue
        assert found.after.macs is not None and found.before.macs is not None
        share = found.after.macs / found.before.macs
        cut, whole = (Session.open(p, threads=threads) for p in (out, path))
        how = TimingOptions(threads, cut.provider, pairs=runs)
        gain = measure_pair(cut.prepared(feed), whole.prepared(feed), how).gain
        yield [threads, share, 1 / share, gain.speedup, f"{gain.low:.2f} to {gain.high:.2f}"]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--runs", type=int, default=40)
    args = options.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real = SHARED / "models" / "real"
        models = [real / "resnet56-cifar10.onnx", real / "ch_PP-OCRv4_det_infer.onnx"]
        for path in (*models, resnet50(folder / "resnet50.onnx")):
            for way in WAYS:
                for row in compare(path, way, folder / "cut.onnx", args.runs):
                    rows.append([path.stem, way, *row])
                    print(rows[-1], flush=True)
    head = ("model", "options", "threads", "MACs remain", "ideal", "faster", "95 % interval")
    show("Latency and work", head, rows)


if __name__ == "__main__":
    main()
