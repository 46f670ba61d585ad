"""prunecli: make ONNX models smaller and faster by pruning, with proof of what was done.

import prunecli

result = prunecli.magnitude("model.onnx", sparsity=0.5)  # writes model.pruned.onnx
result = prunecli.structured("model.onnx", macs=0.5)     # writes model.pruned.onnx, proved
result = prunecli.gradient("model.onnx", data="calib.npz", sparsity=0.8)  # as magnitude, by gradients on data
result = prunecli.oneshot("model.onnx", data="calib.npz", sparsity=0.8)   # zeros, and the rest fitted to make up
found = prunecli.analyse("model.onnx")                   # what could be cut, and why the rest cannot
graph = prunecli.unit_graph("model.onnx")                # which unit reads which: a sparse matrix, and PageRank
result = prunecli.finetune("model.pruned.onnx", data="train.npz", teacher="model.onnx", epochs=3)
found = prunecli.evaluate("model.pruned.onnx", "model.onnx", data="test.npz")   # both, side by side
result = prunecli.shrink("masked.onnx")                  # writes masked.shrunk.onnx, equal to the original
result = prunecli.run("recipe.toml")                     # all steps of a recipe, as `prune run` does
result = prunecli.quantize("model.onnx", data="calib.npz")                # int8, fitted to the float model
result = prunecli.pack("model.pruned.onnx")              # writes model.pruned.packed.onnx; prunecli.unpack undoes it

What cannot be done raises PruneError, with a message and a `hint`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prunecli._version import __version__
from prunecli.errors import PruneError

if TYPE_CHECKING:
    from prunecli.cli.library import run as run
    from prunecli.dependency.unit_graph import unit_graph as unit_graph
    from prunecli.evaluation.compare import compare as compare
    from prunecli.evaluation.evaluate import evaluate as evaluate
    from prunecli.inspection.inspect import inspect as inspect
    from prunecli.packing.pack import pack as pack
    from prunecli.packing.pack import unpack as unpack
    from prunecli.quantization.quantize import quantize as quantize
    from prunecli.search.adaptive import adaptive as adaptive
    from prunecli.search.sensitivity import sensitivity as sensitivity
    from prunecli.shrinking.shrink import shrink as shrink
    from prunecli.structures.prunable import analyse as analyse
    from prunecli.structures.structured import structured as structured
    from prunecli.training.finetune import finetune as finetune
    from prunecli.zeros.gradient import gradient as gradient
    from prunecli.zeros.magnitude import magnitude as magnitude
    from prunecli.zeros.oneshot import oneshot as oneshot

_WHERE = {
    "adaptive": "prunecli.search.adaptive",
    "analyse": "prunecli.structures.prunable",
    "compare": "prunecli.evaluation.compare",
    "evaluate": "prunecli.evaluation.evaluate",
    "finetune": "prunecli.training.finetune",
    "gradient": "prunecli.zeros.gradient",
    "inspect": "prunecli.inspection.inspect",
    "magnitude": "prunecli.zeros.magnitude",
    "pack": "prunecli.packing.pack",
    "unpack": "prunecli.packing.pack",
    "oneshot": "prunecli.zeros.oneshot",
    "quantize": "prunecli.quantization.quantize",
    "run": "prunecli.cli.library",
    "sensitivity": "prunecli.search.sensitivity",
    "shrink": "prunecli.shrinking.shrink",
    "structured": "prunecli.structures.structured",
    "unit_graph": "prunecli.dependency.unit_graph",
}

__all__ = ["PruneError", "__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    """Import a public function when it is first asked for: what it needs is heavy."""
    if name not in _WHERE:
        raise AttributeError(f"module 'prunecli' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
