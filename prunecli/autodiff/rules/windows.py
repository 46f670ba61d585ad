"""Geometry shared by convolutions and pools: what pads, strides and dilations mean at known shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunecli.autodiff.registry import GradientContext
from prunecli.model.shape_inference import Shape


@dataclass(frozen=True)
class PoolWindow:
    """A sliding window over n spatial axes. `before`/`after` are the pads, in elements."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def spans(self) -> tuple[int, ...]:
        """Length covered by the dilated kernel."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def pads(self) -> list[int]:
        return [*self.before, *self.after]

    @property
    def plain(self) -> bool:
        """Every input element lies in exactly one window: no overlap, no gap, no padding."""
        return self.kernel == self.strides and not any(self.pads) and set(self.dilations) <= {1}


def read_window(g: GradientContext, kernel: Sequence[int], large: Shape, small: Shape) -> PoolWindow:
    """The window that slides over `large` (spatial lengths) and yields `small`, auto_pad resolved."""
    n = len(kernel)
    strides, dilations = g.ints("strides", [1] * n), g.ints("dilations", [1] * n)
    mode = g.text("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for i in range(n):
            total = max(0, (small[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - large[i])
            less = total // 2
            before.append(less if mode == "SAME_UPPER" else total - less)
            after.append(total - before[-1])
        return PoolWindow(tuple(kernel), strides, dilations, tuple(before), tuple(after))
    pads = g.ints("pads", [0] * (2 * n)) if mode == "NOTSET" else (0,) * (2 * n)
    return PoolWindow(tuple(kernel), strides, dilations, pads[:n], pads[n:])
