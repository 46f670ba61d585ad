"""How much faster a cut is, in float32 and after static quantisation to int8, and what it costs.

    python benchmarks/speed.py [--models NAME ...] [--ways WAY ...] [--record docs/benchmarks.md] [--peer-python PYTHON]
                               [--cuts FOLDER]

Each row is one command, at its defaults but for one thread, or a peer at the same MACs: onnxsim's structured pruning,
and Torch-Pruning of the same ResNets with their BatchNormalizations re-estimated. Speeds: original and cut in turn,
medians of the ratios of pairs of the CPU time of the calling thread, so a busy machine adds nothing. int8: both
quantised by onnxruntime on 64 samples. Quality: accuracy on test data, else the mean cosine of the outputs with the
original's. With `--cuts` the cut models are kept in a folder, and those that are there are measured again, not made
again: cuts take hours, and speeds want a quiet machine.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import SHARED, macs, onnxsim_cut, parser, peer, record, show
from generate import bert_base, resnet50

from prunecli import evaluate, structured
from prunecli.errors import PruneError
from prunecli.evaluation.latency import TimingOptions, measure_pair
from prunecli.evaluation.speed import CALIBRATED
from prunecli.model import Dims, concrete_shapes, load
from prunecli.runtime import Session, quantise
from prunecli.structures.options import StructuredOptions

DATA, REAL = SHARED / "data", SHARED / "models" / "real"
WAYS: dict[str, dict[str, Any]] = {
    "--macs 0.5": {"macs": 0.5},
    "--macs 0.5 --target cpu-int8": {"macs": 0.5, "target": "cpu-int8"},
    "--macs 0.5 --granularity auto": {"macs": 0.5, "granularity": "auto"},
    "--macs 0.5 --granularity auto --target cpu-int8": {"macs": 0.5, "granularity": "auto", "target": "cpu-int8"},
    "--macs 0.5 --round-to 1": {"macs": 0.5, "round_to": 1},
    "--latency 0.5": {"latency": 0.5},
}


HALF = 0.5
PAIRS, RANDOM = 40, 4


@dataclass(frozen=True)
class Case:
    """A model, the options that say how it is fed, and the data that judge, where the calibration data do not."""

    path: Callable[[Path], Path]
    fed: Mapping[str, Any] = field(default_factory=dict)
    test: Path | None = None

    @property
    def told(self) -> str:
        names = (f"--{name.replace('_', '-')} {Path(str(value)).name}" for name, value in self.fed.items())
        return " ".join(names)


def _real(name: str) -> Callable[[Path], Path]:
    return lambda _: REAL / f"{name}.onnx"


_PIXELS = {"classes": DATA / "imagenet-classes.txt", "mean": "127", "std": "128", "scale": "1"}
CASES = {
    "ResNet-20": Case(_real("resnet20-cifar10"), {"data": DATA / "cifar10-train.npz"}, DATA / "cifar10-test.npz"),
    "ResNet-56": Case(_real("resnet56-cifar10"), {"data": DATA / "cifar10-train.npz"}, DATA / "cifar10-test.npz"),
    "EfficientNet-Lite0": Case(
        _real("efficientnet-lite0"), {"data": DATA / "imagenet-calib", "limit": 128, **_PIXELS}, DATA / "imagenet-test"
    ),
    "MiniLM": Case(_real("minilm-l6"), {"data": DATA / "sick-calib.npz", "limit": 512}),
    "PP-OCR cls": Case(
        _real("ch_ppocr_mobile_v2.0_cls_infer"), {"data": DATA / "ocr-cls-calib.npz"}, DATA / "ocr-cls-test.npz"
    ),
    "PP-OCR det": Case(_real("ch_PP-OCRv4_det_infer"), {"input_shape": "x:1,3,320,320"}),
    "PP-OCR rec": Case(_real("ch_PP-OCRv4_rec_infer"), {"input_shape": "x:1,3,48,320"}),
    "ResNet-50-sized": Case(lambda folder: resnet50(folder / "resnet50.onnx")),
    "BERT-base-sized": Case(lambda folder: bert_base(folder / "bert.onnx"), {"dim": "length=64"}),
}


def row(case: Case, model: Path, way: str, out: Path, folder: Path, python: str | None) -> Iterator[object]:
    """What the command leaves, its speeds, and the quality before and after.

    out: the cut; it is made where it is missing.
    """
    fed = {name: str(value) if isinstance(value, Path) else value for name, value in case.fed.items()}
    options = StructuredOptions(**fed, **WAYS.get(way, {"macs": HALF}), threads=1, output=out, timing=False)
    feeds = samples(model, options)
    dims = Dims(shapes={name: np.shape(array) for name, array in feeds[0].items()})
    if not out.exists():
        refused = PEERS[way](Peer(case, model, out, dims, python)) if way in PEERS else ours(model, options)
        if refused is not None:
            yield from (refused, "", "", "", "")
            return
    yield macs(out, dims) / macs(model, dims)
    yield speed(out, model, feeds[0])
    yield speed(*(quantise(path, feeds, folder, name) for name, path in (("q", out), ("whole", model))), feeds[0])
    yield from quality(case, model, out, fed)


def ours(model: Path, options: StructuredOptions) -> str | None:
    """Make the cut; or why there is none."""
    try:
        structured(model, options)
    except PruneError as error:
        return f"refused: {error.message}"
    return None


@dataclass(frozen=True)
class Peer:
    """What another tool is to cut, at which sizes of the inputs, and the Python that has it."""

    case: Case
    model: Path
    out: Path
    dims: Dims
    python: str | None


def by_onnxsim(asked: Peer) -> str | None:
    done = onnxsim_cut(asked.python, asked.model, HALF, asked.out, asked.dims)
    return done if isinstance(done, str) else None


def by_torch_pruning(asked: Peer) -> str | None:
    normalised = asked.model.with_name(f"{asked.model.stem}-bn.onnx")
    if not normalised.exists():
        return "not run: the peer needs the network in PyTorch"
    calibrated = ["--calib", asked.case.fed["data"], "--recalibrate"]
    done = peer(asked.python, "torch_pruning_resnet.py", normalised, HALF, "l2", asked.out, *calibrated)
    return done if isinstance(done, str) else None


def samples(model: Path, options: StructuredOptions) -> list[Mapping[str, Any]]:
    """Inputs to calibrate and to time on."""
    session = Session.open(model)
    if options.source is None:
        shapes = concrete_shapes(load(model), options.stated_dims).inputs
        return [session.random_inputs(seed=seed, shapes=shapes) for seed in range(RANDOM)]
    return [batch.feed for batch in options.source.open(session.inputs).take(CALIBRATED).batches(1)]


def speed(cut: Path, whole: Path, feed: Mapping[str, Any]) -> str:
    sessions = [Session.open(path, threads=1) for path in (cut, whole)]
    how = TimingOptions(1, sessions[0].provider, pairs=PAIRS)
    gain = measure_pair(*(session.prepared(feed) for session in sessions), how).gain
    return gain.reason or f"{gain.speedup:.2f} ({gain.low:.2f} to {gain.high:.2f})"


def quality(case: Case, model: Path, cut: Path, fed: Mapping[str, Any]) -> Iterator[object]:
    if "data" not in fed:
        yield from ("", "")  # outputs on random inputs, or of random weights, say nothing
        return
    judged = {**fed, "limit": None} | ({"data": str(case.test)} if case.test is not None else {})
    told = evaluate(cut, baseline=model, latency=False, threads=1, **judged).to_json()
    before, after = (next(m["metrics"] for m in told["models"] if m["role"] == role) for role in ("baseline", "model"))
    if "accuracy" in after:
        yield from (before["accuracy"], after["accuracy"])
    else:
        yield from ("", f"cosine {np.float64(told['fidelity']['cosine']):.4f}")


PEERS = {"onnxsim 0.8.1": by_onnxsim, "Torch-Pruning 1.6.1, l2": by_torch_pruning}
HEAD = (
    "model",
    "`prune structured`, or a peer",
    "MACs remain",
    "fp32 faster",
    "int8 faster",
    "quality before",
    "after",
)


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    every = [*WAYS, *PEERS]
    options.add_argument("--ways", nargs="+", default=every, choices=every)
    options.add_argument("--record", type=Path, help="a page whose table gets each row as soon as it is measured")
    options.add_argument("--cuts", type=Path, help="a folder that keeps the cut models")
    args = options.parse_args()
    rows = []
    for name in args.models:
        with tempfile.TemporaryDirectory() as place:
            model = CASES[name].path(Path(place))
            cuts = args.cuts or Path(place)
            cuts.mkdir(parents=True, exist_ok=True)
            for way in args.ways:
                out = cuts / f"{re.sub('[^a-z0-9.]+', '-', f'{name} {way}'.lower())}.onnx"
                command = way if way in PEERS else f"`{' '.join(filter(None, (way, CASES[name].told)))}`"
                rows.append([name, command, *row(CASES[name], model, way, out, Path(place), args.peer_python)])
                print(rows[-1], flush=True)
                if args.record is not None:
                    record(args.record, HEAD, rows[-1], keys=2)
    show("Speed of cuts", HEAD, rows)


if __name__ == "__main__":
    main()
