"""Run by the peers' Python: NNCF's post-training quantisation of one ONNX file.

    python nncf_quantize.py MODEL.onnx DATA.npz SAMPLES OUTPUT.onnx

DATA holds one array per input, the samples in the order in which they are used. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time

import nncf
import numpy as np
import onnx


def main() -> None:
    path, data, samples, output = sys.argv[1:]
    model = onnx.load(path)
    with np.load(data) as found:
        names = [value.name for value in model.graph.input if value.name in found.files]
        batches = [{name: found[name][i : i + 1] for name in names} for i in range(int(samples))]
    start = time.perf_counter()
    made = nncf.quantize(model, nncf.Dataset(batches), subset_size=int(samples), fast_bias_correction=False)
    seconds = time.perf_counter() - start
    onnx.save(made, output)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
