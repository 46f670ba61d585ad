"""JSON and tables of adaptive pruning: goal, confirmation, path, front, thresholds, file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal

from prunecli.evaluation.report import number
from prunecli.report.contract import envelope
from prunecli.report.document import Chart, ChartAxis, Column, Document, Mark, Panel, Section, Series, Table, Text
from prunecli.report.sections import detail_text, headline, subordinate
from prunecli.search.models import FrontModel
from prunecli.search.strategy import STAGES
from prunecli.types import Json

if TYPE_CHECKING:
    from prunecli.evaluation.latency import TimedPair
    from prunecli.search.adaptive import AdaptiveResult, Confirmation
    from prunecli.search.strategy import SearchStep

TOP = 30
NAMES = {"params": "parameters", "macs": "MACs", "file_bytes": "bytes", "latency": "time"}
OF_ZEROS = {"params": "parameters", "macs": "MACs other than by zero", "file_bytes": "bytes once packed"}
"""Names of what zeros save: the file's own MACs and bytes do not change."""


def to_json(found: AdaptiveResult) -> Json:
    """The contract's keys of the command that wrote the file, with `goal`, `confirmation`, `path`, `front` and
    `thresholds`."""
    base = found.result.to_json() if found.result is not None else {"model": asdict(found.model), "output": None}
    options = found.options
    return {
        **base,
        **envelope("adaptive", found.seconds),
        "dry_run": options.dry_run,
        "reached": found.reached,
        "interrupted": found.interrupted,
        "goal": {
            "metric": found.metric, "change": found.change, "output": found.output_name,
            "max_drop": found.goal.max_drop, "minimize": found.goal.minimize, "strategy": options.strategy,
            "recover": options.recover, "baseline": found.baseline,
            "sureness": found.goal.sureness, "samples": found.samples[0], "held_out": found.samples[1],
        },
        "confirmation": [_confirmation(c) for c in found.confirmations],
        "path": [_step(step) for step in found.steps],
        "front": [{"step": m.step.number, "remains": m.step.remains, "drop": m.step.drop.value, "path": m.path}
                  for m in found.front],
        "thresholds": [{"name": one.layer.name, "kind": one.layer.kind, "count": one.layer.count,
                        "fraction": one.fraction, "threshold": one.threshold} for one in found.layers],
        "closest": None if found.closest is None else _step(found.closest),
        "jobs": {"measured": found.measured, "reused": found.reused},
        "notes": list(dict.fromkeys([*found.notes, *([] if found.result is None else found.result.notes)])),
    }  # fmt: skip


def goal_name(found: AdaptiveResult) -> str:
    """Return the name of the minimised amount."""
    names = OF_ZEROS if found.options.elements else NAMES
    return names[found.goal.minimize]


def _confirmation(c: Confirmation) -> Json:
    return {"step": c.step.number, "baseline": c.baseline, "metric": c.metric, "drop": c.drop.value, "low": c.low,
            "high": c.high, "level": c.level, "samples": c.drop.samples, "attempt": c.attempt,
            "holds": c.holds}  # fmt: skip


def _step(step: SearchStep) -> Json:
    return {"step": step.number, "stage": step.stage, "remains": step.remains, "damage": step.damage,
            "metric": step.metric, "drop": step.drop.value, "bound": step.bound, "allowed": step.allowed,
            "decision": step.decision, "setting": dict(step.allocation)}  # fmt: skip


def to_document(found: AdaptiveResult) -> Document:
    sections: list[Section] = [_promise(found)]
    if found.interrupted:
        sections.append(Text("interrupted: this is the best that had been found by then", "warning"))
    sections += [Text(_missed(c, found), "warning") for c in found.confirmations if not c.holds]
    if not found.reached:
        sections += _closest(found)
    if found.result is not None:
        sections += map(subordinate, found.result.to_document().sections)
    if found.layers:
        sections.append(_thresholds(found))
    if found.curves:
        sections.append(curves_chart(found))
    if found.steps:
        sections += [path_chart(found, goal_name(found)), _path(found), _front(found)]
    if found.reused:
        sections.append(
            detail_text(f"{found.reused} of {found.reused + found.measured} measurements came from the state file")
        )
    if not found.options.recovers and not found.options.trains:
        sections.append(
            Text("Nothing was fitted or trained: --recover auto fits what is left, and usually allows more.")
        )
    known = [] if found.result is None else found.result.notes
    sections += [Text(note, "warning") for note in found.notes if note not in known]
    return Document(f"{found.model.path}: adaptive", sections)


def _promise(found: AdaptiveResult) -> Text:
    what = f"a {found.change} in {found.metric} of at most {found.goal.max_drop:g}"
    if not found.reached:
        return headline(f"Not reached: no smaller model with {what} was found.", "warning")
    c = found.confirmations[-1]
    limit = f"{found.goal.max_drop:g}"
    sure = (
        f" The interval reaches beyond {limit}: on other data it may be more; more --data narrow it."
        if c.high > found.goal.max_drop
        else f" So the {found.change} on other data of this kind is within {limit}, at that level of confidence."
    )
    gone, name = 100 * (1 - c.step.remains), goal_name(found)
    said = (
        f"{gone:.1f} % of the {name} went. Kept: {what}. On {c.drop.samples:,} samples that nothing was chosen by,"
        f" {found.metric} went from {number(c.baseline)} to {number(c.metric)}: a {found.change} of {c.drop.value:.4f}"
        f" ({100 * c.level:.3g} % interval {c.low:.4f} to {c.high:.4f}).{sure}"
    )
    return headline(said, "good")


def _missed(c: Confirmation, found: AdaptiveResult) -> str:
    return (
        f"step {c.step.number} did not hold on the held-out samples ({found.change} {c.drop.value:.4f}): a stricter"
        " one was looked for"
    )


def _closest(found: AdaptiveResult) -> list[Section]:
    step = found.closest
    if step is None:
        return [Text("nothing was tried", "warning")]
    noise = step.bound - step.drop.value
    said = (
        f"The closest is step {step.number}: {100 * step.remains:.1f} % of the {goal_name(found)} remain,"
        f" the {found.change} on the {found.samples[0]:,} samples of the search is {step.drop.value:.4f}, and with the"
        f" margin for noise {step.bound:.4f}."
    )
    if step.allowed and found.confirmations:
        said += " That is allowed, but the held-out samples confirmed no step that is."
    elif step.allowed:
        said += " That is allowed, but no step that is removes anything."
    elif step.drop.value <= found.goal.max_drop:
        said += f" The margin, {noise:.4f}, is what so few samples cost: more of them make it smaller."
    return [Text(said)]


def _path(found: AdaptiveResult) -> Table:
    columns = (
        Column("step", "count"), Column("stage", drop=2), Column(f"{goal_name(found)} left", "percent"),
        Column(found.metric.replace("_", " "), "number"), Column(found.change, "number"),
        Column("with margin", "number"), Column("damage", "number", drop=1), Column("decision"),
    )  # fmt: skip
    rows = [
        (s.number, s.stage, s.remains, number(s.metric), number(s.drop.value), number(s.bound), number(s.damage),
         "confirmed" if any(c.holds and c.step is s for c in found.confirmations) else s.decision)
        for s in found.steps
    ]  # fmt: skip
    note = (
        f"on {found.samples[0]:,} samples; the margin is {found.goal.sureness:g} standard errors of the difference to"
        f" {found.samples[1]:,} other samples. "
    )
    seen = dict.fromkeys(step.stage.split()[0] for step in found.steps)
    return Table("Path", columns, rows, note=note + "; ".join(f"{stage}: {STAGES[stage]}" for stage in seen), top=TOP)


def _front(found: AdaptiveResult) -> Table:
    """Return the front with the confirmed step, which noise may keep off it: steps that beat it were not allowed."""
    held = [c.step for c in found.confirmations if c.holds]
    beaten = [FrontModel(step) for step in held if step.number not in {m.step.number for m in found.front}]
    models = sorted([*found.front, *beaten], key=lambda m: m.step.remains)
    kept = any(m.path for m in models)
    columns = [Column("step", "count"), Column(f"{goal_name(found)} left", "percent"),
               Column(found.change, "number"), Column(""), *[Column("file", drop=1)] * kept]  # fmt: skip
    rows = [(m.step.number, m.step.remains, number(m.step.drop.value), _standing(m.step, held), *[m.path] * kept)
            for m in models]  # fmt: skip
    note = "what no other step beats in both" + (", and the one that was confirmed" if beaten else "")
    return Table("Pareto front", columns, rows, note=note, top=TOP)


def _standing(step: SearchStep, held: Sequence[SearchStep]) -> str:
    return "confirmed" if step in held else "" if step.allowed else "not allowed"


def _thresholds(found: AdaptiveResult) -> Table:
    elements = found.options.elements
    columns = (Column("layer" if elements else "group", "name"), Column("elements" if elements else "units", "count"),
               Column("removed", "percent"), Column("threshold", "number"))  # fmt: skip
    rows = [(one.layer.name, one.layer.count, one.fraction, number(one.threshold)) for one in found.layers]
    return Table("Thresholds", columns, rows, note="the largest score that goes", top=TOP)


# -- charts -----------------------------------------------------------------------------------------


def curves_chart(found: AdaptiveResult) -> Chart:
    """The damage by each layer cut alone, the largest first, and the removed fraction of the layer."""
    chosen = {one.layer.name: one.fraction for one in found.layers}
    finite = {c.layer: [(f, d) for f, d in zip(c.fractions.tolist(), c.damages.tolist(), strict=True) if isfinite(d)]
              for c in found.curves}  # fmt: skip
    order = sorted(finite, key=lambda name: -max(d for _, d in finite[name]))
    panels = [
        Panel([Series("", [f for f, _ in finite[name]], [d for _, d in finite[name]])], name,
              [Mark("x", chosen[name], "removed")] if name in chosen else [])
        for name in order
    ]  # fmt: skip
    note = "damage: how far the outputs move on average, with nothing else removed"
    return Chart(
        "Damage by each layer alone", panels, ChartAxis("removed", "percent"), y=ChartAxis("damage"), note=note
    )


@dataclass(frozen=True)
class _Scales:
    """The axes of the chart of steps. By default: the loss over what remains. Where time is minimised and was measured,
    as `pair`: the metric over milliseconds of a run, which a table of layers predicts for the steps."""

    found: AdaptiveResult
    pair: TimedPair | None

    @classmethod
    def of(cls, found: AdaptiveResult) -> _Scales:
        speed = getattr(found.result, "speed", None) if found.goal.minimize == "latency" else None
        pair = None if speed is None else speed.pair
        return cls(found, None if pair is None or pair.gain.reason else pair)

    def across(self, step: SearchStep) -> float:
        return step.remains * (1 if self.pair is None else self.pair.baseline.median)

    def up(self, lost: float) -> float:
        return lost if self.pair is None else self.found.baseline - (lost if self.found.change == "drop" else -lost)

    def confirmed(self, c: Confirmation) -> Series:
        """Over the time that was measured, where the step is the one that was written."""
        written = c is self.found.confirmations[-1] and self.pair is not None
        x = self.pair.model.median if written and self.pair is not None else self.across(c.step)
        low, high = sorted((self.up(c.low), self.up(c.high)))
        return Series("on held-out samples", [x], [self.up(c.drop.value)], draw="points", low=[low], high=[high])

    def chart(self, panel: Panel, name: str, note: str) -> Chart:
        if self.pair is None:
            return Chart(
                "Steps", [panel], ChartAxis(f"{name} left", "percent"), y=ChartAxis(self.found.change), note=note
            )
        metric = self.found.metric.replace("_", " ")
        said = "milliseconds of steps are predicted from a table of layers, that of the result is measured"
        across = ChartAxis("milliseconds of a run")
        return Chart(f"{metric} over time", [panel], across, y=ChartAxis(metric), note=f"{said}. {note}".strip())


def path_chart(found: AdaptiveResult, name: str) -> Chart:
    """Every step by what remains and the loss, the front as a line, and the limit."""
    limit, most, scales = found.goal.max_drop, 10 * found.goal.max_drop, _Scales.of(found)
    shown = [step for step in found.steps if step.drop.value <= most]

    def series(title: str, steps: Sequence[SearchStep], draw: Literal["points", "line"]) -> Series:
        labels = [f"step {step.number}" for step in steps] if draw == "points" else []
        x, y = [scales.across(step) for step in steps], [scales.up(step.drop.value) for step in steps]
        return Series(title, x, y, draw=draw, labels=labels)

    drawn = [  # also if empty: colours keep their meaning
        series(title, [step for step in shown if step.allowed == allowed], "points")
        for title, allowed in (("allowed", True), ("not allowed", False))
    ]
    front = [m.step for m in found.front if m.step.drop.value <= most]
    drawn += [series("Pareto front", front, "line")] * bool(front)
    drawn += [scales.confirmed(c) for c in found.confirmations if c.drop.value <= most]
    left_out = len(found.steps) - len(shown)
    note = f"steps that lost more than {most:g} are left out: {left_out}" if left_out else ""
    return scales.chart(Panel(drawn, marks=[Mark("y", scales.up(limit), "limit")]), name, note)
