"""A folder of images, one sub-folder per class or images alone, decoded by Pillow when rows are asked for."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunecli.arrays import Array
from prunecli.data.arrays import read_labels
from prunecli.data.axes import Axes
from prunecli.data.columns import InputColumn, check_budget
from prunecli.data.dataset import Classes, Dataset, build
from prunecli.data.options import DataOptions, source
from prunecli.data.preprocessing import CHANNELS, Preparation, choose_preparation
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image


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
    """Refuse too many pixels before anything is decoded or resized: a small file can claim any size."""
    if width * height > MAX_PIXELS:
        raise PruneError(
            f"{name} is {width} x {height} pixels, over the limit of {MAX_PIXELS:,}",
            "make it smaller, or take it out of the folder",
        )


def _upright(image: Image, name: str, mode: str) -> Image:
    """Return the image rotated by its EXIF orientation, in the mode wanted."""
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


STEP = 32
"""Pixels by which networks that halve their maps five times want heights and widths to grow."""
CACHE_BYTES = 512 << 20
"""Pixels kept in memory, for what passes over the data many times; the other images are decoded each time."""


def image_column(name: str, files: Sequence[Path], how: Preparation) -> InputColumn:
    """The images as the model's input, (images, *sample). All have the size that `how` fixes, else the first's.

    Raises:
        PruneError: the first image cannot be read; the others are read with their rows.
    """
    first = decode(files[0], f"{name}: {_name(files[0])}", how)
    height, width = how.size or first.shape[:2]
    pixels = Pixels(name, files, how, size=(height, width))
    pixels.check(first, 0)
    shape, dtype = (len(files), *how.shape((height, width))), np.dtype(np.uint8 if how.raw else np.float32)

    def read() -> Array:
        check_budget(name, shape, dtype)
        return pixels.rows(np.arange(len(files)))

    return InputColumn(name, shape, dtype, read=read, pick=pixels.rows)


@dataclass
class Pixels:
    """Decodes files on a few threads (decoders release the interpreter), in the order asked for."""

    name: str
    files: Sequence[Path]
    how: Preparation
    size: tuple[int, int]
    kept: dict[int, Array] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the decoded pixels: another process decodes its own."""
        return self.__dict__ | {"kept": {}}

    def rows(self, index: Array) -> Array:
        """The inputs at `index`.

        Raises:
            PruneError: an image cannot be read, or has another size than the others; it is named.
        """
        wanted = list(dict.fromkeys(int(i) for i in index))
        missing = [i for i in wanted if i not in self.kept]
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            found = dict(zip(missing, pool.map(self._decode, missing), strict=True))
        each = self.size[0] * self.size[1] * self.how.channels
        room = CACHE_BYTES // each - len(self.kept)
        batch = np.stack([self.kept[i] if i in self.kept else found[i] for i in map(int, index)])
        self.kept.update({i: found[i] for i in missing[: max(room, 0)]})
        return self.how.arrange(batch)

    def check(self, pixels: Array, i: int) -> None:
        """Raises PruneError for an image of another size."""
        if pixels.shape[:2] != self.size:
            have, want = (f"{h}x{w}" for h, w in (pixels.shape[:2], self.size))
            whose = "the model takes" if self.how.size else "the first is"
            hint = f"give --preset imagenet, or --resize {want} to change the aspect, or --resize and --crop"
            raise PruneError(
                f"{self.name}: {_name(self.files[i])} is {have} (height x width), {whose} {want}",
                hint if self.how.size else self._one_size(),
            )

    def _one_size(self) -> str:
        """A hint for a model that takes any size: a square about as large as the first image, in steps that networks
        halve five times."""
        side = STEP * max(round(math.sqrt(self.size[0] * self.size[1]) / STEP), 1)
        return f"the model takes any size: give one with --resize {side}x{side}, or --resize and --crop"

    def _decode(self, i: int) -> Array:
        pixels = decode(self.files[i], f"{self.name}: {_name(self.files[i])}", self.how)
        pixels = pixels.reshape(*pixels.shape[:2], self.how.channels)
        self.check(pixels, i)
        return pixels


def _name(path: Path) -> str:
    """The folder of the class and the file."""
    return os.fsencode(Path(path.parent.name, path.name)).decode("utf-8", "backslashreplace")


_MAX_BYTES = 16 << 20
_SEVERAL = -1
_EXAMPLE = "a name per line (.txt), or JSON: a list of names, or {name: number}"


def number_folders(folders: Sequence[str], how: str | Path | None, source: str) -> tuple[list[int], Classes]:
    """Return the class number of each sub-folder, in their order, and the names by number.

    Args:
        folders: their names, sorted.
        how: "sorted": 0, 1, ... in the order of names, as torchvision and Keras do; "numbers": the name is the number;
            None: "numbers" where the names are 0, 1, ... without a gap, else "sorted"; or a file.

    Raises:
        PruneError: names are other numbers, and `how` does not say what is meant; a folder that the file does not
            name.
    """
    if how is None and all(name.isdecimal() for name in folders):
        numbers = [int(name) for name in folders]
        if sorted(numbers) != list(range(len(folders))):
            raise PruneError(
                f"the folders of {source} are numbers, but not those from 0 on ({', '.join(folders[:4])}, ...)",
                "add --classes numbers if the names are class numbers, or --classes sorted as torchvision would",
            )
        return numbers, Classes(dict(zip(numbers, folders, strict=True)), complete=True)
    if how in (None, "sorted"):
        return list(range(len(folders))), Classes(dict(enumerate(folders)), complete=True)
    if how == "numbers":
        return _by_number(folders, source)
    return _by_file(folders, Path(str(how)))


def _by_number(folders: Sequence[str], source: str) -> tuple[list[int], Classes]:
    other = next((name for name in folders if not name.isdecimal() or len(name) > 9), None)
    if other is not None:
        raise PruneError(f"the folder {other} of {source} is no class number", "leave out --classes numbers")
    numbers = [int(name) for name in folders]
    return numbers, Classes(dict(zip(numbers, folders, strict=True)), complete=False)


def _by_file(folders: Sequence[str], path: Path) -> tuple[list[int], Classes]:
    names, complete = read_classes(path)
    numbers = []
    for folder in folders:
        if folder not in names:
            close = get_close_matches(folder, names, n=3)
            meant = f"close ones are {', '.join(close)}" if close else f"it has {', '.join(list(names)[:4])}, ..."
            raise PruneError(f"{path} has no class {folder}", meant)
        if names[folder] == _SEVERAL:
            raise PruneError(f"{path} has several classes named {folder}", "rename the folder and the class")
        numbers.append(names[folder])
    titles = {number: name for name, number in reversed(names.items()) if number != _SEVERAL}
    return numbers, Classes(titles, complete)


def read_classes(path: Path) -> tuple[dict[str, int], bool]:
    """Class numbers by name, and whether the file lists all classes.

    .txt: line k names class k; its first word is a name too (`n01440764 tench, Tinca tinca`). .json: a list of
    names, {name: number}, or {number: name or names} as Keras writes it.

    Raises:
        PruneError: unreadable. A name of several classes, as in ImageNet's, is an error only where it is used.
    """
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise PruneError(
                f"--classes {path} is no file of class names", f"it takes `sorted`, `numbers` or {_EXAMPLE}"
            )
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            return _from_lines(text.splitlines()), True
        return _from_json(path, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise PruneError(f"--classes {path} cannot be read: {str(error)[:120]}", f"write {_EXAMPLE}") from error


def _from_lines(lines: list[str]) -> dict[str, int]:
    kept = [line.strip() for line in lines]
    while kept and not kept[-1]:
        kept.pop()
    words = [name.split()[0] if name else "" for name in kept]
    return _numbered(words) | _numbered(kept)


def _from_json(path: Path, found: Any) -> tuple[dict[str, int], bool]:
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return _numbered(found), True
    if isinstance(found, dict) and found and all(type(v) is int and v >= 0 for v in found.values()):
        return dict(found), False
    if isinstance(found, dict) and found and all(key.isdecimal() for key in found):
        listed = {int(key): [value] if isinstance(value, str) else value for key, value in found.items()}
        if all(isinstance(v, list) and all(isinstance(name, str) for name in v) for v in listed.values()):
            return _merged([(name, k) for k, v in sorted(listed.items()) for name in v]), False
    raise PruneError(f"--classes {path} is not a mapping of class names", f"write {_EXAMPLE}")


def _numbered(names: list[str]) -> dict[str, int]:
    return _merged([(name, number) for number, name in enumerate(names)])


def _merged(pairs: list[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, number in pairs:
        found[name] = number if found.get(name, number) == number else _SEVERAL
    return found


_SEEN_AT_FIRST = 1000


@dataclass(frozen=True)
class FoundImages:
    """Files in order, their labels, and what the labels stand for."""

    files: list[Path]
    labels: InputColumn | None = None
    classes: Classes | None = None
    notes: tuple[str, ...] = ()


def _is_images(asked: DataOptions) -> bool:
    """Whether one of the first files, in the folder or below, has an image's suffix."""
    if not asked.path.is_dir():
        return False
    files = chain.from_iterable(asked.path.glob(pattern) for pattern in ("*.*", "*/*.*", "*/*/*.*"))
    return any(file.suffix.lower() in SUFFIXES for file in islice(files, _SEEN_AT_FIRST))


@source("images", "a folder of images, one sub-folder per class", _is_images, options=("--labels",))
def read_folder(asked: DataOptions, specs: Sequence[InputSpec], axes: Axes) -> Dataset:
    """Read a folder of images. Only the first image is decoded now, the others when their rows are used."""
    need_pillow()
    if len(specs) != 1:
        raise PruneError(f"images feed a model of one input, this one has {len(specs)}", "give arrays (.npz)")
    (spec,) = specs
    how = choose_preparation(asked.images, spec)
    found = _find(asked)
    if not found.files:
        raise PruneError(f"{asked.text} holds no images", f"they end in {', '.join(sorted(SUFFIXES))}")
    column = image_column(asked.text, found.files, how)
    data = build(specs, {spec.name: column}, found.labels, source=asked.text, axes=axes)
    return replace(data, classes=found.classes, notes=(f"images: {how.describe()}", *found.notes))


def _find(asked: DataOptions) -> FoundImages:
    folders = [entry for entry in _entries(asked.path) if entry.is_dir()]
    loose = [entry for entry in _entries(asked.path) if _is_image(entry)]
    if folders and loose:
        raise PruneError(f"{asked.text} holds images beside folders, as {loose[0].name} beside {folders[0].name}",
                         "put every image into the folder of its class")  # fmt: skip
    if folders:
        return _by_class(asked, folders)
    if asked.images.classes is not None:
        raise PruneError(f"{asked.text} has no sub-folders, so --classes has no meaning", "leave it out")
    labels = None if asked.labels is None else read_labels(asked.labels, asked.limit)
    return FoundImages(loose[: asked.limit], labels)


def _by_class(asked: DataOptions, folders: list[Path]) -> FoundImages:
    """Return the images of class folders. The classes alternate, so the first N samples have all classes."""
    if asked.labels is not None:
        raise PruneError(f"--labels does not go with {asked.text}", "its sub-folders are the labels; see --classes")
    numbers, classes = number_folders([_text(folder.name) for folder in folders], asked.images.classes, asked.text)
    files = [
        [(file, number) for file in _below(folder, set())] for folder, number in zip(folders, numbers, strict=True)
    ]
    turns = [pair for turn in zip_longest(*files) for pair in turn if pair is not None][: asked.limit]
    empty = [_text(folder.name) for folder, own in zip(folders, files, strict=True) if not own]
    notes = (f"folders without images, which are classes all the same: {', '.join(empty)}",) if empty else ()
    if asked.images.classes is None and numbers != list(range(len(folders))):
        notes = ("the folders are class numbers; --classes sorted takes them in the order of text, as torchvision does",
                 *notes)  # fmt: skip
    labels = InputColumn.of(f"{asked.text} labels", np.array([number for _, number in turns], np.int64))
    return FoundImages([file for file, _ in turns], labels, classes, notes=notes)


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder by name, without the hidden ones of file managers and archives."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    return [folder / name for name in names if not name.startswith(".") and name != "__MACOSX"]


def _below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield all images in a folder and its folders. `seen`: folders visited before, to which links may lead back."""
    at = folder.stat()
    if (at.st_dev, at.st_ino) in seen:
        return
    seen.add((at.st_dev, at.st_ino))
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _below(entry, seen)
        elif _is_image(entry):
            yield entry


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _text(name: str) -> str:
    """Return a file name as text: bytes that are no text become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
