"""Run by the peers' Python: onnxsim's SparseGPT or Wanda of one ONNX file.

    python onnxsim_oneshot.py sparsegpt|wanda MODEL.onnx DATA.npz SAMPLES SPARSITY|N:M OUTPUT.onnx

Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnx
import onnxsim


def main() -> None:
    method, path, data, samples, asked, output = sys.argv[1:]
    model = onnx.load(path)
    with np.load(data) as file:
        found = {name: file[name] for name in file.files}
    count = len(next(iter(found.values())))
    chosen = np.random.default_rng(0).permutation(count)[: int(samples)]
    batches = [{name: array[i : i + 1] for name, array in found.items()} for i in chosen]
    kept = [int(part) for part in asked.split(":")] if ":" in asked else None
    how = {"n": kept[0], "m": kept[1]} if kept else {"sparsity": float(asked)}
    prune = {"sparsegpt": onnxsim.apply_sparsegpt_pruning, "wanda": onnxsim.apply_wanda_pruning}[method]
    start = time.perf_counter()
    result = prune(model, calibration_data=batches, **how)
    seconds = time.perf_counter() - start
    onnx.save(result, output)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
