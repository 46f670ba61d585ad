"""Small networks with surplus units put in by hand, and the comparison of a result with its original by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import prunecli
from prunecli.runtime import Session
from prunecli.shrinking.result import ShrinkResult
from tests.dependency.net import Net

Build = Callable[[Net], Net]


def array(net: Net, name: str) -> np.ndarray[Any, Any]:
    """The content of a weight, to be changed and put back."""
    tensor = next(one for one in net.initializers if one.name == name)
    return np.array(numpy_helper.to_array(tensor))


def put(net: Net, name: str, content: Any) -> None:
    """Other content for a weight of that name."""
    place = next(number for number, one in enumerate(net.initializers) if one.name == name)
    net.initializers[place] = numpy_helper.from_array(np.asarray(content, net.dtype), name)


def rows(net: Net, name: str, at: Any, value: Any = 0.0, axis: int = 0) -> None:
    """Set rows (of axis 0) of a weight."""
    content = np.moveaxis(array(net, name), axis, 0)
    content[at] = value
    put(net, name, np.ascontiguousarray(np.moveaxis(content, 0, axis)))


def saved(net: Net, path: Path) -> Path:
    onnx.save(net.model(), path)
    return path


def run(path: Path, feed: Mapping[str, Any]) -> dict[str, Any]:
    return Session.open(path).run(feed)


def shrunk(path: Path, **options: Any) -> ShrinkResult:
    return prunecli.shrink(path, output=path.with_name("out.onnx"), force=True, **options)


def largest_difference(before: Path, after: Path, shapes: Mapping[str, tuple[int, ...]], seeds: int = 3) -> float:
    """Of all outputs, relative to the largest element, by runs of this test's own."""
    one, other, worst = Session.open(before), Session.open(after), 0.0
    for seed in range(seeds):
        feed = one.random_inputs(seed=50 + seed, shapes=shapes)
        wanted, got = one.run(feed), other.run({s.name: feed[s.name] for s in other.inputs})
        for name, value in got.items():
            assert np.shape(value) == np.shape(wanted[name])
            scale = float(np.abs(wanted[name]).max(initial=0.0)) or 1.0
            worst = max(worst, float(np.abs(value - wanted[name]).max(initial=0.0)) / scale)
    return worst
