"""How images become what one model takes: chosen once from the options and the model's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunecli.data.images.options import PRESETS, ImageOptions, Layout, Preset, Resize
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec

Array = np.ndarray[Any, Any]

CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_NAMES = ("c", "channel", "channels", "num_channels")
_PLAIN = Preset(1.0, "bilinear", 1 / 255, (0.0,))


@dataclass(frozen=True)
class Preparation:
    """Resize, crop the centre, reorder the channels, y = (scale * x - mean) / std in float32, and lay out.

    `crop` None: the whole image. `size`: (height, width) that every image must have by then; None: that of the
    first. Inputs of integers take the pixels as they are (scale 1, mean 0, std 1) unless the options say more.
    """

    channels: int
    layout: Layout
    resize: Resize | None
    crop: tuple[int, int] | None
    size: tuple[int, int] | None
    interpolation: str
    order: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def raw(self) -> bool:
        """Whether pixels stay the bytes they are."""
        return self.scale == 1 and set(self.mean) == {0.0} and set(self.std) == {1.0}

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Of one sample, without the batch axis."""
        sizes = {"c": self.channels, "h": size[0], "w": size[1]}
        return tuple(sizes[axis] for axis in self.layout if axis != "n")

    def arrange(self, pixels: Array) -> Array:
        """(N, H, W, C) bytes -> the input, in float32, or in bytes where they are wanted as they are."""
        if self.order == "bgr":
            pixels = np.concatenate([pixels[..., 2::-1], pixels[..., 3:]], axis=3)
        if not self.raw:
            mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
            pixels = (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std
        if self.layout.endswith("chw"):
            pixels = pixels.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(pixels[..., 0] if self.layout == "nhw" else pixels)

    def describe(self) -> str:
        """`shorter side to 256 (bilinear), centre 224x224, RGB, (x * 0.003922 - 0.485,0.456,0.406) / 0.229,...`"""
        parts = []
        if self.resize is not None:
            one = not self.resize.exact and self.resize.height == self.resize.width
            size = str(self.resize.height) if one else f"{self.resize.height}x{self.resize.width}"
            how = "resized to" if self.resize.exact else "shorter side to" if one else "resized to cover"
            parts.append(f"{how} {size} ({self.interpolation})")
        if self.crop is not None:
            parts.append(f"centre {self.crop[0]}x{self.crop[1]}")
        parts.append({1: "grey", 3: self.order.upper(), 4: f"{self.order.upper()}A"}[self.channels])
        mean, std = (",".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        parts.append("pixels 0 to 255" if self.raw else f"(x * {self.scale:.4g} - {mean}) / {std}")
        return ", ".join(parts)


def choose_preparation(options: ImageOptions, spec: InputSpec) -> Preparation:
    """What `options` and the model's input `spec` say together.

    Raises:
        PruneError: the layout is ambiguous, or the options contradict the input.
    """
    layout = options.layout or infer_layout(spec)
    sizes = _sizes(spec, layout)
    channels = sizes["c"] or 3
    if channels not in CHANNELS:
        raise PruneError(f"the input {spec.describe()} has {channels} channels", "images have 1, 3 or 4; see --layout")
    preset = PRESETS[options.preset] if options.preset else _default(spec)
    fixed = (sizes["h"], sizes["w"]) if sizes["h"] and sizes["w"] else None
    resize, crop = _geometry(options, preset, fixed)
    size = crop or ((resize.height, resize.width) if resize is not None and resize.exact else fixed)
    if fixed is not None and size != fixed:
        have = f"{size[0]}x{size[1]}" if size else "?"
        raise PruneError(f"images of {have} do not fit the model's input {spec.describe()}",
                         f"end at {fixed[0]}x{fixed[1]}, with --crop or --resize")  # fmt: skip
    order = options.order or preset.order
    mean, std = options.mean or preset.mean, options.std or preset.std
    if channels == 1:
        mean, std, order = _grey("--mean", mean, options.mean), _grey("--std", std, options.std), "rgb"
    for option, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, channels):
            raise PruneError(f"{option} has {len(values)} numbers for {channels} channels", "give one, or one each")
    scale = preset.scale if options.scale is None else options.scale
    interpolation = options.interpolation or preset.interpolation
    return Preparation(channels, layout, resize, crop, size, interpolation, order, scale, mean, std)


def _default(spec: InputSpec) -> Preset:
    return _PLAIN if spec.is_float else Preset(1.0, "bilinear", 1.0, (0.0,))


def _grey(option: str, values: tuple[float, ...], own: tuple[float, ...] | None) -> tuple[float, ...]:
    """A preset's three channels become one for a model of one channel; what the user gave is not averaged."""
    return values if own is not None or len(values) == 1 else (sum(values) / len(values),)


def _geometry(
    options: ImageOptions, preset: Preset, fixed: tuple[int, int] | None
) -> tuple[Resize | None, tuple[int, int] | None]:
    if options.preset is None:
        return options.resize, options.crop
    if options.resize is not None and options.crop is None and options.resize.exact:
        return options.resize, None
    crop = options.crop or fixed or (224, 224)
    sides = [round(side / preset.cover) for side in crop]
    return options.resize or Resize(sides[0], sides[1], exact=False), crop


def _sizes(spec: InputSpec, layout: Layout) -> dict[str, int | None]:
    """The fixed sizes of the input by axis letter.

    Raises:
        PruneError: the input is no tensor of that rank.
    """
    if not spec.is_tensor or spec.dtype == "str":
        raise PruneError(f"the input {spec.describe()} takes no images", "images feed an input of numbers")
    found: dict[str, int | None] = dict.fromkeys("nhw") | {"c": 1 if layout == "nhw" else None}
    if not spec.shape:  # its rank is unknown
        return found
    if len(spec.shape) != len(layout):
        raise PruneError(f"the layout {layout} has {len(layout)} axes, the model's input is {spec.describe()}",
                         "choose another --layout")  # fmt: skip
    return found | {axis: dim if isinstance(dim, int) else None for axis, dim in zip(layout, spec.shape, strict=True)}


def infer_layout(spec: InputSpec) -> Layout:
    """The layout if only one is possible. Channels are the first or the last axis: the one of size 3, else the one
    so named, else of size 1 (of three axes the first may as well be a batch of one), else of size 4.

    Raises:
        PruneError: several layouts fit, or none.
    """
    if len(spec.shape) in (3, 4):
        layouts: tuple[Layout, Layout] = ("nchw", "nhwc") if len(spec.shape) == 4 else ("chw", "hwc")
        ends = (spec.shape[-3], spec.shape[-1])
        for wanted in ((3,), _NAMES, (1,) if len(spec.shape) == 4 else (), (4,)):
            fits = [layout for layout, dim in zip(layouts, ends, strict=True) if _plain(dim) in wanted]
            if len(fits) == 1:
                return fits[0]
            if fits:
                break
    elif spec.shape:
        raise PruneError(f"the input {spec.describe()} is not shaped as images are", "give arrays, as .npz")
    raise PruneError(
        f"it is not clear which axis of the input {spec.describe()} holds the channels",
        "say so with --layout nchw, nhwc, chw, hwc or nhw (grey, no axis of channels)",
    )


def _plain(dim: int | str | None) -> int | str | None:
    return dim.lower() if isinstance(dim, str) else dim
