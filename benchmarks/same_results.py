"""Whether a change to the code changed what the program does: a table of commands, compared bit for bit.

    python benchmarks/same_results.py CHECKOUT --save before.json         # at the old commit
    python benchmarks/same_results.py CHECKOUT --against before.json      # at the new one

CHECKOUT is a folder that holds this project. Models, plans and JSON are compared, JSON without times and paths; of what
goes to stderr, errors and hints. Exit code 1 if anything differs. Rows whose model is not there are left out, and said.
"""
# ruff: noqa: E501

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
S, R, A, C, D = "sample_models", "shared/models/real", "shared/models/arch", "shared/cases", "shared/data"
CIFAR = f"--data {D}/cifar10-train.npz --limit 96"
OCR = f"--data {D}/ocr-cls-calib.npz --limit 64"
TRAIN = f"--data {S}/digits-train.npz --limit 256"
# what differs between two runs of one program, by key: times, and where things lie
UNSTABLE = {
    "seconds",
    "cpu_seconds",
    "peak_bytes",
    "samples_per_second",
    "latency",
    "latency_ms",
    "latency.speedup",
    "path",
    "version",
    "output",
    "sha256",
    "cpu",
    "threads",
}
TIMED = re.compile(r"[0-9.]+ (s|ms|min)\b|/tmp/\S+")

# command lines; `o` is written to a fresh folder, `{o}` names it; several steps are separated by ` && `
ROWS = """
inspect S/digits-cnn.onnx
inspect R/resnet20-cifar10-bn.onnx
inspect R/ch_PP-OCRv4_rec_infer.onnx
inspect R/minilm-l6.onnx
magnitude S/digits-cnn.onnx --sparsity 0.7
magnitude S/digits-cnn.onnx --threshold 0.05 --save-plan {o}/plan.json && magnitude S/digits-cnn.onnx --plan {o}/plan.json -o {o}/again.onnx
magnitude S/digits-mlp.onnx --pattern 2:4 --pack
magnitude S/digits-mlp.onnx --pattern 4x1 --sparsity 0.5 --scope global
magnitude R/ch_ppocr_mobile_v2.0_cls_infer.onnx --sparsity 0.6 --scope lamp
magnitude R/resnet20-cifar10.onnx --sparsity 0.8 --scope erk --also bias
magnitude R/minilm-l6.onnx --sparsity 0.5 --scope row
magnitude S/digits-mlp.onnx --sparsity 0.8 --data S/digits-train.npz --limit 256 --finetune-epochs 1 --steps 2
gradient S/digits-cnn.onnx TRAIN --sparsity 0.7
gradient S/digits-cnn.onnx TRAIN --sparsity 0.7 --criterion fisher --loss labels
gradient R/resnet20-cifar10-bn.onnx CIFAR --sparsity 0.7 --scope global
gradient S/digits-mlp.onnx --sparsity 0.5 --criterion synflow
oneshot S/digits-cnn.onnx TRAIN --sparsity 0.8 --save-plan {o}/plan.json
oneshot S/digits-mlp.onnx TRAIN --sparsity 0.8 --method sparsegpt --allocate uniform
oneshot S/digits-mlp.onnx TRAIN --pattern 2:4 --method wanda --recover none
oneshot R/resnet20-cifar10.onnx CIFAR --sparsity 0.7 --allocate uniform
oneshot R/ch_ppocr_mobile_v2.0_cls_infer.onnx OCR --sparsity 0.7 --method sparsegpt
oneshot R/resnet20-cifar10-bn.onnx --data synthetic --sparsity 0.6 --method wanda --limit 32
structured S/digits-cnn.onnx --macs 0.5 --save-plan {o}/plan.json --round-to 1
structured S/digits-cnn.onnx --macs 0.5 TRAIN --round-to 1
structured S/digits-mlp.onnx --ratio 0.5 --criterion l2 --recover none TRAIN --round-to 1
structured S/digits-cnn.onnx --params 0.5 --criterion taylor --recover bias TRAIN --round-to 4
structured R/resnet20-cifar10.onnx --macs 0.6 CIFAR --criterion activation --round-to 1
structured R/resnet20-cifar10-bn.onnx --macs 0.6 CIFAR --recover bn --round-to 1
structured R/resnet20-cifar10.onnx --ratio 0.3 --granularity block CIFAR
structured R/ch_ppocr_mobile_v2.0_cls_infer.onnx --macs 0.6 OCR --round-to 1
structured R/ch_PP-OCRv4_det_infer.onnx --macs 0.6 --input-shape x:1,3,64,64 --round-to 1
structured S/digits-cnn.onnx --macs 0.6 TRAIN --finetune-epochs 1 --steps 2 --round-to 1
finetune S/digits-cnn.onnx TRAIN --teacher S/digits-cnn.onnx --epochs 1
finetune S/digits-mlp.onnx TRAIN --epochs 1 --optimizer adam --augment none --regularize l1 --mixup 0.2
finetune R/resnet20-cifar10-bn.onnx CIFAR --epochs 1 --teacher R/resnet20-cifar10-bn.onnx
adaptive S/digits-mlp.onnx --data S/digits-test.npz --max-drop 5% --rounds 1 --jobs 1
adaptive S/digits-mlp.onnx --data S/digits-test.npz --max-drop 5% --strategy feedback --jobs 1 --recover auto --pack
adaptive S/digits-cnn.onnx --data S/digits-test.npz --max-drop 5% --granularity channel --rounds 1 --jobs 1 --round-to 1
sensitivity S/digits-mlp.onnx --data S/digits-test.npz --jobs 1
sensitivity S/digits-cnn.onnx --data S/digits-test.npz --jobs 1 --granularity channel --round-to 1
sensitivity S/digits-mlp.onnx --data S/digits-test.npz --fast
magnitude S/digits-cnn.onnx --sparsity 0.5 -o {o}/z.onnx && evaluate {o}/z.onnx --baseline S/digits-cnn.onnx --data S/digits-test.npz --no-latency --per-class --robustness --fail-if accuracy.drop>50%
magnitude S/digits-cnn.onnx --sparsity 0.9 -o {o}/z.onnx && evaluate {o}/z.onnx --baseline S/digits-cnn.onnx --data S/digits-test.npz --no-latency --fail-if accuracy.drop>1%
evaluate S/diabetes-mlp.onnx --data S/diabetes-test.npz --no-latency
evaluate S/cancer-mlp.onnx --data S/cancer-test.csv --label-column target --no-latency
evaluate R/efficientnet-lite0.onnx --data D/imagenet-test --classes D/imagenet-classes.txt --mean 127 --std 128 --scale 1 --limit 16 --no-latency
compare S/digits-cnn.onnx S/digits-cnn.onnx
compare R/resnet20-cifar10.onnx R/resnet20-cifar10-bn.onnx --data D/cifar10-test.npz --limit 64
magnitude S/digits-cnn.onnx --sparsity 0.9 -o {o}/z.onnx && pack {o}/z.onnx -o {o}/p.onnx && unpack {o}/p.onnx -o {o}/u.onnx
pack R/ch_ppocr_mobile_v2.0_cls_infer.onnx --max-error 0.1 --values int8
structured S/digits-cnn.onnx --macs 0.5 --print-recipe
magnitude S/digits-cnn.onnx --sparsity 0.5 --finetune-epochs 2 TRAIN --print-recipe
magnitude S/none.onnx --sparsity 0.5
magnitude S/digits-cnn.onnx --sparsity 70
magnitude S/digits-cnn.onnx
structured S/digits-cnn.onnx --macs 0.5 --criterion nonsense --round-to 1
structured S/digits-cnn.onnx --macs 0.5 --plan x.json --round-to 1
oneshot S/digits-cnn.onnx --sparsity 0.5
""".strip().splitlines()  # fmt: skip


def rows(shared: Path) -> Iterator[str]:
    """The table, and inspect and two kinds of pruning of every small model."""
    yield from ROWS
    for name in sorted(path.name for path in (shared / "models/arch").glob("*.onnx")):
        yield f"structured A/{name} --ratio 0.3 --round-to 1"
        yield f"magnitude A/{name} --sparsity 0.5"
    for name in sorted(path.name for path in (shared / "cases").glob("*.onnx")):
        yield f"structured C/{name} --ratio 0.5 --round-to 1"


def expanded(row: str) -> str:
    text = row.replace("TRAIN", TRAIN).replace("CIFAR", CIFAR).replace("OCR ", OCR + " ")
    text = re.sub(r"OCR$", OCR, text)
    return re.sub(r"(?<=[ ])([SRACD])/", lambda found: {"S": S, "R": R, "A": A, "C": C, "D": D}[found[1]] + "/", f" {text}").strip()  # fmt: skip


def missing(row: str, shared: Path) -> list[str]:
    """Files of ../shared that a row names and that are not there."""
    paths = [word.removeprefix("shared/") for word in expanded(row).split() if word.startswith("shared/")]
    return [path for path in paths if not (shared / path).exists()]


def stable(value: Any) -> Any:
    """JSON without what differs from run to run, and without a `delta` that holds nothing else."""
    if isinstance(value, dict):
        kept = {key: (item, stable(item)) for key, item in value.items() if key not in UNSTABLE}
        return {key: plain for key, (item, plain) in kept.items() if key != "delta" or plain or not item}
    if isinstance(value, list):
        return [stable(item) for item in value]
    return TIMED.sub("-", value) if isinstance(value, str) else value


def run(row: str, checkout: Path, place: Path) -> dict[str, str]:
    """The row's last command's words, and every file that the row wrote. `place`: a folder with `sample_models` and
    `shared` in it."""
    out = place / "o"
    out.mkdir()
    env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    parts: dict[str, str] = {}
    for number, command in enumerate(expanded(row).split(" && ")):
        words = command.replace("{o}", str(out)).split()
        writes = words[0] not in ("inspect", "evaluate", "compare", "sensitivity") and "-o" not in words
        words += ["-o", str(out / f"{number}.onnx")] if writes else []
        words += [] if "--print-recipe" in words else ["--format", "json"]
        words += ["--threads", "1"] if words[0] not in ("inspect", "pack", "unpack") else []
        done = subprocess.run(
            [sys.executable, "-m", "prunecli", *words], cwd=place, env=env, capture_output=True, text=True, timeout=900
        )
        parts[f"exit {number}"] = str(done.returncode)
        parts[f"errors {number}"] = TIMED.sub("-", "\n".join(re.findall("^(?:error|hint).*", done.stderr, re.M)))
        parts[f"stdout {number}"] = printed(done.stdout)
    for path in sorted(out.rglob("*")):
        if path.is_file():
            is_json = path.suffix == ".json"
            parts[path.name] = printed(path.read_text()) if is_json else hashlib.sha256(path.read_bytes()).hexdigest()
    return parts


def printed(text: str) -> str:
    try:
        return json.dumps(stable(json.loads(text)), indent=1)
    except ValueError:
        return TIMED.sub("-", text)


def results(row: str, checkout: Path, shared: Path) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "sample_models").symlink_to(ROOT / "sample_models")
        (place / "shared").symlink_to(shared)
        try:
            return run(row, checkout, place)
        except subprocess.TimeoutExpired:
            return {"exit": "timed out"}


def kept(before: dict[str, dict[str, str]], row: str) -> dict[str, str] | None:
    """The results of a row before; `--round-to 1` says what was the default once."""
    return before.get(row, before.get(row.replace(" --round-to 1", "")))


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """A line for each part that differs."""
    old, new = ({key: printed(text) for key, text in parts.items()} for parts in (before, after))
    return [
        f"{key}: {first_difference(old.get(key, '(none)'), new.get(key, '(none)'))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def first_difference(before: str, after: str) -> str:
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    first = next(((a.strip(), b.strip()) for a, b in pairs if a != b), (f"{len(before)} chars", f"{len(after)} chars"))
    return f"{first[0]!r} was, {first[1]!r} is"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--save", type=Path, help="keep the results here")
    parser.add_argument("--against", type=Path, help="compare with results kept before")
    parser.add_argument("--only", default="*", help="rows that match, as typed in the table")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    asked = parser.parse_args()
    checkout, shared = asked.checkout.resolve(), asked.shared.resolve()
    before = json.loads(asked.against.read_text()) if asked.against else None
    table = [
        row
        for row in rows(shared)
        if fnmatch(row, f"*{asked.only}*") and (before is None or kept(before, row) is not None)
    ]
    there = [row for row in table if not missing(row, shared)]
    print(f"{len(there)} rows; {len(table) - len(there)} left out, whose files are not here", flush=True)
    found: dict[str, dict[str, str]] = {}
    differing = 0
    with ThreadPoolExecutor(asked.jobs) as pool:
        for row, parts in zip(there, pool.map(lambda row: results(row, checkout, shared), there), strict=True):
            found[row] = parts
            lines = [] if before is None else differences(kept(before, row) or {}, parts)
            differing += bool(lines)
            told = "" if before is None else "DIFFERS " if lines else "same    "
            print(told + row, *lines, sep="\n    ", flush=True)
    if asked.save:
        asked.save.write_text(json.dumps(found, indent=1))
    print(f"{differing} of {len(there)} rows differ" if before is not None else f"{len(there)} rows were run")
    return differing > 0


if __name__ == "__main__":
    sys.exit(main())
