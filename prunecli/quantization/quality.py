"""The quality of the float and of the quantised model on labelled data."""

from __future__ import annotations

from pathlib import Path

from prunecli.data import Dataset
from prunecli.errors import PruneError
from prunecli.evaluation.passes import BASELINE, MODEL, open_models, run_pass
from prunecli.evaluation.quality import compute_metrics
from prunecli.model import Model
from prunecli.model.copies import plain_path
from prunecli.quantization.options import QuantizeOptions
from prunecli.quantization.result import Quality


def labelled_samples(file: Model, options: QuantizeOptions) -> Dataset | None:
    """The labelled data, if some were given.

    Raises:
        PruneError: they cannot be read, or have no labels.
    """
    if options.test is None:
        return None
    session = options.execution.open(plain_path(file))
    data = options.like(options.test).open(session.inputs, session.outputs)
    if not data.has_labels:
        raise PruneError(f"{data.source} has no labels", "--test measures quality; leave it out, or give labelled data")
    return data


def measured_quality(model: Path, quantised: Path, data: Dataset, options: QuantizeOptions) -> Quality:
    """Raises PruneError: no output answers the labels."""
    opened = open_models({BASELINE: model, MODEL: quantised}, options.execution)
    done = run_pass(opened.runners, data, options.batch_size)
    found = {role: compute_metrics(each) for role, each in done.predictions.items()}
    return Quality(len(data), data.source, found[BASELINE], after=found[MODEL])
