"""`prune compare`: how far the outputs of two models differ on the same inputs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prunecli.data import Dataset
from prunecli.errors import PruneError
from prunecli.evaluation.fidelity import MEASURES, Fidelity, FidelityCollector
from prunecli.evaluation.gates import GateResult, check_gates, parse_gate, raise_if_failed
from prunecli.evaluation.options import RANDOM, CompareOptions
from prunecli.evaluation.passes import BASELINE, MODEL, Runner, open_models
from prunecli.evaluation.report import fidelity_table, gate_sections, number, title_of
from prunecli.report.contract import envelope
from prunecli.report.document import Document, Level, Section
from prunecli.report.result import Reported
from prunecli.report.sections import headline, warnings
from prunecli.types import FileRef, Json, Progress, no_progress


@dataclass(frozen=True)
class Comparison(Reported):
    """The `fidelity` of the second model to the first. The short names are the worst over the outputs."""

    first: FileRef
    second: FileRef
    fidelity: Fidelity
    notes: Sequence[str]
    gates: Sequence[GateResult] = ()
    seconds: float = 0.0

    def raise_if_failed(self) -> None:
        """Raise GateFailed where a gate failed."""
        raise_if_failed(self.gates)

    def to_json(self) -> Json:
        return {
            **envelope("compare", self.seconds),
            "model": asdict(self.first),
            "output": None,
            "models": [asdict(self.first), asdict(self.second)],
            "data": {"source": self.fidelity.inputs, "samples": self.fidelity.samples},
            "fidelity": self.fidelity.worst(),
            "outputs": {name: dict(values) for name, values in self.fidelity.outputs.items()},
            "identical": self.identical,
            "gates": [gate.to_json() for gate in self.gates],
            "notes": list(self.notes),
        }

    @property
    def identical(self) -> bool:
        """Whether every output agreed to the bit (0 and -0 are equal), text and sequences included."""
        return self.fidelity.alike and all(values["max_abs"] == 0 for values in self.fidelity.outputs.values())

    def to_document(self) -> Document:
        worst = [f"{title_of(name)} {number(value)}" for name, value in self.fidelity.worst().items() if value]
        said = "Every value is equal." if self.identical else f"The outputs differ: at worst {', '.join(worst)}."
        sections: list[Section] = [headline(said, "good" if self.identical else "plain"), *gate_sections(self.gates)]
        sections += [fidelity_table(self.fidelity, Level.NORMAL), *warnings(self.notes)]
        return Document(f"Outputs of {self.second.path} against those of {self.first.path}", sections)


def compare(
    first: str | Path, second: str | Path, options: CompareOptions | None = None, progress: Progress = no_progress,
    **changes: Any,
) -> Comparison:  # fmt: skip
    """Run both models on the same inputs. Gates are checked, not enforced. `changes` override fields of the options;
    `data` may be a path.

    Raises:
        PruneError: a model or the data is unusable, the two do not match, or a gate's name is unknown.
    """
    start, options = time.perf_counter(), CompareOptions.of(options, **changes)
    models = open_models({BASELINE: Path(first), MODEL: Path(second)}, options.execution)
    prefixes = ("", *(f"{output.name}." for output in models.first.outputs))
    known = {f"{prefix}{name}": measure.span for prefix in prefixes for name, measure in MEASURES.items()}
    gates = [parse_gate(text, known) for text in options.gates]
    if options.source is not None:
        data = options.source.open(models.specs, models.first.outputs)
    else:
        data = models.random_data(options.samples or RANDOM, options.seed, options.dims)
    fidelity = _run(models.runners, data, options.batch_size, progress=progress)
    one, two = (models.files[role].ref for role in (BASELINE, MODEL))
    result = Comparison(one, two, fidelity, notes=[*data.notes, *_notes(models.runners[MODEL], fidelity)])
    checked = check_gates(gates, figures(fidelity), "the others of the table are")
    return replace(result, gates=checked, seconds=time.perf_counter() - start)


def _run(runners: Mapping[str, Runner], data: Dataset, batch_size: int, progress: Progress) -> Fidelity:
    collector = FidelityCollector(heads=runners[BASELINE].heads)
    for batch in progress(data.batches(batch_size), "comparing", data.batch_count(batch_size)):
        collector.add(runners[BASELINE].run(batch), runners[MODEL].run(batch), batch.count)
    found = collector.result("the first model", data.source)
    if found is None:
        raise PruneError("the models have no numeric output in common", "nothing can be compared")
    return found


def figures(found: Fidelity) -> Mapping[str, float]:
    """`cosine`: the worst over the outputs; `OUTPUT.cosine`: of that output."""
    values = dict(found.worst())
    values |= {f"{name}.{key}": v for name, each in found.outputs.items() for key, v in each.items()}
    return {name: value for name, value in values.items() if value is not None}


def _notes(runner: Runner, found: Fidelity) -> list[str]:
    own = {s.name for s in runner.session.outputs} - set(runner.outputs.values())
    return [
        *(f"matched by position: {pair}" for pair in runner.renamed),
        *found.skipped,
        *(f"not compared: {name} is an output of the second model only" for name in sorted(own)),
    ]
