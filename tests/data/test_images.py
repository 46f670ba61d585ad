"""Folders of images: order and classes, geometry and arithmetic, odd pixel formats, and files that mean harm."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.data import Dataset, ImageOptions, images
from prunecli.data.images import read_classes
from prunecli.data.preprocessing import PRESETS, Resize, choose_preparation, infer_layout
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec
from tests.data import open_text
from tests.tiny import spec

Images = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
RNG = np.random.default_rng(0)
RGB = "x: float32 (N, 3, 4, 4)"


def save(path: Path, pixels: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Images.fromarray(np.asarray(pixels)).save(path, **options)


def noise(height: int = 4, width: int = 4, channels: int = 3) -> Any:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def folder(root: Path, names: Iterable[str]) -> dict[str, Any]:
    """One image for each path, all different."""
    found = {name: noise() for name in names}
    for name, pixels in found.items():
        save(root / name, pixels)
    return found


def opened(
    root: Path, shape: str = RGB, limit: int | None = None, labels: Path | None = None, **options: str
) -> Dataset:
    return open_text(str(root), [spec(shape)], limit=limit, labels=labels, images=ImageOptions.parse(**options))


def first(data: Dataset) -> Any:
    return next(data.batches(64)).feed["x"]


def test_classes_are_in_the_order_of_names_and_take_turns(tmp_path: Path) -> None:
    made = folder(tmp_path, ["b/2.png", "b/1.png", "a/z.png", "a/deep/er/y.png", "C/3.jpg.png", "a/x.PNG"])
    (tmp_path / "d").mkdir()
    for name in (".git/1.png", "__MACOSX/2.png", "a/._x.png", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    data = opened(tmp_path)
    order = ["C/3.jpg.png", "a/deep/er/y.png", "b/1.png", "a/x.PNG", "b/2.png", "a/z.png"]
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 1, 2, 1]
    assert data.classes is not None
    assert data.classes.names == {0: "C", 1: "a", 2: "b", 3: "d"}
    assert data.notes[1] == "folders without images, which are classes all the same: d"
    expected = np.stack([made[name] for name in order]).transpose(0, 3, 1, 2) / 255
    assert np.allclose(first(data), expected, atol=1e-6)  # float32 keeps 7 digits
    assert np.array_equal(first(opened(tmp_path, limit=3)), first(data)[:3])
    shuffled = data.shuffled(1)
    assert shuffled.labels is not None
    assert [made[order[i]].tolist() for i in shuffled.chunks[0].index[:2]] == [
        np.rint(x * 255).astype(int).transpose(1, 2, 0).tolist() for x in first(shuffled)[:2]
    ]


def test_images_without_folders_have_no_labels_or_those_given(tmp_path: Path) -> None:
    folder(tmp_path / "x", ["b.png", "a.png"])
    assert not opened(tmp_path / "x").has_labels
    np.save(tmp_path / "y.npy", np.array([4, 5]))
    labelled = opened(tmp_path / "x", labels=tmp_path / "y.npy")
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [4, 5]


def test_links_are_followed_once(tmp_path: Path) -> None:
    folder(tmp_path / "x", ["a/1.png"])
    (tmp_path / "x" / "a" / "loop").symlink_to(tmp_path / "x", target_is_directory=True)
    (tmp_path / "x" / "b").symlink_to(tmp_path / "x" / "a", target_is_directory=True)
    data = opened(tmp_path / "x")
    assert data.labels is not None
    assert data.labels.tolist()[:2] == [0, 1]


LAYOUTS = [
    # input, --layout, the sample's shape from a 4 x 5 image
    ("x: float32 (N, 3, 4, 5)", None, (3, 4, 5)),
    ("x: float32 (N, 4, 5, 3)", None, (4, 5, 3)),
    ("x: float32 (N, 1, 4, 5)", None, (1, 4, 5)),
    ("x: float32 (N, 4, 5, 1)", None, (4, 5, 1)),
    ("x: float32 (N, 3, H, W)", None, (3, 4, 5)),
    ("x: uint8 (N, H, W, 3)", None, (4, 5, 3)),
    ("x: float32 (N, channels, H, W)", None, (3, 4, 5)),
    ("x: float32 (N, A, B, D)", "nhwc", (4, 5, 3)),
    ("x: float32 (N, 4, 5)", "nhw", (4, 5)),
    ("x: float32 (3, 4, 5)", None, (3, 4, 5)),
    ("x: float32 (4, 5, 3)", None, (4, 5, 3)),
]


@pytest.mark.parametrize(("shape", "layout", "sample"), LAYOUTS)
def test_layouts(shape: str, layout: str | None, sample: tuple[int, ...], tmp_path: Path) -> None:
    pixels = noise(4, 5)
    save(tmp_path / "a/1.png", pixels)
    data = opened(tmp_path, shape, **({"layout": layout} if layout else {}))
    feed = first(data)
    assert feed.shape[-len(sample) :] == sample
    if 3 in sample:
        value = feed.reshape(sample) * (1 if "uint8" in shape else 255)
        value = value.transpose(1, 2, 0) if sample[0] == 3 else value
        assert np.allclose(value, pixels, atol=1e-4)  # float32 at 255


UNCLEAR = [
    "x: float32 (N, A, B, D)",
    "x: float32 (N, 3, 4, 3)",
    "x: float32 (N, 1, 4, 1)",
    "x: float32 (1, 5, 5)",
    "x: float32 ()",
]


@pytest.mark.parametrize("shape", UNCLEAR)
def test_an_unclear_layout_is_asked_for(shape: str) -> None:
    with pytest.raises(PruneError, match="not clear which axis") as found:
        infer_layout(spec(shape))
    assert "--layout" in found.value.hint


def test_imagenet_is_resize_crop_scale_and_normalise(tmp_path: Path) -> None:
    """Against the steps written out: shorter side to 256 of bilinear, centre 224, (x / 255 - mean) / std."""
    pixels = noise(300, 400)
    save(tmp_path / "a/1.png", pixels)
    got = first(opened(tmp_path, "x: float32 (N, 3, 224, 224)", preset="imagenet"))[0]
    resized = Images.fromarray(pixels).resize((341, 256), Images.Resampling.BILINEAR)
    cropped = np.asarray(resized)[16:240, 58:282]  # (341 - 224) / 2 = 58.5, to even
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert np.allclose(got, ((cropped / 255 - mean) / std).transpose(2, 0, 1), atol=1e-5)  # float32 near 1


PREPARED: list[tuple[dict[str, str], Any]] = [
    # options, what becomes of the pixel (10, 20, 30)
    ({}, np.array([10, 20, 30]) / 255),
    ({"scale": "1"}, [10, 20, 30]),
    ({"scale": "1/127.5", "mean": "1"}, np.array([10, 20, 30]) / 127.5 - 1),
    ({"scale": "1", "mean": "1,2,3", "std": "2,4,5"}, [4.5, 4.5, 5.4]),
    ({"scale": "1", "order": "bgr"}, [30, 20, 10]),
    ({"preset": "caffe"}, [30 - 103.939, 20 - 116.779, 10 - 123.68]),
    ({"preset": "caffe", "order": "rgb", "mean": "0"}, [10, 20, 30]),
    ({"preset": "inception"}, np.array([10, 20, 30]) / 127.5 - 1),
    ({"preset": "clip", "std": "1"}, np.array([10, 20, 30]) / 255 - [0.48145466, 0.4578275, 0.40821073]),
    ({"preset": "imagenet", "mean": "0", "std": "1"}, np.array([10, 20, 30]) / 255),
]


@pytest.mark.parametrize(("options", "expected"), PREPARED)
def test_arithmetic(options: dict[str, str], expected: Any, tmp_path: Path) -> None:
    save(tmp_path / "a/1.png", np.full((9, 9, 3), (10, 20, 30), np.uint8))
    sized = {"resize": "4x4"} if "preset" not in options else {}
    got = first(opened(tmp_path, **sized, **options))[0]
    assert np.allclose(got, np.reshape(expected, (3, 1, 1)), rtol=1e-5, atol=1e-6)  # float32


def test_every_preset_is_tested() -> None:
    assert {options.get("preset") for options, _ in PREPARED} >= set(PRESETS)


def test_integer_inputs_take_the_pixels(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png", pixels := noise())
    assert np.array_equal(first(opened(tmp_path, "x: uint8 (N, 4, 4, 3)"))[0], pixels)
    with pytest.raises(PruneError, match="fractions"):
        first(opened(tmp_path, "x: uint8 (N, 4, 4, 3)", scale="1/255"))


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600), st.integers(1, 600))
def test_covering_covers_and_no_more(height: int, width: int, h: int, w: int) -> None:
    share = max(Fraction(h, height), Fraction(w, width))
    expected = (max(h, math.floor(height * share)), max(w, math.floor(width * share)))
    assert Resize(h, w, exact=False).size(height, width) == expected


def grey16(path: Path) -> None:
    path.parent.mkdir(parents=True)
    Images.fromarray(np.full((4, 4), 0x8040, np.uint16)).save(path)


def turned(path: Path) -> None:
    """Orientation 6: the camera lay on its side; upright it is turned clockwise."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0, :2] = 200  # upper left in the file, upper right when upright
    exif = Images.Exif()
    exif[0x0112] = 6
    save(path, pixels, exif=exif)


def with_palette(path: Path) -> None:
    path.parent.mkdir(parents=True)
    Images.new("RGB", (4, 4), (10, 20, 30)).quantize(2).save(path, transparency=0)


def plain(mode: str, color: Any, size: tuple[int, int] = (4, 4)) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.parent.mkdir(parents=True)
        Images.new(mode, size, color).save(path)

    return make


MODES: list[tuple[str, str, Callable[[Path], None], Any]] = [
    # kind, file, how to make it, its first pixel for an RGB model
    ("grey", "1.png", plain("L", 7), [7, 7, 7]),
    ("grey and alpha", "1.png", plain("LA", (7, 0)), [7, 7, 7]),
    ("one bit", "1.png", plain("1", 1), [255, 255, 255]),
    ("alpha", "1.png", plain("RGBA", (10, 20, 30, 0)), [10, 20, 30]),
    ("palette", "1.png", with_palette, [10, 20, 30]),
    ("gif", "1.gif", plain("P", 0), [0, 0, 0]),
    ("cmyk", "1.tif", plain("CMYK", (0, 255, 255, 0)), [255, 0, 0]),
    ("16 bit", "1.png", grey16, [0x80, 0x80, 0x80]),
    ("16 bit tiff", "1.tif", grey16, [0x80, 0x80, 0x80]),
    ("bmp", "1.bmp", plain("RGB", (10, 20, 30)), [10, 20, 30]),
    ("webp", "1.webp", plain("RGB", (255, 255, 255)), [255, 255, 255]),
    ("ppm", "1.ppm", plain("RGB", (10, 20, 30)), [10, 20, 30]),
    ("turned", "1.png", turned, [0, 0, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "pixel"), [case[1:] for case in MODES], ids=[case[0] for case in MODES])
def test_pixel_formats(name: str, make: Callable[[Path], None], pixel: list[int], tmp_path: Path) -> None:
    make(tmp_path / "a" / name)
    got = first(opened(tmp_path, scale="1"))[0]
    assert got[:, 0, 0].tolist() == pixel
    if make is turned:
        assert (got[:, :2, 3] == 200).all()
        assert got.sum() == 6 * 200


def test_grey_and_alpha_models(tmp_path: Path) -> None:
    plain("RGBA", (255, 0, 0, 9))(tmp_path / "a" / "1.png")
    assert first(opened(tmp_path, "x: uint8 (N, 1, 4, 4)"))[0, 0, 0, 0] == 76  # 0.299 red, ITU-R 601
    assert first(opened(tmp_path, "x: uint8 (N, 4, 4, 4)", layout="nhwc"))[0, 0, 0].tolist() == [255, 0, 0, 9]
    grey = first(opened(tmp_path, "x: float32 (N, 1, 4, 4)", preset="imagenet"))[0, 0, 0, 0]
    assert grey == pytest.approx((76 / 255 - 0.449) / 0.226, abs=1e-5)  # the means of the preset's channels


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims that many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def jpeg() -> bytes:
    file = io.BytesIO()
    Images.fromarray(noise(64, 64)).save(file, "JPEG")
    return file.getvalue()


BAD: list[tuple[str, bytes, str]] = [
    # name, bytes, message
    ("empty.png", b"", "is not an image that can be read"),
    ("text.jpg", b"hello", "is not an image that can be read"),
    ("cut.jpg", jpeg()[:900], "cannot be decoded: .*truncated"),
    ("cut.png", bomb(64, 64), "cannot be decoded"),
    ("big.png", bomb(16_000, 10_000), "is 16000 x 10000 pixels, over the limit"),
    ("huge.png", bomb(1 << 30, 1 << 30), "over 134,217,728 pixels"),
    ("script.eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "is not an image that can be read"),
    ("disguised.png", jpeg(), ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=[case[0] for case in BAD])
def test_bad_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    folder(tmp_path, ["a/0.png"])
    (tmp_path / "a" / name).write_bytes(content)
    data = opened(tmp_path, resize="4x4")
    if not message:
        assert first(data).shape == (2, 3, 4, 4)
        return
    with pytest.raises(PruneError, match=message) as found:
        first(data)
    assert f"a/{name}" in found.value.message
    assert "Traceback" not in found.value.message


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a/1.tif", np.zeros((4, 4), np.float32))
    with pytest.raises(PruneError, match="floating-point pixels of unknown range"):
        opened(tmp_path)


def test_a_strip_does_not_explode_when_its_short_side_grows(tmp_path: Path) -> None:
    plain("L", 0, (1, 60_000))(tmp_path / "a" / "1.png")
    with pytest.raises(PruneError, match="once resized, is 256 x 15360000 pixels"):
        opened(tmp_path, "x: float32 (N, 3, 224, 224)", preset="imagenet")


def test_what_is_no_file_is_no_image(tmp_path: Path) -> None:
    folder(tmp_path, ["a/0.png"])
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "gone.png").symlink_to("nowhere.png")
    assert len(opened(tmp_path)) == 1


REFUSED: list[tuple[list[str], str, dict[str, str], str]] = [
    # files, input, options, message
    (["a/1.png", "2.png"], RGB, {}, "images beside folders, as 2.png beside a"),
    (["10/1.png", "2/1.png"], RGB, {}, "not those from 0 on"),
    (["3/1.png"], RGB, {}, "not those from 0 on"),
    (["x/1.png"], RGB, {"classes": "numbers"}, "no class number"),
    (["1.png"], RGB, {"classes": "numbers"}, "no sub-folders"),
    (["a/1.png"], RGB, {"classes": "gone.txt"}, "no file of class names"),
    (["a/1.png"], "x: float32 (N, 3, 8, 8)", {}, "is 4x4 .*the model takes 8x8"),
    (["a/1.png"], "x: float32 (N, 3, 8, 8)", {"crop": "8"}, "smaller than the crop of 8x8"),
    (["a/1.png"], "x: float32 (N, 3, 8, 8)", {"crop": "2"}, "images of 2x2 do not fit"),
    (["a/1.png"], "x: float32 (N, 3, 8, 8)", {"resize": "4x8"}, "images of 4x8 do not fit"),
    (["a/1.png"], "x: float32 (N, 2, 8, 8)", {"layout": "nchw"}, "has 2 channels"),
    (["a/1.png"], RGB, {"layout": "chw"}, "has 3 axes"),
    (["a/1.png"], RGB, {"mean": "1,2"}, "--mean has 2 numbers for 3 channels"),
    (["a/1.png"], "x: str (N, 3, 4, 4)", {}, "takes no images"),
    (["a/1.png"], "x: float32 (N, 3)", {}, "not shaped as images"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "shape", "options", "message"), REFUSED)
def test_refusals(files: list[str], shape: str, options: dict[str, str], message: str, tmp_path: Path) -> None:
    folder(tmp_path, files)
    with pytest.raises(PruneError, match=message) as found:
        opened(tmp_path, shape, **options)
    assert found.value.hint


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png", noise(4, 4))
    save(tmp_path / "a/2.png", noise(4, 6))
    data = opened(tmp_path, "x: float32 (N, 3, H, W)")
    with pytest.raises(PruneError, match=r"a/2.png is 4x6 \(height x width\), the first is 4x4") as found:
        first(data)
    assert "--resize 32x32" in found.value.hint  # what networks can halve five times
    assert first(opened(tmp_path, "x: float32 (N, 3, H, W)", resize="8", crop="8x6")).shape == (2, 3, 8, 6)


def test_models_of_several_inputs_take_no_images(tmp_path: Path) -> None:
    folder(tmp_path, ["a/1.png"])
    with pytest.raises(PruneError, match="one input"):
        open_text(str(tmp_path), [spec(RGB), spec("y: float32 (N, 3)")])


def test_labels_of_folders_are_the_folders(tmp_path: Path) -> None:
    folder(tmp_path, ["a/1.png"])
    np.save(tmp_path.parent / "y.npy", np.array([0]))
    with pytest.raises(PruneError, match="--labels does not go with"):
        opened(tmp_path, labels=tmp_path.parent / "y.npy")


def test_options_of_images_are_for_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((1, 3)))
    with pytest.raises(PruneError, match="--channel-order does not go with"):
        open_text(str(tmp_path / "d.npz"), [spec("x: float32 (N, 3)")], images=ImageOptions.parse(order="bgr"))


CLASS_FILES: list[tuple[str, str, list[int], bool]] = [
    # name, content, the numbers of the folders cat, hot dog and n01, whether all classes are listed
    ("c.txt", "dog\nhot dog\nn01 tench, Tinca\ncat\n\n", [3, 1, 2], True),
    ("c.json", '["n01", "cat", "hot dog"]', [1, 2, 0], True),
    ("c.json", '{"cat": 7, "hot dog": 2, "n01": 999}', [7, 2, 999], False),
    ("c.json", '{"0": ["n02", "crane"], "5": ["n01", "cat"], "1": "hot dog", "9": ["n03", "crane"]}', [5, 1, 5], False),
]


@pytest.mark.parametrize(("name", "content", "numbers", "complete"), CLASS_FILES)
def test_class_files(name: str, content: str, numbers: list[int], complete: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    folder(tmp_path / "x", ["cat/1.png", "hot dog/1.png", "n01/1.png"])
    data = opened(tmp_path / "x", classes=str(tmp_path / name))
    assert data.labels is not None
    assert data.labels.tolist() == numbers
    assert data.classes is not None
    assert data.classes.complete == complete
    (tmp_path / "x" / "crane").mkdir()
    with pytest.raises(PruneError, match=r"has no class crane|several classes named crane"):
        opened(tmp_path / "x", classes=str(tmp_path / name))


BAD_CLASS_FILES = ["{", "3", '{"a": "b"}', '{"a": -1}', "[1, 2]", '{"0": [1]}', "[" * 100_000, "{}", '{"a": true}']


@pytest.mark.parametrize("content", BAD_CLASS_FILES, ids=range(len(BAD_CLASS_FILES)))
def test_bad_class_files(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(PruneError, match="--classes"):
        read_classes(tmp_path / "c.json")


def test_numbers_as_names(tmp_path: Path) -> None:
    folder(tmp_path, ["10/1.png", "9/1.png", "007/1.png"])
    data = opened(tmp_path, classes="numbers")
    assert data.labels is not None
    assert data.labels.tolist() == [7, 10, 9]
    assert opened(tmp_path, classes="sorted").labels.tolist() == [0, 1, 2]  # type: ignore[union-attr]


BAD_OPTIONS = [
    ("mean", "a"), ("mean", ""), ("std", "0"), ("std", "1,-1"), ("scale", "1/0"), ("scale", "nan"), ("resize", "0"),
    ("resize", "1x2x3"), ("resize", "99999"), ("crop", "-1"), ("layout", "hcw"), ("preset", "x"), ("order", "gbr"),
    ("interpolation", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), BAD_OPTIONS)
def test_bad_options_are_named(name: str, text: str) -> None:
    with pytest.raises(PruneError) as found:
        ImageOptions.parse(**{name: text})
    assert {"order": "--channel-order"}.get(name, f"--{name}") in found.value.message


def test_images_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a batch is decoded at a time; what fits the cache is decoded once, the rest every time."""
    folder(tmp_path, [f"a/{i}.png" for i in range(8)])
    seen: list[str] = []
    real = images.decode
    monkeypatch.setattr(images, "decode", lambda path, *rest: seen.append(path.name) or real(path, *rest))
    monkeypatch.setattr(images, "CACHE_BYTES", 3 * 4 * 4 * 3)
    data = opened(tmp_path)
    assert seen == ["0.png"]
    batches = data.batches(2)
    next(batches)
    assert sorted(seen) == ["0.png", "0.png", "1.png"]
    values = [b.feed["x"] for b in data.batches(2)]
    seen.clear()
    again = [b.feed["x"] for b in data.batches(2)]
    assert sorted(seen) == [f"{i}.png" for i in range(3, 8)]
    assert all(np.array_equal(a, b) for a, b in zip(values, again, strict=True))


def test_a_copy_for_another_process_carries_no_pixels(tmp_path: Path) -> None:
    made = folder(tmp_path, [f"{i}.png" for i in range(4)])
    how = choose_preparation(ImageOptions(), spec(RGB))
    pixels = images.Pixels("x", [tmp_path / name for name in made], how, (4, 4))
    rows = pixels.rows(np.arange(4))
    assert len(pixels.kept) == 4
    copy = pickle.loads(pickle.dumps(pixels))
    assert copy.kept == {}
    assert np.array_equal(copy.rows(np.arange(4)), rows)


def test_what_was_done_is_told(tmp_path: Path) -> None:
    folder(tmp_path, ["a/1.png"])
    data = opened(tmp_path, preset="imagenet")
    assert data.notes == (
        "images: shorter side to 5 (bilinear), centre 4x4, RGB, (x * 0.003922 - 0.485,0.456,0.406) / 0.229,0.224,0.225",
    )
    assert opened(tmp_path, "x: uint8 (N, 4, 4, 3)").notes == ("images: RGB, pixels 0 to 255",)


def test_the_preparation_of_an_input_of_unknown_rank() -> None:
    how = choose_preparation(ImageOptions.parse(layout="nhwc", resize="6x7"), InputSpec("x", "float32", ()))
    assert how.shape((6, 7)) == (6, 7, 3)


def test_class_names_of_json_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"3": ["n1", "cat"]}))
    names, complete = read_classes(tmp_path / "c.json")
    assert (names, complete) == ({"n1": 3, "cat": 3}, False)
