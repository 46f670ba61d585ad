"""Data for calibration, training and evaluation: read from what the command line allows, matched to a model's
inputs, cast to their types, in batches that the model accepts."""

from prunecli.data import arrays, images, loader, tables, zoo  # noqa: F401 - they register themselves as sources
from prunecli.data.dataset import Batch, Classes, Dataset
from prunecli.data.options import DataOptions
from prunecli.data.preprocessing import ImageOptions
from prunecli.data.synthetic import random_data

__all__ = ["Batch", "Classes", "DataOptions", "Dataset", "ImageOptions", "random_data"]
