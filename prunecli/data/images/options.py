"""What the command line says about images, and the presets of well-known model families."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar

from prunecli.errors import PruneError
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
    "imagenet": Preset(0.875, "bilinear", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # [-1, 1]: Inception, MobileNet and EfficientNet-Lite of TensorFlow
    "inception": Preset(0.875, "bilinear", 2 / 255, (1.0,)),
    # blue, green, red, the mean subtracted: VGG and ResNet of Caffe and Keras
    "caffe": Preset(0.875, "bilinear", 1.0, (103.939, 116.779, 123.68), order="bgr"),
    # Radford et al. 2021
    "clip": Preset(1.0, "bicubic", 1 / 255, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


@dataclass(frozen=True)
class ImageOptions:
    """None: as the preset says, or without one: no resizing, 1/255 for floating-point inputs, mean 0, std 1, RGB.

    mean, std: one number, or one per channel in the order that the model takes. classes: what the folders' names
    mean, "sorted", "numbers" or a file (see `prunecli.data.images.classes`).
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
        """From the command line's words.

        Raises:
            PruneError: naming the option, and what it takes.
        """
        return cls(**{name: _PARSERS[name](text) for name, text in given.items() if text is not None})  # type: ignore[arg-type]

    def to_json(self) -> Json:
        """What was set, for a record of how samples were made."""
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
