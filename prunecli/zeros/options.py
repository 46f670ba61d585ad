"""The options of the commands that write zeros."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from prunecli.errors import PruneError
from prunecli.masks.criteria import element_names
from prunecli.options.declare import DATA, OUTPUT, RUN, SELECT, Option, Options
from prunecli.options.groups import (
    ALLOCATE,
    ERK,
    LOSS,
    CalibrationSamples,
    Chosen,
    Distributed,
    OutputNamed,
    QuantizedLast,
    Replayed,
    Reporting,
    Resumed,
    Running,
    Saving,
    Seeded,
    Shrinking,
    Sized,
    StoredPacked,
)
from prunecli.options.training import DISTILLED, Stepwise
from prunecli.quantity import Quantity, parse_fraction, parse_quantity

if TYPE_CHECKING:
    from prunecli.masks.decide import Recipe

MEMORY = 512 << 20
"""Bytes of activations that `prune oneshot` holds in memory."""
SHARDS = 4
"""Parts of the samples on a cluster, unless another number is asked for."""
Scoped = Literal["layer", "row", "global", "lamp", "erk"]
"""The scopes of `masks/scopes.py`, written out because `--help` does without numpy."""
Unmeasured = Literal["uniform", "erk", "predicted"]
"""The allocations of `masks/allocations.py` that measure no losses, written out likewise."""


@dataclass(frozen=True, kw_only=True)
class Patterned(Options):
    """Which elements of a weight go together."""

    pattern: Annotated[
        str,
        Option("what goes together; N:M keeps N of each M neighbours along the reduction axis (input channels), as"
               " TensorRT and cuSPARSELt want", SELECT, "element|N:M|RxC|row|column"),
    ] = "element"  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OtherKinds(Options):
    """Kinds of tensors besides matrices and kernels."""

    also: Annotated[
        tuple[Literal["bias", "norm", "embedding"], ...],
        Option("prune these too, which are left alone by default; repeatable", SELECT),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class ZeroingOptions(Replayed, Chosen, Patterned, Stepwise, Saving, Shrinking, StoredPacked, Reporting, Sized):
    """What magnitude, gradient and one-shot pruning take alike. `spreads`: measure the distributions that a report
    draws."""

    sparsity: Annotated[
        float | None, Option("fraction of the weights to zero, as 0.5 or 50%", SELECT, "S", read=parse_fraction)
    ] = None
    save_plan: Annotated[Path | None, Option("keep the exact decision in PATH (JSON)", OUTPUT, "PATH")] = None
    spreads: bool = False
    apart: ClassVar[tuple[str, ...]] = ("method", "fallback")

    def check(self) -> None:
        super().check()
        assert self.recipe is not None or self.plan is not None

    @property
    def recipe(self) -> Recipe | None:
        """How much goes, chosen how; None with `plan`.

        Raises:
            PruneError: it is not said, or makes no sense.
        """
        from prunecli.masks.decide import Recipe

        if self.plan is not None:
            return None
        named: dict[str, Any] = {name: getattr(self, name, None) for name in ("scope", "criterion", "threshold")}
        return Recipe(pattern=self.pattern, sparsity=self.sparsity, seed=self.seed, **named)


@dataclass(frozen=True, kw_only=True)
class Allocated(ZeroingOptions):
    """How sparsity spreads over the layers, where nothing is measured for it, and what makes up for it."""

    allocate: Annotated[
        Unmeasured | None,
        Option(f"{ALLOCATE}; {ERK}", SELECT),
    ] = None
    recover: Annotated[Literal["none", "distill"], Option(DISTILLED, "Recovery")] = "none"

    @property
    def recipe(self) -> Recipe | None:
        recipe = super().recipe
        return recipe if recipe is None or self.allocate is None else replace(recipe, allocate=self.allocate)


@dataclass(frozen=True, kw_only=True)
class MagnitudeOptions(OtherKinds, Allocated):
    """Zero the smallest weights: below a threshold, to an exact sparsity, or to a pattern.

    round(S * n) of the n weights of each pool go, never more; of equal ones the later go first. Biases,
    normalisation parameters and embeddings are left alone. Weights of any size stream through.

    With --finetune-epochs the result is trained, the unpruned model its teacher, and with --steps K little by little:
    after step t 1 - (1 - t/K)^3 of the sparsity is reached. What is zero stays zero.
    """

    threshold: Annotated[float | None, Option("zero every weight with |w| < T", SELECT, "T", least=0)] = None
    scope: Annotated[
        Scoped | None,
        Option("who competes with whom; default layer", SELECT),
    ] = None
    criterion: Annotated[
        str | None, Option("the score; default l1", SELECT, "|".join(element_names(lambda evidence: evidence is None)))
    ] = None

    def check(self) -> None:
        super().check()
        if not self.trains and (self.data is not None or self.steps is not None):
            raise PruneError("--data and --steps are of training, which was not asked for",
                             "add --finetune-epochs 5, or --recover distill")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GradientOptions(OutputNamed, OtherKinds, Allocated, CalibrationSamples):
    """Zero the weights that the outputs would miss least, by gradients measured on data. No labels needed.

    In --steps (synflow: 30, else 6), gradients taken anew at the weights as they are by then; with --threshold, which
    zeroes what scores below T, once.
    Without --limit 256 samples drawn from --data are used.

    With --finetune-epochs the result is trained, the unpruned model its teacher, and with --steps K little by little:
    after step t 1 - (1 - t/K)^3 of the sparsity is reached. What is zero stays zero.
    """

    threshold: Annotated[
        float | None,
        Option("zero every weight whose score is below T; reports list quantiles of the scores", SELECT, "T", least=0),
    ] = None
    scope: Annotated[
        Scoped | None,
        Option("who competes with whom; default global", SELECT),
    ] = None
    criterion: Annotated[
        str | None,
        Option(
            "the score; default smoothed (taylor, steadied by the tensor's mean); synflow needs no data",
            SELECT,
            "|".join(element_names(lambda evidence: evidence is not None and evidence.differentiates)),
        ),
    ] = None
    loss: Annotated[
        Literal["auto", "output", "labels"],
        Option("what is differentiated: the outputs in random directions (auto), or the loss of the labels", DATA),
    ] = "auto"  # fmt: skip

    @property
    def recipe(self) -> Recipe | None:
        from prunecli.zeros.recipes import with_defaults

        recipe = super().recipe
        return None if recipe is None else with_defaults(recipe, self.data is not None)

    @property
    def measured_steps(self) -> int | None:
        """How often gradients are taken anew; None: as often as is good for the criterion. Training between several
        cuts already lets each be measured anew."""
        if self.trains:
            return 1 if self.step_count > 1 else None
        return self.steps

    def check(self) -> None:
        super().check()
        if self.threshold is not None and (self.steps or 1) > 1:
            raise PruneError("--threshold compares scores of the model as it is, so that it has no steps",
                             "use --sparsity, or leave --steps out")  # fmt: skip
        if self.loss == "labels" and self.criterion is not None:
            from prunecli.masks.criteria import of_elements

            evidence = of_elements(self.criterion).evidence
            if evidence is not None and not evidence.on_data:
                raise PruneError(f"--criterion {self.criterion} reads no labels", "leave --loss labels out")


def _check_memory(size: Quantity) -> None:
    if size.kind not in ("bytes", "plain") or size.value < 0:
        raise PruneError("not a number of bytes", "write it as 2GB or 500MB")


@dataclass(frozen=True, kw_only=True)
class Fitting(Chosen, CalibrationSamples, Seeded, Running, Sized):
    """How weights are chosen and fitted on calibration data, whose labels are not read."""

    method: Annotated[
        Literal["auto", "obs", "admm", "sparsegpt", "wanda"],
        Option("obs: exact, least loss; admm: as good, for wide layers; auto: obs, and admm where that takes long;"
               " sparsegpt: one sweep; wanda: |w| times its input's norm", SELECT),
    ] = "auto"  # fmt: skip
    allocate: Annotated[
        Literal[Unmeasured, "loss"] | None,
        Option(f"{ALLOCATE}; {ERK}; {LOSS}, the default", SELECT),
    ] = None
    recover: Annotated[
        Literal["auto", "none", "bias", "bn", "lstsq", "distill"],
        Option("fit what is left to what the original computes: bias (means), bn (means and variances), lstsq (least"
               f" squares); auto, the default, is lstsq; distill: auto, then {DISTILLED}", "Recovery",
               "none|bias|bn|lstsq|distill|auto"),
    ] = "auto"  # fmt: skip

    @property
    def closed_form(self) -> Literal["none", "bias", "bn", "lstsq"]:
        """What is fitted before any training."""
        return "lstsq" if self.recover == "auto" or self.recover == "distill" else self.recover

    fallback: Annotated[bool, Option("zero weights that cannot be measured by magnitude", SELECT)] = False
    memory: Annotated[
        Quantity | float,
        Option("activations held in memory, the rest made again or in temporary files; default 512MiB", RUN, "BYTES", read=parse_quantity,
               show_default=False, check=_check_memory),
    ] = MEMORY  # fmt: skip

    @property
    def memory_bytes(self) -> int:
        assert isinstance(self.memory, Quantity)
        return int(self.memory.value)


@dataclass(frozen=True, kw_only=True)
class OneshotOptions(Fitting, Distributed, Resumed, QuantizedLast, ZeroingOptions):
    """Zero weights and fit the others on a few hundred unlabelled samples. No labels, no training.

    Layer by layer: what goes is chosen by its effect on the layer's output, and what stays makes up for it, on what
    the layers before, pruned by now, really give. Without --limit 512 samples drawn from --data are used. Weights of
    more than 512 MiB lose the same share of every layer unless --allocate says otherwise; with --state a run that was
    cut short continues. Each matrix of each expert of a mixture (MoE) is fitted on the tokens that reach that expert.

    With --finetune-epochs the result is trained, the unpruned model its teacher, and with --steps K little by little:
    after step t 1 - (1 - t/K)^3 of the sparsity is reached. What is zero stays zero.
    """

    scope: Annotated[
        Literal["layer", "row", "global", "erk"] | None,
        Option("who competes inside a layer; global and erk mean --allocate loss and erk", SELECT),
    ] = None
    shards: Annotated[
        int | None,
        Option("parts of the samples that are run apart and added up, each on one thread; default one for each of --jobs,"
               " four with --backend dask; the result depends on their number, not on where they run", RUN, "N", least=1),
    ] = None  # fmt: skip

    @property
    def shard_count(self) -> int:
        """Parts of the samples."""
        return self.shards or (SHARDS if self.backend == "dask" else self.jobs or 1)

    def check(self) -> None:
        super().check()
        if self.steps is not None and not self.trains:
            raise PruneError("--steps is of training between cuts",
                             "add --finetune-epochs or --recover distill, or leave --steps out")  # fmt: skip
        if self.state is not None and self.step_count > 1:
            raise PruneError("--state is of one fit, and --steps prunes several times", "leave one of them out")
        if self.data is None:
            raise PruneError(
                "one-shot pruning is measured on data",
                "give --data; a few hundred unlabelled samples will do, or --data synthetic where there are none",
            )

    @property
    def recipe(self) -> Recipe | None:
        from prunecli.zeros.recipes import checked

        recipe = super().recipe
        return None if recipe is None else checked(recipe, self.method, self.allocate)
