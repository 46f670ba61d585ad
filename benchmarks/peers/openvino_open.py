"""Whether OpenVINO opens a model and computes what onnxruntime does; prints JSON.

python openvino_open.py MODEL
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime
import openvino


def main() -> None:
    path = sys.argv[1]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng, feed = np.random.default_rng(0), {}
    for spec in session.get_inputs():
        shape = [d if isinstance(d, int) else 2 for d in spec.shape]
        feed[spec.name] = rng.standard_normal(shape).astype(np.float32) if "float" in spec.type else np.ones(shape, int)
    wanted = session.run(None, feed)[0]
    start = time.perf_counter()
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    seconds = time.perf_counter() - start
    got = model(feed)[0]
    operators = [op.get_type_name() for op in model.get_runtime_model().get_ops()]
    print(json.dumps({
        "load_seconds": seconds,
        "max_rel_error": float(np.abs(got - wanted).max() / np.abs(wanted).max()),
        "operators": len(operators),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
