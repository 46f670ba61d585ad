"""The samples of adaptive pruning: those to choose by, and those that only confirm."""

from __future__ import annotations

import numpy as np

from prunecli.data import Dataset
from prunecli.data.dataset import shared
from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import MEASURES, are_boxes, is_single
from prunecli.quantity import Quantity, did_you_mean_percent
from prunecli.runtime import Session
from prunecli.search.options import AdaptiveOptions
from prunecli.search.setup import JudgedSamples


def split(options: AdaptiveOptions, session: Session) -> tuple[Dataset, Dataset]:
    """The samples to choose by, and those that only confirm."""
    data = options.tried.open(session.inputs, session.outputs)
    if options.confirming is not None:
        held = options.confirming.open(session.inputs, session.outputs)
        if held.has_labels != data.has_labels:
            raise PruneError("--data and --confirm-data must both have labels, or neither", "give labels for both")
        return data, held
    confirming, choosing = data.split(options.confirm_split, options.seed)
    if not len(confirming) or not len(choosing):
        raise PruneError(f"{data.source} cannot be split: its samples have too many shapes", "give --confirm-data")
    return choosing, confirming


def check_apart(tune: Dataset, held: Dataset, session: Session, options: AdaptiveOptions) -> list[str]:
    """Notes of held-out samples that are elsewhere too.

    Raises:
        PruneError: most of them are: nothing would be confirmed.
    """
    others = {"--data": tune} if options.confirm_data is not None else {}
    if options.trains and options.training_data is not None:
        others["--train-data"] = options.training_data.open(session.inputs, session.outputs)
    notes = []
    for name, other in others.items():
        again = shared(held, other)
        if 2 * again > len(held):
            raise PruneError(f"{again:,} of the {len(held):,} samples that are to confirm are in {name} too",
                             "give samples that nothing was chosen by or trained on")  # fmt: skip
        if again:
            notes.append(f"{again:,} of the {len(held):,} samples that confirm are in {name} too")
    return notes


def judge(
    tune: Dataset, held: Dataset, session: Session, options: AdaptiveOptions
) -> tuple[JudgedSamples, JudgedSamples]:
    """Both parts, read alike.

    Raises:
        PruneError: the promise would be kept by any model.
    """
    parts = [part.labels for part in (tune, held)]
    if len({None if labels is None else labels.shape[1:] for labels in parts}) > 1:
        raise PruneError("the labels of --data and --confirm-data differ in shape", "give labels alike for both")
    labels = None if parts[0] is None else np.concatenate([part for part in parts if part is not None])
    both = tuple(JudgedSamples.of(part, session, options, labels) for part in (tune, held))
    for judged in both:
        _check_promise(judged, options.limit_of_drop)
    return both[0], both[1]


def _check_promise(judged: JudgedSamples, max_drop: float) -> None:
    """Raises PruneError where a model that knows nothing would keep it."""
    yardstick, output = judged.yardstick, judged.reference[0][judged.yardstick.output]
    single = yardstick.metric == "cosine" and is_single(output)
    if single or (yardstick.metric in MEASURES and are_boxes(output)):
        what = "one number per sample, whose cosine is only its sign" if single else "boxes, which always agree so far"
        raise PruneError(f"the output {yardstick.output} is {what}", "give labels: the original's own outputs will do")
    if yardstick.from_zero and max_drop >= yardstick.baseline:
        raise PruneError(
            f"any model keeps --max-drop {max_drop:g}: the original's {yardstick.metric} is {yardstick.baseline:.4g}",
            did_you_mean_percent(Quantity(max_drop), "allow less, and check the labels"),
        )
