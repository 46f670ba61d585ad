"""Run by the peers' Python: onnxsim's structured pruning of one ONNX file.

    python onnxsim_prune.py MODEL.onnx SPARSITY OUTPUT.onnx [--wanda DATA.npz] [--global]

`apply_structured_pruning` (or its Wanda variant, given data), then `apply_attention_head_pruning`.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import onnx
import onnxsim

SAMPLES = 128


def cut(model: onnx.ModelProto, args: argparse.Namespace) -> onnx.ModelProto:
    if args.wanda:
        with np.load(args.wanda) as data:
            name = model.graph.input[0].name
            batches = [{name: data[name][i : i + 1].astype(np.float32)} for i in range(SAMPLES)]
        return onnxsim.apply_structured_wanda_pruning(
            model, calibration_data=batches, sparsity=args.sparsity, global_sparsity=args.everywhere
        )
    return onnxsim.apply_structured_pruning(model, sparsity=args.sparsity, global_sparsity=args.everywhere)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("sparsity", type=float)
    parser.add_argument("output")
    parser.add_argument("--wanda")
    parser.add_argument("--global", dest="everywhere", action="store_true")
    args = parser.parse_args()
    model = onnx.load(args.model)
    start = time.perf_counter()
    result = onnxsim.apply_attention_head_pruning(cut(model, args), sparsity=args.sparsity)
    seconds = time.perf_counter() - start
    onnx.save(result, args.output)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
