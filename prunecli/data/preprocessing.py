"""How images become what one model takes: the options, the presets of well-known model families, the steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from prunecli.arrays import Array
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec
from prunecli.types import Json

T = TypeVar("T")
Layout = Literal["nchw", "nhwc", "chw", "hwc", "nhw"]
LAYOUTS: tuple[Layout, ...] = ("nchw", "nhwc", "chw", "hwc", "nhw")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
ORDERS = ("rgb", "bgr")
MAX_SIDE = 1 << 14


@dataclass(frozen=True)
class Resize:
    """To `height` x `width`: exactly, or keeping the aspect so that the image just covers that (shorter side)."""

    height: int
    width: int
    exact: bool

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image of that size once resized; the longer side is rounded down."""
        if self.exact:
            return self.height, self.width
        if self.height * width <= self.width * height:
            return max(self.height, self.width * height // width), self.width
        return self.height, max(self.width, self.height * width // height)


@dataclass(frozen=True)
class Preset:
    """y = (scale * x - mean) / std of pixels 0..255; the centre crop covers the fraction `cover` of the image."""

    cover: float
    interpolation: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...] = (1.0,)
    order: str = "rgb"


PRESETS = {
    # torchvision's classification models, timm's default
    "imagenet": Preset(0.875, "bilinear", 1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    # [-1, 1]: Inception, MobileNet and EfficientNet-Lite of TensorFlow
    "inception": Preset(0.875, "bilinear", 2 / 255, mean=(1.0,)),
    # blue, green, red, the mean subtracted: VGG and ResNet of Caffe and Keras
    "caffe": Preset(0.875, "bilinear", 1.0, mean=(103.939, 116.779, 123.68), order="bgr"),
    # Radford et al. 2021
    "clip": Preset(
        1.0, "bicubic", 1 / 255, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
    ),
}


@dataclass(frozen=True)
class ImageOptions:
    """None: as the preset says, or without one: no resizing, 1/255 for floating-point inputs, mean 0, std 1, RGB.

    mean, std: one number, or one per channel in the order that the model takes. classes: what the folders' names
    mean, "sorted", "numbers" or a file (see `prunecli.data.images`).
    """

    preset: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    layout: Layout | None = None
    resize: Resize | None = None
    crop: tuple[int, int] | None = None
    interpolation: str | None = None
    order: str | None = None
    classes: str | Path | None = None

    @classmethod
    def parse(cls, **given: str | None) -> ImageOptions:
        """Parse the words of the command line.

        Raises:
            PruneError: naming the option, and what it takes.
        """
        return cls(**{name: _PARSERS[name](text) for name, text in given.items() if text is not None})  # type: ignore[arg-type]

    def to_json(self) -> Json:
        """Return the options that were set, to record how samples were made."""
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return {name: asdict(value) if isinstance(value, Resize) else value for name, value in chosen.items()}

    @property
    def given(self) -> list[str]:
        """The options that were set, as on the command line."""
        names = {"order": "channel-order"}
        return [f"--{names.get(f.name, f.name)}" for f in fields(self) if getattr(self, f.name) is not None]


def _number(option: str, text: str) -> float:
    """A number, or a fraction such as 1/255."""
    top, slash, bottom = text.strip().partition("/")
    try:
        value = float(top) / (float(bottom) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise PruneError(f"{option} {text!r} is not a number", f"write {option} 0.5 or {option} 1/255")
    return value


def _numbers(option: str) -> Callable[[str], tuple[float, ...]]:
    return lambda text: tuple(_number(option, part) for part in text.split(","))


def _std(text: str) -> tuple[float, ...]:
    values = _numbers("--std")(text)
    if min(values) <= 0:
        raise PruneError(
            f"--std {text!r} is not above 0", "the standard deviation of each channel, as 0.229,0.224,0.225"
        )
    return values


def _sides(option: str, text: str) -> tuple[int, ...]:
    """`224` or `HEIGHTxWIDTH`."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.strip().isdecimal() and 0 < int(p) <= MAX_SIDE for p in parts):
        raise PruneError(f"{option} {text!r} is not a size in pixels", f"write {option} 224 or {option} 224x320 (HxW)")
    return tuple(map(int, parts))


def _resize(text: str) -> Resize:
    sides = _sides("--resize", text)
    return Resize(sides[0], sides[-1], exact=len(sides) == 2)


def _crop(text: str) -> tuple[int, int]:
    sides = _sides("--crop", text)
    return sides[0], sides[-1]


def _one_of(option: str, known: tuple[T, ...]) -> Callable[[str], T]:
    def parse(text: str) -> T:
        found = next((name for name in known if name == text.lower()), None)
        if found is None:
            raise PruneError(f"{option} {text!r} is unknown", f"choose from {', '.join(map(str, known))}")
        return found

    return parse


_PARSERS: dict[str, Callable[[str], object]] = {
    "preset": _one_of("--preset", tuple(PRESETS)),
    "mean": _numbers("--mean"),
    "std": _std,
    "scale": lambda text: _number("--scale", text),
    "layout": _one_of("--layout", LAYOUTS),
    "resize": _resize,
    "crop": _crop,
    "interpolation": _one_of("--interpolation", INTERPOLATIONS),
    "order": _one_of("--channel-order", ORDERS),
    "classes": str,
}


CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_NAMES = ("c", "channel", "channels", "num_channels")
_PLAIN = Preset(1.0, "bilinear", 1 / 255, mean=(0.0,))


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
        """Whether pixels are used as bytes, without scaling."""
        return self.scale == 1 and set(self.mean) == {0.0} and set(self.std) == {1.0}

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of a sample, without the batch axis."""
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
    """Combine the options with the model's input `spec`.

    Raises:
        PruneError: the layout is ambiguous, or the options contradict the input.
    """
    layout = options.layout or infer_layout(spec)
    sizes = _sizes(spec, layout)
    channels = sizes["c"] or 3
    if channels not in CHANNELS:
        raise PruneError(f"the input {spec.describe()} has {channels} channels", "images have 1, 3 or 4; see --layout")
    plain = _PLAIN if spec.is_float else replace(_PLAIN, scale=1.0)
    preset = PRESETS[options.preset] if options.preset else plain
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
    return Preparation(
        channels,
        layout,
        resize,
        crop=crop,
        size=size,
        interpolation=options.interpolation or preset.interpolation,
        order=order,
        scale=preset.scale if options.scale is None else options.scale,
        mean=mean,
        std=std,
    )


def _grey(option: str, values: tuple[float, ...], own: tuple[float, ...] | None) -> tuple[float, ...]:
    """Average the three channels of a preset for a model of one channel; values of the user stay."""
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
