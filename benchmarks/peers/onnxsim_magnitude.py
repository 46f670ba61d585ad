"""Run by the peers' Python: onnxsim's global magnitude pruning of a model, saved with external data.

python onnxsim_magnitude.py MODEL.onnx OUTPUT.onnx
"""

from __future__ import annotations

import sys

import onnx
import onnxsim

if __name__ == "__main__":
    result = onnxsim.apply_magnitude_pruning(onnx.load(sys.argv[1]), sparsity=0.5, global_sparsity=True)
    onnx.save(result, sys.argv[2], save_as_external_data=True, location="peer.data")
