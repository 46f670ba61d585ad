"""Sizes of dynamic dimensions, taken from the data where nobody states them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from prunecli.evaluation.passes import data_dims
from prunecli.inputs import SYNTHETIC
from prunecli.model import load
from prunecli.model.shapes import input_specs

if TYPE_CHECKING:
    from prunecli.data.options import DataOptions


class SizedOptions(Protocol):
    """What the options of a command say of data and of sizes of dynamic dimensions."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def source(self) -> DataOptions | None: ...
    @property
    def dim(self) -> tuple[str, ...]: ...
    @property
    def input_shape(self) -> tuple[str, ...]: ...


AnySized = TypeVar("AnySized", bound=SizedOptions)


def at_data(path: Path, options: AnySized) -> AnySized:
    """The options with the sizes of dynamic dimensions that the data have, the batch aside, where none are stated.

    Raises:
        PruneError: the model or the data cannot be read.
    """
    source = options.source
    if source is None or source.text == SYNTHETIC or options.dim or options.input_shape:
        return options
    specs = input_specs(load(path).ir)
    if all(isinstance(size, int) for spec in specs for size in spec.shape[1:]):
        return options
    data = source.open(specs)
    shapes = data_dims(data, {}, specs).shapes
    sizes: dict[str, int] = {}
    stated: list[str] = []
    for spec in (spec for spec in specs if spec.name in shapes):
        batch = data.axes.get(spec.name, 0)
        for axis, (name, size) in enumerate(zip(spec.shape, shapes[spec.name], strict=True)):
            if axis != batch and isinstance(name, str) and size:  # 0: an empty past
                sizes.setdefault(name, size)
        if None in (name for axis, name in enumerate(spec.shape) if axis != batch):
            stated.append(f"{spec.name}:{','.join(map(str, shapes[spec.name]))}")
    named = tuple(f"{name}={size}" for name, size in sizes.items() if not set(name) & set("+-*/() "))
    return replace(options, dim=named, input_shape=tuple(stated))
