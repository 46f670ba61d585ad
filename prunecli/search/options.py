"""The options of `prune sensitivity` and `prune adaptive`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from prunecli.errors import PruneError
from prunecli.evaluation.options import METRIC, METRIC_HELP
from prunecli.masks.criteria import element_names, of_elements, of_structures
from prunecli.options.declare import DATA, OUTPUT, SELECT, Option
from prunecli.options.groups import (
    Batched,
    Chosen,
    Distributed,
    OutputNamed,
    Reporting,
    Resumed,
    Running,
    Samples,
    Saving,
    Seeded,
    Sized,
    StoredPacked,
    Timing,
)
from prunecli.options.training import DISTILLED, Retraining
from prunecli.quantity import Quantity, parse_fraction, parse_quantity
from prunecli.structures.options import Widths
from prunecli.structures.widths import AUTO
from prunecli.zeros.options import OtherKinds, Patterned

if TYPE_CHECKING:
    from prunecli.data.options import DataOptions
    from prunecli.evaluation.passes import ReadingOptions

ELEMENT = "element"
GOAL = "Goal"


@dataclass(frozen=True, kw_only=True)
class TrialOptions(
    OutputNamed,
    Chosen,
    OtherKinds,
    Patterned,
    Widths,
    Samples,
    Batched,
    Seeded,
    Reporting,
    Sized,
    Running,
    Distributed,
    Resumed,
):
    """What is tried, how trials are evaluated, and where they run."""

    granularity: Annotated[
        str,
        Option("element: zeros in weights; else structures that leave the graph, as `prune structured` cuts them", SELECT,
               "element|channel|head|expert|all"),
    ] = ELEMENT  # fmt: skip
    criterion: Annotated[
        str | None,
        Option(f"the score: of elements {', '.join(element_names())}, by default smoothed, or l1 without gradients; of"
               f" structures {', '.join(of_structures())}", SELECT, "NAME"),
    ] = None  # fmt: skip
    metric: Annotated[
        str | None,
        Option(METRIC_HELP, DATA, METRIC),
    ] = None
    probes: Annotated[int, Option("samples on which the damage by each layer is measured", DATA, "N", least=1)] = 256

    @property
    def elements(self) -> bool:
        return self.granularity == ELEMENT

    @property
    def recovery(self) -> Literal["none", "bias", "bn", "lstsq", "auto"]:
        """Closed-form recovery of the remaining weights."""
        return "none"

    @property
    def goal(self) -> str | None:
        """The amount to minimise; None: the pruner's first."""
        return None

    @property
    def recovers(self) -> bool:
        return self.recovery != "none"

    @property
    def asked(self) -> ReadingOptions:
        from prunecli.evaluation.passes import ReadingOptions

        return ReadingOptions(output_name=self.output_name)

    @property
    def needs_data(self) -> bool:
        return True

    @property
    def tried(self) -> DataOptions:
        """The data that trials run on."""
        found = self.source
        assert found is not None
        return found

    def check(self) -> None:
        super().check()
        if self.data is None and self.needs_data:
            raise PruneError("trials are judged on data", "give --data")
        self._check_names()
        if "block" in self.granularity.split(","):
            raise PruneError("blocks are chosen by `prune structured --granularity block`, not by trials",
                             "use --granularity element, channel,head or all")  # fmt: skip
        if self.elements and ((self.round_to, self.target, self.max_ratio) != (AUTO, "cpu", None)):
            raise PruneError("--round-to, --target and --max-ratio are of structures", "add --granularity channel,head")
        if not self.elements and (self.pattern != "element" or self.also):
            raise PruneError("--pattern and --also are of single weights", "leave out --granularity")

    def _check_names(self) -> None:
        """Refuse names that there are none of, before any work."""
        from prunecli.dependency.catalogue import parse_granularity
        from prunecli.evaluation.fidelity import MEASURES
        from prunecli.evaluation.sample_metrics import find_metrics
        from prunecli.masks.patterns import Windows, parse_pattern

        if not self.elements:
            parse_granularity(self.granularity)
        known: list[str] = element_names() if self.elements else [*of_structures()]
        if self.criterion not in (None, AUTO, *known):
            kind = "elements" if self.elements else "structures"
            raise PruneError(
                f"--criterion {self.criterion!r} is unknown for {kind}", f"choose from {', '.join((AUTO, *known))}"
            )
        if self.data is None and self.criterion not in (None, AUTO):
            found = of_elements(self.criterion) if self.elements else of_structures()[self.criterion]
            if found.evidence is not None and found.evidence.on_data:
                raise PruneError(f"--criterion {self.criterion} needs data", "give --data, or leave --criterion out")
        if isinstance(form := parse_pattern(self.pattern), Windows):
            raise PruneError(f"the pattern {form.text} fixes how many weights go", "use `prune magnitude --pattern`")
        if self.metric is not None and self.metric not in MEASURES:
            find_metrics([self.metric])


def _levels(text: str) -> tuple[float, ...]:
    return tuple(parse_fraction(part) for part in text.split(","))


@dataclass(frozen=True, kw_only=True)
class SensitivityOptions(TrialOptions):
    """What each layer costs when it alone is cut: quality, or fidelity without labels, by the fraction removed.

    What comes before a layer is computed once for all of its fractions. Without --limit 512 samples drawn from --data
    are used. With --state a second run continues where the first one stopped.
    """

    levels: Annotated[
        tuple[float, ...] | None,
        Option("fractions removed, as 0.5,0.9; default 30% to 98% of elements, 10% to 90% of units", SELECT, "LIST",
               read=_levels),
    ] = None  # fmt: skip
    fast: Annotated[
        bool,
        Option(
            "predict from gradients instead of measuring; the rank correlation with a few measurements is told", SELECT
        ),
    ] = False
    predicted: Annotated[
        bool,
        Option("predict by a graph neural network from the file, without data; with --data its rank correlation with a few"
               " measurements is told", SELECT),
    ] = False  # fmt: skip

    @property
    def needs_data(self) -> bool:
        return not self.predicted

    def check(self) -> None:
        super().check()
        if self.fast and self.predicted:
            raise PruneError("--fast and --predicted are two predictions", "leave one of them out")
        if self.levels is not None and (not self.levels or not all(0 < level <= 1 for level in self.levels)):
            raise PruneError("--levels are fractions above 0, up to 1", "write --levels 0.5,0.9")


def _drop(text: str) -> Quantity:
    found = parse_quantity(text)
    if found.kind not in ("plain", "percent"):
        raise PruneError(f"{text!r} is no amount of a metric", "write it as 0.01 or 1%")
    return found


@dataclass(frozen=True, kw_only=True)
class PrunedFile(Saving):
    """How a pruned model is written. `spreads`: measure the distributions that a report draws. `timed`: measure the
    speedup of structures over the original."""

    save_plan: Annotated[Path | None, Option("keep the exact decision in PATH (JSON)", OUTPUT, "PATH")] = None
    spreads: bool = False
    timed: bool = False


@dataclass(frozen=True, kw_only=True)
class AdaptiveOptions(TrialOptions, Retraining, PrunedFile, StoredPacked, Timing):
    """The smallest model that loses no more than --max-drop, confirmed on data that nothing was chosen by.

    How much goes from each layer follows from what it costs, measured. Half of --data is searched on, the other half
    only confirms. A margin for the noise of both is kept, so more data give a smaller model. Exit code 1 and no file if
    the limit cannot be kept. Ctrl-C ends the search with the best so far.

    With --finetune-epochs it goes on from there: a little is cut, trained on --train-data, judged, and backed out if it
    costs too much.
    """

    max_drop: Annotated[
        Quantity | float | None,
        Option(
            "what may be lost of --metric on data that the search does not see, as 1% or 0.01", GOAL, "D", read=_drop
        ),
    ] = None
    minimize: Annotated[
        Literal["params", "macs", "latency", "file_bytes"] | None,
        Option("what is to become small; default params of elements, macs of structures", GOAL),
    ] = None
    strategy: Annotated[
        Literal["search", "predicted", "feedback"],
        Option(
            "search: per layer, from measured sensitivity; predicted: from what a graph neural network says of the file, in"
            " fewer trials; feedback: one threshold, up while the error allows",
            GOAL,
        ),
    ] = "search"
    rounds: Annotated[int, Option("of the search, at most; each measures every layer anew", GOAL, "N", least=1)] = 4
    confirm_data: Annotated[Any, Option("data that only confirm, instead of a part of --data", DATA, "D")] = None
    confirm_split: Annotated[float, Option("fraction of --data that only confirms", DATA, "F", least=0, most=1)] = 0.5
    recover: Annotated[
        Literal["none", "bias", "bn", "lstsq", "distill", "auto"],
        Option("fit what is left to the original's outputs, without labels, on the samples of the search, and cut further"
               f" for it; judged after that; distill: auto, then after each further cut {DISTILLED}", SELECT),
    ] = "none"  # fmt: skip
    save_front: Annotated[Path | None, Option("keep the models of the Pareto front in DIR", OUTPUT, "DIR")] = None

    @property
    def goal(self) -> str | None:
        return self.minimize

    @property
    def recovery(self) -> Literal["none", "bias", "bn", "lstsq", "auto"]:
        return "auto" if self.recover == "distill" else self.recover

    @property
    def allowed(self) -> Quantity:
        """The allowed loss, as written."""
        assert isinstance(self.max_drop, Quantity)
        return self.max_drop

    @property
    def limit_of_drop(self) -> float:
        return self.allowed.value

    @property
    def confirming(self) -> DataOptions | None:
        """The data for confirmation, if they are not a part of the others."""
        return None if self.confirm_data is None else self.like(self.confirm_data)

    def check(self) -> None:
        super().check()
        if self.max_drop is None:
            raise PruneError("what may be lost is not given", "give --max-drop 1%")
        if not 0 < self.limit_of_drop < math.inf:
            raise PruneError(f"--max-drop {self.limit_of_drop:g} allows nothing", "write for example --max-drop 1%")
        if self.minimize == "latency" and self.elements:
            raise PruneError("zeros do not make onnxruntime faster, so there is no latency to minimise",
                             "add --granularity channel,head")  # fmt: skip
        if not 0 < self.confirm_split < 1:
            raise PruneError("--confirm-split is a fraction between 0 and 1", "leave it out: half is best")
        self._check_training()
        self._check_front()

    def _check_training(self) -> None:
        if (
            self.trains
            and not self.distills
            and (self.train_data is None or self.like(self.train_data).text == self.tried.text)
        ):
            raise PruneError("what is trained on the samples that judge it learns them by heart",
                             "give other samples to train on with --train-data")  # fmt: skip
        if self.trains and self.external_data == "always":
            raise PruneError("--external-data always and --finetune-epochs do not go together",
                             "prune first, then `prune finetune`")  # fmt: skip

    def _check_front(self) -> None:
        front = self.save_front
        if front is not None and front.exists() and not front.is_dir():
            raise PruneError(f"--save-front {front} is not a folder", "name a folder")
        if front is not None and not self.force and any(front.glob("step-*.onnx")):
            raise PruneError(f"--save-front {front} holds models already", "name another folder, or add --force")
