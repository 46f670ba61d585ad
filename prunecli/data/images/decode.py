"""Image files -> bytes, by Pillow. Files are untrusted: only plain pixel formats, sizes checked before decoding."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunecli.data.images.prepare import CHANNELS, Preparation
from prunecli.errors import PruneError

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, Any]

MAX_PIXELS = 1 << 27
"""134 megapixels, more than any camera of today in one shot; decoded, at most half a gigabyte."""
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm"}


def need_pillow() -> None:
    """Raises PruneError if Pillow is not installed."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise PruneError("reading images needs Pillow", "pip install 'prunecli[images]'") from error


def decode(path: Path, name: str, how: Preparation) -> Array:
    """The pixels of one file, (height, width, channels) bytes, upright, resized and cropped.

    An image of several frames gives its first. Palettes are looked up, alpha is dropped unless the model takes it,
    16-bit grey keeps its high byte.

    Raises:
        PruneError: it is no readable image, truncated, too large, or smaller than the crop; `name` is named.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own limit on pixels, and of damaged EXIF data
            with Image.open(path, formats=FORMATS) as image:
                _check_pixels(image.width, image.height, name)
                return np.asarray(_fit(_upright(image, name, CHANNELS[how.channels]), name, how))
    except (PruneError, MemoryError):
        raise
    except Exception as error:  # decoders raise a dozen kinds on damaged files
        reason = " ".join(str(error).split())[:160]
        kind = type(error).__name__
        known = {
            "UnidentifiedImageError": "is not an image that can be read",
            "DecompressionBombError": f"has over {MAX_PIXELS:,} pixels",
        }
        what = known.get(kind, f"cannot be decoded: {reason or kind}")
        raise PruneError(f"{name} {what}", "take the file out of the folder, or save it again") from error


def _check_pixels(width: int, height: int, name: str) -> None:
    """Before anything is decoded or resized: a small file can claim any size."""
    if width * height > MAX_PIXELS:
        raise PruneError(
            f"{name} is {width} x {height} pixels, over the limit of {MAX_PIXELS:,}",
            "make it smaller, or take it out of the folder",
        )


def _upright(image: Image, name: str, mode: str) -> Image:
    """Turned as its EXIF orientation says, in the mode wanted."""
    from PIL import Image as Images
    from PIL import ImageOps

    if image.mode in ("I", "F"):
        raise PruneError(f"{name} holds {'floating-point' if image.mode == 'F' else '32-bit'} pixels of unknown range",
                         "convert it to 8 bits, or give arrays (.npz)")  # fmt: skip
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # convert() would clip at 255 what reaches to 65535
        image = Images.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == mode else image.convert(mode)


def _fit(image: Image, name: str, how: Preparation) -> Image:
    """Resized and cropped to the centre."""
    from PIL import Image as Images

    if how.resize is not None:
        height, width = how.resize.size(image.height, image.width)
        _check_pixels(width, height, f"{name}, once resized,")
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), Images.Resampling[how.interpolation.upper()])
    if how.crop is None:
        return image
    top, left = (round((have - want) / 2) for have, want in zip((image.height, image.width), how.crop, strict=True))
    if min(top, left) < 0:
        have, want = f"{image.height}x{image.width}", f"{how.crop[0]}x{how.crop[1]}"
        raise PruneError(f"{name} is {have}, smaller than the crop of {want}", "give --resize as well, or --preset")
    return image.crop((left, top, left + how.crop[1], top + how.crop[0]))
