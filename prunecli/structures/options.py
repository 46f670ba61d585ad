"""The options of `prune structured`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from prunecli.errors import PruneError
from prunecli.masks.criteria import of_structures
from prunecli.options.declare import OUTPUT, SELECT, Option, Options
from prunecli.options.groups import (
    ALLOCATE,
    LOSS,
    Batched,
    CalibrationSamples,
    Chosen,
    QuantizedLast,
    Replayed,
    Reporting,
    Resumed,
    Saving,
    Seeded,
    Sized,
    Timing,
)
from prunecli.options.training import DISTILL, DISTILLED, Stepwise
from prunecli.quantity import Quantity, parse_fraction, parse_quantity
from prunecli.structures.target import KINDS, Budget
from prunecli.structures.widths import AUTO, Alignment, Target, alignment, read_multiple

CHANNELS = "channel,head"
MAX_RATIO = 0.9
DAMPING = 0.85
"""Damping of the PageRank on the unit graph (`dependency/unit_graph.py`)."""
CRITERION_HELP = (
    "auto (default: obs with --data and least squares after, l2-in without data or with training after, else"
    f" activation), {', '.join(name for name, found in of_structures().items() if not (found.evidence and found.evidence.on_data))},"
    f" and on --data: {', '.join(name for name, found in of_structures().items() if found.evidence and found.evidence.on_data)}"
)
_NORMALIZE = "auto (default: what suits the criterion), none, share, mean, max, isomorphic"
Amount = Quantity | float | None

if TYPE_CHECKING:
    from prunecli.dependency.catalogue import Kind


def _check_ratio(ratio: float) -> None:
    if ratio == 0:
        raise PruneError("nothing may be removed", "leave it out, or give a fraction above 0")


@dataclass(frozen=True, kw_only=True)
class Widths(Options):
    """Limits of the widths that are left."""

    max_ratio: Annotated[
        float | None,
        Option(
            "of structures: the largest fraction removed from any group; default 0.9",
            SELECT,
            "R",
            read=parse_fraction,
            check=_check_ratio,
        ),
    ] = None
    round_to: Annotated[
        int | str,
        Option("keep widths of structures multiples of N; auto: what --target computes fast, and halves of it where a"
               " layer is too narrow", SELECT, "auto|N", read=read_multiple, least=1),
    ] = AUTO  # fmt: skip
    target: Annotated[
        Target,
        Option("what the result is to run fast on: the block of channels of onnxruntime on this machine (cpu), the same"
               " quantised to int8 (cpu-int8), or usual blocks of others", SELECT),
    ] = "cpu"  # fmt: skip

    @property
    def largest_ratio(self) -> float:
        return MAX_RATIO if self.max_ratio is None else self.max_ratio

    @cached_property
    def alignment(self) -> Alignment:
        """The widths that groups may keep."""
        return alignment(self.round_to, self.target)

    @property
    def convolved(self) -> tuple[()] | None:
        """Shortcuts that an equal operator computes (`shortcuts.py`): None, where that is faster on the target."""
        return None if self.round_to == AUTO and self.target.startswith("cpu") else ()


@dataclass(frozen=True, kw_only=True)
class CutOptions(Chosen, Widths, CalibrationSamples, Batched, Seeded, Saving, Reporting, Sized, Timing, Resumed):
    """Options of a structural cut and its recovery, besides the amount."""

    granularity: Annotated[
        str,
        Option("which structures may be cut: channel,head (default); block: whole residual blocks, alone or beside others"
               " (channel,head,block); expert: whole ones of a mixture, which saves parameters and hardly any work; head_dim:"
               " inside heads; all: also inside heads, experts and the hidden size; vocabulary:"
               " categories of one-hot inputs, which nothing else cuts; auto: channel,head, and blocks where --data measure their damage and no other"
               " option limits the choice", SELECT, "auto|channel|head|head_dim|expert|block|all|vocabulary"),
    ] = CHANNELS  # fmt: skip
    criterion: Annotated[str, Option(f"the score of a unit: {CRITERION_HELP}", SELECT, "NAME")] = "auto"
    damping: Annotated[
        float,
        Option("of --criterion pagerank: the share of a unit's importance that comes from its readers; 1: all", SELECT, "G",
               read=parse_fraction),
    ] = DAMPING  # fmt: skip
    normalize: Annotated[
        str,
        Option(f"how layers' scores compare: {_NORMALIZE}", SELECT, "NAME"),
    ] = "auto"  # fmt: skip
    scope: Annotated[Literal["auto", "layer", "global"], Option("who competes with whom; default global", SELECT)] = (
        "auto"
    )
    recover: Annotated[
        Literal["none", "fold", "bias", "bn", "lstsq", "distill", "auto"] | None,
        Option("fit what is left to what the original computes, without training or labels: fold (without data, readers of what"
               " went read the unit most like it), bias (means), bn (means and variances), lstsq (least squares), auto;"
               f" distill: auto, then {DISTILLED}; default auto with --data, else fold, and on made pictures auto where the"
               " model takes pictures", "Recovery"),
    ] = None  # fmt: skip
    rescale_activations: Annotated[
        bool,
        Option("of a quantised model: what goes between operators gets new scales from --data, too, where that lowers the"
               " error of the outputs", "Recovery"),
    ] = False  # fmt: skip
    save_plan: Annotated[Path | None, Option("keep the exact decision in PATH (JSON)", OUTPUT, "PATH")] = None

    @property
    def closed_form(self) -> str | None:
        """The fit before any training; None: `auto` with data, `fold` without."""
        return "auto" if self.recover == DISTILL else self.recover

    @property
    def budget(self) -> Budget | None:
        """The amount to remove; None where that is decided elsewhere."""
        return None

    @property
    def step_count(self) -> int:
        """The number of times scores are computed."""
        return 1

    def check(self) -> None:
        from prunecli.structures.normalisers import NORMALISERS

        super().check()
        for option, given, known in (
            ("--criterion", self.criterion, of_structures()),
            ("--normalize", self.normalize, NORMALISERS),
        ):
            if given not in ("auto", *known):
                raise PruneError(f"{option} {given!r} is unknown for structures",
                                 f"choose from {', '.join(('auto', *known))}")  # fmt: skip
        if self.criterion != "pagerank" and self.damping != DAMPING:
            raise PruneError("--damping is of --criterion pagerank", "leave out --damping, or ask for that criterion")
        if self.rescale_activations and (self.source is None or self.closed_form in ("none", "fold")):
            raise PruneError("--rescale-activations is a part of recovery on data",
                             "give --data, and no --recover or one that reads it")  # fmt: skip
        self._check_data()
        if not self.drops_blocks or self.blocks_alone:
            return
        if self.budget is not None and self.budget.kind == "ratio":
            raise PruneError("--ratio counts units, and a block is no unit among channels", "give --macs or --params")
        if self.scope == "layer":
            raise PruneError("--scope layer cuts all groups alike, and a block goes or stays", "leave --scope out")

    def _check_data(self) -> None:
        """Refuse what is measured on data, where there are none."""
        if self.source is not None:
            return
        criterion = of_structures().get(self.criterion)
        if criterion is not None and criterion.evidence is not None and criterion.evidence.on_data:
            raise PruneError(f"--criterion {self.criterion} needs data", "give --data")
        if self.closed_form not in (None, "none", "fold"):
            raise PruneError(f"--recover {self.recover} needs data", "give --data; labels are not needed")

    @cached_property
    def structures(self) -> str:
        """The granularity, with `auto` replaced."""
        if self.granularity != AUTO:
            return self.granularity
        return f"{CHANNELS},block" if self.weighs_blocks else CHANNELS

    @property
    def weighs_blocks(self) -> bool:
        """Whether blocks compete with channels where `auto` decides."""
        return False

    @property
    def kinds(self) -> tuple[Kind, ...]:
        from prunecli.dependency.catalogue import parse_granularity

        return parse_granularity(self.structures)

    @property
    def drops_blocks(self) -> bool:
        """Whether whole residual blocks may go."""
        return "block" in self.kinds

    @property
    def blocks_alone(self) -> bool:
        """Whether only residual blocks may be removed."""
        return self.kinds == ("block",)


def _amount(text: str) -> Option:
    return Option(text, SELECT, "R", read=parse_quantity)


@dataclass(frozen=True, kw_only=True)
class StructuredOptions(Replayed, Stepwise, QuantizedLast, CutOptions):
    """Remove channels, neurons and attention heads and rewrite the graph: smaller and faster as it is.

    Positions that are coupled go together, in every tensor they appear in. The result is proved in onnxruntime
    against the original with the removed positions forced to zero; a cut that cannot be proved is not written.

    With --data every layer that is left is then fitted, in closed form, to what the original computes (--recover); the
    proof is of the cut before that.

    With --finetune-epochs the result is trained, the uncut model its teacher, and with --steps K little by little:
    after step t 1 - (1 - t/K)^3 of what is to go is gone. Without it --steps only takes the scores anew.
    """

    ratio: Annotated[Amount, _amount("fraction of the units to remove, as 0.5 or 50%")] = None
    macs: Annotated[Amount, _amount("what remains of the multiply-accumulates: 0.5, 50% or 120M")] = None
    params: Annotated[Amount, _amount("what remains of the parameters: 0.5, 50% or 1.2M")] = None
    latency: Annotated[Amount, _amount("what remains of the time of a run, as measured here: 0.5, 50% or 3.5ms")] = None
    allocate: Annotated[
        Literal["uniform", "loss", "predicted"] | None,
        Option(
            f"{ALLOCATE}; {LOSS}. Default: predicted for --macs and --params of models that take pictures, where nothing is"
            " said of data, scores and recovery; else by the scores",
            SELECT,
        ),
    ] = None
    apart: ClassVar[tuple[str, ...]] = ("target",)

    def check(self) -> None:
        super().check()
        self._check_allocation()
        assert self.plan is not None or self.budget is not None
        if self.trains and self.step_count > 1 and (self.latency is not None or self.drops_blocks):
            what = "--latency" if self.latency is not None else "--granularity block"
            raise PruneError(f"{what} is decided by measuring in one go, not in --steps with training",
                             "leave --steps out, or use --macs")  # fmt: skip

    @property
    def weighs_blocks(self) -> bool:
        """Where their damage is measured like that of other units, on data, and nothing else limits the choice."""
        plain = (self.round_to, self.max_ratio, self.scope) == (AUTO, None, "auto") and self.allocate in (None, "loss")
        measured = self.source is not None and not self.source.synthetic and self.criterion in ("auto", "obs")
        refitted = self.closed_form in (None, "auto", "lstsq") and not self.trains
        amount = self.budget is not None and self.budget.kind in ("macs", "params", "latency")
        return plain and measured and refitted and amount and not self.include and not self.exclude

    @property
    def leaves_allocation(self) -> bool:
        """Whether no option says how the cut is allocated, or which scores allocate it."""
        scored = (self.criterion, self.normalize, self.scope) == ("auto", "auto", "auto")
        amount = self.budget is not None and self.budget.kind in ("macs", "params")
        return self.allocate is None and scored and amount and not self.drops_blocks

    def _check_allocation(self) -> None:
        if self.allocate is None:
            return
        if self.allocate == "loss":
            if self.source is None or self.criterion not in ("auto", "obs") or self.blocks_alone:
                raise PruneError(
                    "--allocate loss is by the measured damage of groups", "give --data and --criterion obs"
                )
        elif self.drops_blocks or self.latency is not None:
            raise PruneError("--allocate spreads --ratio, --macs and --params over groups of channels and heads",
                             "leave --allocate out")  # fmt: skip
        if self.scope != "auto" and (self.scope == "layer") != (self.allocate == "uniform"):
            raise PruneError(f"--scope {self.scope} and --allocate {self.allocate} contradict each other",
                             "leave out --scope or --allocate")  # fmt: skip

    @property
    def closed_form(self) -> str | None:
        """Without data: training makes up for the cut by itself, and a plan is of a cut that anyone can check by zeros."""
        found, plain = super().closed_form, self.trains or self.save_plan is not None or self.plan is not None
        return "none" if found is None and self.source is None and plain else found

    @property
    def amounts(self) -> dict[str, Any]:
        return {kind: getattr(self, kind) for kind in KINDS}

    @property
    def budget(self) -> Budget | None:
        """How much is to go; None with `plan`.

        Raises:
            PruneError: nothing or several things are asked for.
        """
        return None if self.plan is not None else Budget.parse(self.amounts)

    def with_budget(self, budget: Budget) -> StructuredOptions:
        """The same with another amount: a fraction, or a count."""
        nothing: dict[str, Any] = dict.fromkeys(KINDS)
        amount = Quantity(budget.target, "count") if budget.absolute else budget.target
        return replace(self, **{**nothing, budget.kind: amount})
