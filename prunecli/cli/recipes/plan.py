"""Plan a recipe: the files that every step reads and writes, and its command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from prunecli.cli.commands import Slot, schema_of
from prunecli.cli.recipes.read import RESERVED, RecipeStep, RunRecipe
from prunecli.cli.settings import Setting, resolve, resolved
from prunecli.errors import PruneError, did_you_mean
from prunecli.files import WRITTEN, named, same

_RELATIVE = "paths are relative to the recipe"
OutputKind = Literal["kept", "default", "temporary", "none"]
"""What a step writes: the file that it names, a file of the command's default name, a temporary file, or none."""


CommandNamed = Callable[[str], Any]


@dataclass(frozen=True)
class PlannedStep:
    """A step with its files and its command line. `sources`: by key of a setting, the number of the step whose output
    it refers to; -1: the original model. `output`: None where the command names it, or there is none.
    """

    step: RecipeStep
    sources: dict[str, int]
    output_kind: OutputKind
    output: Path | None
    words: tuple[str, ...] = ()
    command: Any = None

    @property
    def writes(self) -> bool:
        return self.output_kind != "none"


@dataclass(frozen=True)
class RecipePlan:
    recipe: RunRecipe
    steps: tuple[PlannedStep, ...]


def plan(recipe: RunRecipe, scratch: Path, command_named: CommandNamed = lambda name: None) -> RecipePlan:
    """Plan the steps of a recipe. `scratch`: the folder of temporary outputs; `command_named`: returns the command of
    that name.

    Raises:
        PruneError: a reference to what is not there, a file that does not exist or would be replaced, a result
            that would be lost.
    """
    planner = Planner(recipe, scratch)
    referred = [planner.sources(at) for at in range(len(recipe.steps))]
    used = {source for _, sources in referred for source in sources.values()}
    for at, (step, sources) in enumerate(referred):
        planner.check_reads(step, sources)
        output_kind, output = planner.output(step, sources, at in used)
        planned = PlannedStep(step, sources, output_kind, output=output, command=command_named(step.command))
        planner.done.append(replace(planned, words=planner.words(planned)))
    planner.check_apart()
    return RecipePlan(recipe, tuple(planner.done))


def _writes_model(step: RecipeStep) -> bool:
    return "output" in schema_of(step.command) and "dry-run" not in step.settings


def _model_slots(step: RecipeStep) -> Iterator[tuple[Slot, Setting]]:
    for key, slot in schema_of(step.command).items():
        if slot.role == "model" and key in step.settings:
            yield slot, step.settings[key]


@dataclass
class Planner:
    """Plans the steps of a recipe in their order. `done`: the steps planned so far."""

    recipe: RunRecipe
    scratch: Path
    done: list[PlannedStep] = field(default_factory=list)

    def sources(self, at: int) -> tuple[RecipeStep, dict[str, int]]:
        """Return the step, with the model that it works on where it names none, and the sources of its references."""
        step = self.recipe.steps[at]
        writers = [n for n in range(at) if _writes_model(self.recipe.steps[n])]
        if "model" in schema_of(step.command) and "model" not in step.settings:
            if not writers and self.recipe.model is None:
                raise PruneError(f"{step.place}: {step.title} has no model",
                                 'give it model = "model.onnx", or write that before the first step')  # fmt: skip
            implied = Setting("model", "previous" if writers else "original", step.place)
            step = replace(step, settings={"model": implied, **step.settings})
        found = {slot.key: self._source(at, writers, setting) for slot, setting in _model_slots(step)}
        return step, {key: source for key, source in found.items() if source is not None}

    def _source(self, at: int, writers: list[int], setting: Setting) -> int | None:
        """Return the number of the step that a setting refers to; -1: the original model; None: the setting is a
        path."""
        text, names = setting.texts[0], [step.name for step in self.recipe.steps]
        if text == "original":
            if self.recipe.model is None:
                raise setting.error("the recipe names no model", 'write model = "model.onnx" before the first step')
            return -1
        if text == "previous":
            if not writers:
                raise setting.error("no step before this one writes a model", "use original, or a path")
            return writers[-1]
        if text not in names:
            return None
        source = names.index(text)
        if source in writers:
            return source
        why = "runs no earlier than this one" if source >= at else "writes no model"
        raise setting.error(f"the step {text} {why}", f"refer to an earlier step, or write ./{text} for a file")

    def check_reads(self, step: RecipeStep, sources: dict[str, int]) -> None:
        """Refuse a step that reads a file which neither exists nor is written by an earlier step."""
        written = {planned.output.absolute() for planned in self.done if planned.output is not None}
        for slot, setting in _model_slots(step):
            text = setting.texts[0]
            if sources.get(slot.key, 0) < 0 and self.recipe.model is not None:
                setting, text = self.recipe.model, str(self.recipe.model.value)
            elif slot.key in sources or text in slot.literals:
                continue
            path = Path(resolve(text, "model", setting.folder))
            if not path.is_file() and path.absolute() not in written:
                names = [*RESERVED, *(planned.step.name for planned in self.done if planned.writes)]
                raise setting.error(f"there is no file {path}", did_you_mean(text, names, _RELATIVE))
        for key, setting in step.settings.items():
            slot = schema_of(step.command)[key]
            if slot.role == "data" and setting.texts[0] not in slot.literals:
                self._check_data(setting)

    def _check_data(self, setting: Setting) -> None:
        named = self.recipe.data.get(setting.texts[0], setting)
        path = resolve(named.texts[0], "data", named.folder)
        file, sign, function = path.rpartition(":")
        if sign and function.isidentifier() and not Path(path).exists():
            if not file.endswith(".py") or Path(file).is_file():
                return
            path = file
        if not Path(path).exists():
            names = () if named is not setting else self.recipe.data
            raise named.error(f"there is no {path}", did_you_mean(setting.texts[0], names, _RELATIVE))

    def output(self, step: RecipeStep, sources: dict[str, int], used: bool) -> tuple[OutputKind, Path | None]:
        """Return the kind and the path of the next step's output. `used`: whether a later step refers to it."""
        if not _writes_model(step):
            return "none", None
        setting = step.settings.get("output")
        if setting is not None:
            path = Path(resolve(setting.texts[0], "path", setting.folder))
            if not path.parent.is_dir():
                raise setting.error(f"there is no folder {path.parent}", "make it first")
            if path.exists() and "force" not in step.settings:
                raise setting.error(f"{path} exists", "write force = true to replace it")
            return "kept", path
        if used:
            return "temporary", self.scratch / f"{len(self.done) + 1}-{step.name}.onnx"
        if any(self.done[source].output_kind == "temporary" for source in sources.values() if source >= 0):
            raise PruneError(f"{step.place}: the result of {step.title} would be lost: no later step uses it",
                             'give it a name: output = "small.onnx"')  # fmt: skip
        return "default", None

    def check_apart(self) -> None:
        """Refuse steps that write the same file, or a file that the recipe or its steps read and no step made. (Each
        command checks its own paths.)"""
        written: list[tuple[Path, Setting, str]] = []
        read = [self.recipe.path]
        for planned in self.done:
            made = [path for path, _, _ in written]
            for name, path, setting in self._paths(planned):
                if name in WRITTEN:
                    written.append((path, setting, planned.step.name))
                elif not any(same(path, other) for other in made):
                    read.append(path)
        for at, (path, setting, _) in enumerate(written):
            for other, _, step in written[:at]:
                if same(path, other):
                    raise setting.error(f"the step {step} writes {path} too", "give each its own file")
            if any(same(path, other) for other in read):
                raise setting.error(f"{path} is what the recipe reads", "choose another name")

    def _paths(self, planned: PlannedStep) -> Iterator[tuple[str, Path, Setting]]:
        """Yield every path of a step's settings, with the name of its parameter."""
        for key, setting in planned.step.settings.items():
            slot = schema_of(planned.step.command)[key]
            for text in self._texts(planned, slot, setting) if slot.role != "other" else ():
                yield from ((name, path, setting) for name, path in named(text, slot.name))

    def words(self, planned: PlannedStep) -> tuple[str, ...]:
        """Return the command line of a step: options first, then the arguments in their order."""
        step, options, arguments = planned.step, ["--isolated"], ["--"]
        schema = schema_of(step.command)
        for key, slot in schema.items():
            if key in step.settings:
                words = slot.words(self._texts(planned, slot, step.settings[key]))
                (arguments if slot.argument else options).extend(words)
        if planned.output_kind == "temporary":
            options.append(f"--output={planned.output}")
        if "no-progress" in schema and "no-progress" in self.recipe.shown:
            options.append("--no-progress")
        return (*options, *arguments)

    def _texts(self, planned: PlannedStep, slot: Slot, setting: Setting) -> list[str]:
        """Return the texts of a setting. References become files; paths become relative to the working folder."""
        source, model = planned.sources.get(slot.key), self.recipe.model
        if source is not None and source >= 0:
            return [str(self.done[source].output)]  # what is referred to has one: its own, or a temporary one
        if source is not None and model is not None:
            return [resolve(str(model.value), "model", model.folder)]
        data = self.recipe.data if slot.role == "data" else {}
        return [
            resolve(data[text].texts[0], "data", data[text].folder) if text in data
            else resolved(text, slot, setting.folder)
            for text in setting.texts
        ]  # fmt: skip
