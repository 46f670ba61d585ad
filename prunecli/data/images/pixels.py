"""A column of images that are decoded when their rows are asked for, so that a set of any size streams."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.data.columns import InputColumn, check_budget
from prunecli.data.images.decode import decode
from prunecli.data.images.prepare import Preparation
from prunecli.errors import PruneError

Array = np.ndarray[Any, Any]

CACHE_BYTES = 512 << 20
"""Pixels kept in memory, for what passes over the data many times; the other images are decoded each time."""


def image_column(name: str, files: Sequence[Path], how: Preparation) -> InputColumn:
    """The images as the model's input, (images, *sample). All have the size that `how` fixes, else the first's.

    Raises:
        PruneError: the first image cannot be read; the others are read with their rows.
    """
    first = decode(files[0], f"{name}: {_short(files[0])}", how)
    height, width = how.size or first.shape[:2]
    pixels = Pixels(name, files, how, (height, width))
    pixels.check(first, 0)
    shape, dtype = (len(files), *how.shape((height, width))), np.dtype(np.uint8 if how.raw else np.float32)

    def read() -> Array:
        check_budget(name, shape, dtype)
        return pixels.rows(np.arange(len(files)))

    return InputColumn(name, shape, dtype, read, pixels.rows)


@dataclass
class Pixels:
    """Decodes files on a few threads (decoders release the interpreter), in the order asked for."""

    name: str
    files: Sequence[Path]
    how: Preparation
    size: tuple[int, int]
    kept: dict[int, Array] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """Without the pixels: another process decodes its own."""
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
            raise PruneError(
                f"{self.name}: {_short(self.files[i])} is {have} (height x width), {whose} {want}",
                f"give --preset imagenet, or --resize {want} to change the aspect, or --resize and --crop",
            )

    def _decode(self, i: int) -> Array:
        pixels = decode(self.files[i], f"{self.name}: {_short(self.files[i])}", self.how)
        pixels = pixels.reshape(*pixels.shape[:2], self.how.channels)
        self.check(pixels, i)
        return pixels


def _short(path: Path) -> str:
    """The folder of the class and the file."""
    return os.fsencode(Path(path.parent.name, path.name)).decode("utf-8", "backslashreplace")
