"""The options of image folders, which every command that reads data adds by `@reads_images`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunecli.cli.groups import takes

if TYPE_CHECKING:
    from prunecli.data.images.options import ImageOptions

IMAGES = "Image folders"


def _option(name: str, metavar: str, help: str) -> Any:
    return typer.Option(name, metavar=metavar, help=help, rich_help_panel=IMAGES)


def _template(
    preset: Annotated[
        str | None,
        _option(
            "--preset",
            "imagenet|inception|caffe|clip",
            "resize, centre crop, scale, mean, std and order of channels as in those models; options below override it",
        ),
    ] = None,
    resize: Annotated[
        str | None, _option("--resize", "N|HxW", "shorter side to N, or to HxW exactly; default: as the images are")
    ] = None,
    crop: Annotated[str | None, _option("--crop", "N|HxW", "the centre, after --resize")] = None,
    interpolation: Annotated[
        str | None, _option("--interpolation", "nearest|bilinear|bicubic|lanczos", "of --resize; default bilinear")
    ] = None,
    scale: Annotated[
        str | None, _option("--scale", "F", "(F * x - mean) / std of pixels 0 to 255; default 1/255, of integers 1")
    ] = None,
    mean: Annotated[str | None, _option("--mean", "LIST", "one number or one per channel; default 0")] = None,
    std: Annotated[str | None, _option("--std", "LIST", "one number or one per channel; default 1")] = None,
    channel_order: Annotated[str | None, _option("--channel-order", "rgb|bgr", "default rgb")] = None,
    layout: Annotated[
        str | None, _option("--layout", "nchw|nhwc|chw|hwc|nhw", "axes of the input; default: by the model's shape")
    ] = None,
    classes: Annotated[
        str | None,
        _option(
            "--classes",
            "sorted|numbers|FILE",
            "class numbers of the sub-folders: by order of names (default), the names themselves, or from a .txt with"
            " a name per line or a .json",
        ),
    ] = None,
) -> ImageOptions:
    """The group: its parameters are a command's, and what was given is passed on as one value."""
    from prunecli.data.images.options import ImageOptions

    return ImageOptions.parse(
        preset=preset, resize=resize, crop=crop, interpolation=interpolation, scale=scale, mean=mean, std=std,
        order=channel_order, layout=layout, classes=classes,
    )  # fmt: skip


reads_images = takes(images=_template)
"""Gives a command the options of image folders; it takes what was given as `images: ImageOptions`."""
