"""Quality after a structured cut and its recovery, without labels; beside Torch-Pruning's, in the same run.

    python benchmarks/recover_structured.py [--models NAME ...] [--macs M ...] [--criteria NAME ...]
                                            [--recover NAME ...] [--peer-python PYTHON]

Each row is `prune structured MODEL --macs M --data D --limit 512 --criterion C --recover R --no-timing`; quality,
seconds and memory are those of `oneshot.py`. The ResNet with BatchNormalization is cut without data. The peer's
networks are cut to the same part of the MACs, alone and with their BatchNorms re-estimated on the same images.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from common import line, parser, peer, show
from oneshot import CASES, MODELS, SAMPLES, Case, given, ours, quality


@dataclass(frozen=True)
class Cut:
    """`amounts`: the parts of the MACs that are to remain. `twin`: the file from which the peer builds its network."""

    case: Case
    amounts: tuple[float, ...] = (0.5,)
    twin: str | None = None
    data: bool = True


CUTS = {
    "resnet20-cifar10": Cut(CASES["resnet20-cifar10"], twin="resnet20-cifar10-bn"),
    "resnet56-cifar10": Cut(CASES["resnet56-cifar10"], twin="resnet56-cifar10-bn"),
    "resnet20-cifar10-bn": Cut(CASES["resnet20-cifar10"], data=False),
    "ch_ppocr_mobile_v2.0_cls_infer": Cut(CASES["ch_ppocr_mobile_v2.0_cls_infer"]),
    "efficientnet-lite0": Cut(CASES["efficientnet-lite0"], amounts=(0.7, 0.5)),
    "minilm-l6": Cut(CASES["minilm-l6"], amounts=(0.5, 0.33)),
}


def peers(python: str, name: str, asked: Cut, amount: float, out: Path) -> list[list[object]]:
    rows: list[list[object]] = []
    for importance, again in product(("l2", "lamp", "taylor"), (False, True)):
        more = ["--recalibrate"] if again else []
        done = peer(python, "torch_pruning_resnet.py", MODELS / f"{asked.twin}.onnx", amount, importance, out,
                    "--calib", asked.case.calibration, "--samples", SAMPLES, *more)  # fmt: skip
        told = done if isinstance(done, str) else quality(out, MODELS / f"{name}.onnx", asked.case)
        how = "BatchNorm" if again else "none"
        rows.append([name, amount, f"Torch-Pruning, {importance}", how, told, "", "", ""])
        print(line(rows[-1]), flush=True)
    return rows


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--models", nargs="*", default=list(CUTS))
    options.add_argument("--macs", type=float, nargs="*")
    options.add_argument("--criteria", nargs="*", default=["auto"])
    options.add_argument("--recover", nargs="*", default=["none", "auto"])
    args = options.parse_args()
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "cut.onnx"
        for name in args.models:
            asked, model = CUTS[name], MODELS / f"{name}.onnx"
            rows.append([name, "", "not cut", "", quality(model, model, asked.case), "", "", ""])
            for amount in args.macs or asked.amounts:
                for criterion, recover in product(args.criteria, args.recover) if asked.data else [("auto", "")]:
                    data = [*given(asked.case), "--criterion", criterion, "--recover", recover] if asked.data else []
                    spent = ours(["structured", model, "--macs", amount, *data, "--no-timing", "-o", out, "--force"])
                    rows.append([name, amount, criterion, recover, quality(out, model, asked.case), *spent])
                    print(line(rows[-1]), flush=True)
                if args.peer_python and asked.twin:
                    rows += peers(args.peer_python, name, asked, amount=amount, out=out)
    head = ("model", "MACs", "criterion", "recovery", "quality", "s", "CPU s", "GB")
    show("Structured cuts, no labels", head, rows)


if __name__ == "__main__":
    main()
