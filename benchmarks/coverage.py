"""How much of every shared model is cut at --ratio 0.5, with what proof, in what time; beside onnxsim.

Cuttable: weights (matrices and kernels) of which any axis belongs to a unit. The target is that at most 0.55 of
their parameters remain. Analysis is timed alone, in this process, the best of three: from the loaded graph to the
list of units.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import onnx
from common import SHARED, parser, peer, show
from generate import bert_base, resnet50
from onnx import numpy_helper

from prunecli import structured
from prunecli.dependency.analysis import analyse, analysed_shapes
from prunecli.dependency.catalogue import DEFAULT_KINDS, catalogue
from prunecli.dependency.prepare import prepare
from prunecli.errors import PruneError
from prunecli.model import Dims, concrete_shapes, load
from prunecli.structures.prunable import AnalysedAs, open_cuttable


def floats(path: Path) -> int:
    """Elements of all floating-point constants, counted by onnx."""
    model = onnx.load(path)
    tensors = list(model.graph.initializer)
    tensors += [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
    return sum(numpy_helper.to_array(t).size for t in tensors if t.data_type in (1, 10, 11, 16))


def ours(path: Path, folder: Path) -> list[object]:
    best = min(_analysis(path) for _ in range(3))
    start = time.perf_counter()
    try:
        found = structured(path, ratio=0.5, output=folder / "ours.onnx", force=True)
    except PruneError as error:
        return [f"refused: {error.message[:50]}", "", "", best, time.perf_counter() - start]
    seconds = time.perf_counter() - start
    units = open_cuttable(path, AnalysedAs("channel,head"), Dims()).units
    cut = {name for group in units.groups for name, _ in group.weights}
    rows = [row for row in found.layers if row.weight in cut and len(row.shape_before) > 1]
    left = sum(row.params_after for row in rows) / max(sum(row.params_before for row in rows), 1)
    error = found.verification.max_rel_error
    proof = f"{found.verification.kind} {error:.1e}" if error is not None else found.verification.kind
    return [1 - floats(folder / "ours.onnx") / floats(path), left, proof, best, seconds]


def _analysis(path: Path) -> float:
    file = load(path)
    start = time.perf_counter()
    work = prepare(file.ir)
    prepared = replace(file, ir=work)
    shapes = analysed_shapes(prepared, Dims(), concrete_shapes(prepared, Dims()))
    catalogue(analyse(work, shapes), DEFAULT_KINDS)
    return time.perf_counter() - start


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--large", action="store_true", help="also ResNet-50 and BERT-base, generated")
    args = options.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = (resnet50(folder / "resnet50.onnx"), bert_base(folder / "bert-base.onnx")) if args.large else ()
        for path in (*sorted(SHARED.glob("models/*/*.onnx")), *large):
            done = peer(args.peer_python, "onnxsim_prune.py", path, 0.5, folder / "peer.onnx", timeout=300)
            removed = done if isinstance(done, str) else 1 - floats(folder / "peer.onnx") / floats(path)
            seconds = "" if isinstance(done, str) else done["seconds"]
            rows.append([path.stem, *ours(path, folder), removed, seconds])
            print(rows[-1], flush=True)
    head = ("model", "removed", "of cuttable remains", "proof", "analysis s", "command s", "onnxsim removed", "its s")
    show("Parameters removed at --ratio 0.5", head, rows)


if __name__ == "__main__":
    main()
