"""What can be proved of a quantised file: it opens, and it holds the decided weights. Its error is measured.

That integers compute what floats did cannot be proved; the difference is measured on held-out samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.model import load
from prunecli.quantization.candidates import CandidateEvaluator
from prunecli.quantization.stored import Form, IntegerGraph, content
from prunecli.report.render_cells import how_many
from prunecli.types import Verification, no_progress
from prunecli.verify.compare import Place, check_tensors

REPORT = "nothing was written; please report this"


def check_stored(
    staged: Path, made: Mapping[Place, ir.TensorProtocol], decided: Mapping[str, Array], form: Form,
    evaluator: CandidateEvaluator, held: bool,
) -> Verification:  # fmt: skip
    """Read the file again and run it. `made`: tensors of the model that was evaluated; `held`: nothing was fitted
    to the samples of the evaluator.

    Raises:
        PruneError: a tensor or a weight is not stored as it was decided, or onnxruntime does not run the file.
    """
    model = load(staged).ir
    check_tensors(made, model, {}, hint=REPORT, progress=no_progress)
    plain = model.graph.initializers
    found = IntegerGraph.of(model, form, {name: name for name in decided}).floats()
    for name, wanted in decided.items():
        got = content(plain[name]) if name not in found and name in plain else found.get(name)
        if got is None or not np.array_equal(got, wanted):
            raise PruneError(f"internal: the weight {name} is not stored as it was decided", REPORT)
    error, fidelity = evaluator.measured(staged)
    worst = fidelity.worst() if fidelity is not None else {}
    count = 0 if fidelity is None else fidelity.samples
    samples = "samples that nothing was fitted to" if held else "the samples that were fitted to"
    tensors = how_many(len(decided), "stored tensor")
    detail = f"of {tensors} the decided values are read back, bit for bit; on {samples} {evaluator.words(error)}"
    return Verification("approximate", worst.get("max_abs"), worst.get("max_rel"), samples=count, detail=detail)
