"""A sentence encoder at a part of its work: how fast it is, and how well its embeddings still tell related sentences.

    python benchmarks/sentence_encoder.py [--macs 0.5 0.33]

Each row is `prune structured minilm-l6.onnx --macs M --data sick-calib.npz --threads 1`: 1,000 sentences without
labels, no training. Quality is Spearman's rank correlation of the cosine of two embeddings with the relatedness
that people gave to pairs, over the 1,873 pairs whose sentences are not among the 1,000. Speed is that of the
command's own report.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
from common import SHARED, parser, show
from scipy.stats import spearmanr

import prunecli

MODEL, DATA = SHARED / "models" / "real" / "minilm-l6.onnx", SHARED / "data"


def relatedness(model: Path) -> float:
    """Return the correlation over the pairs; the model normalises its embeddings."""
    pairs = held_out()
    a, b = (embeddings(model, pairs, side) for side in "ab")
    return float(spearmanr((a * b).sum(1), pairs["relatedness"]).statistic)


def embeddings(model: Path, pairs: dict[str, np.ndarray], side: str) -> np.ndarray:
    """Return those of the first or the second sentences, `a` or `b`."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    types = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
    feed = {one.name: pairs[f"{side}_{one.name}"].astype(types[one.type]) for one in session.get_inputs()}
    parts = (
        {name: rows[at : at + 100] for name, rows in feed.items()} for at in range(0, len(pairs["relatedness"]), 100)
    )
    return np.concatenate([session.run(None, part)[0] for part in parts])


def held_out() -> dict[str, np.ndarray]:
    """Return the pairs of which neither sentence is a calibration sentence."""
    with np.load(DATA / "sick-calib.npz") as calibration, np.load(DATA / "sick-pairs.npz") as pairs:
        seen = {row.tobytes() for row in calibration["input_ids"]}
        new = [
            not seen & {a.tobytes(), b.tobytes()}
            for a, b in zip(pairs["a_input_ids"], pairs["b_input_ids"], strict=True)
        ]
        return {name: pairs[name][new] for name in pairs.files}


def main() -> None:
    asking = parser(__doc__ or "")
    asking.add_argument("--macs", type=float, nargs="+", default=[0.5, 0.33])
    before, rows = relatedness(MODEL), []
    for macs in asking.parse_args().macs:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "small.onnx"
            found = prunecli.structured(MODEL, macs=macs, data=DATA / "sick-calib.npz", threads=1, output=output)
            told = found.to_json()
            speed, remain = told["delta"]["latency"], told["after"]["macs"] / told["before"]["macs"]
            faster = f"{speed['speedup']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})"
            size = f"{told['before']['file_bytes'] / 1e6:.1f}", f"{told['after']['file_bytes'] / 1e6:.1f}"
            rows.append([macs, remain, faster, *size, before, relatedness(output)])
            show("So far" if len(rows) < 2 else "Sentence encoder", HEAD, rows)


HEAD = ["--macs", "MACs remain", "times as fast", "MB before", "after", "Spearman before", "after"]


if __name__ == "__main__":
    main()
