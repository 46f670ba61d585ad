"""`table.csv` with `--label-column NAME`: a header line, then one sample per line."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.arrays import Array
from prunecli.data.axes import Axes
from prunecli.data.columns import InputColumn, check_budget
from prunecli.data.dataset import Dataset, build
from prunecli.data.options import DataOptions, has_suffix, source
from prunecli.errors import PruneError
from prunecli.inputs import InputSpec

_DELIMITERS = ",;\t|"
_BLOCK = 4096
_MAX_LABEL = 1000


@dataclass(frozen=True)
class CsvTable:
    """The cells as variable-width text, (rows, columns), and the header."""

    name: str
    header: list[str]
    cells: Array

    def text(self, column: str) -> Array:
        return np.asarray(self.cells[:, self.header.index(column)])

    def numbers(self, names: Sequence[str]) -> Array:
        """Return those columns as float64, (rows, len(names)).

        Raises:
            PruneError: a cell that is not a number, with its line and column.
        """
        cells = self.cells[:, [self.header.index(name) for name in names]]
        try:
            values: Array = cells.astype(np.float64)
        except ValueError:
            values = np.vectorize(_number, otypes=[np.float64])(cells)
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise PruneError(
                f"{self.name} sample {row + 1}, column {names[column]}: {str(cells[row, column])[:40]!r} is"
                " not a finite number",
                "fill in missing values and encode text as numbers, as the model was trained",
            )
        return values


@source("csv", "table.csv with --label-column NAME", has_suffix(".csv"), options=("--label-column",))
def read_csv(asked: DataOptions, specs: Sequence[InputSpec], axes: Axes) -> Dataset:
    """A model with one input takes all columns but the label, in the order of the header; a model with one
    input per column (as scikit-learn pipelines are converted) takes them by name."""
    table = read_table(asked.path, asked.limit)
    labels = None
    features = list(table.header)
    if asked.label_column is not None:
        labels = _labels(table, asked.label_column)
        features.remove(asked.label_column)
    numeric = [s for s in specs if s.is_tensor]
    if len(numeric) == 1:
        columns = {numeric[0].name: _matrix(table, features, numeric[0])}
    else:
        columns = _by_column(table, features, specs)
    return build(specs, columns, labels, source=asked.text, axes=axes)


def read_table(path: Path, limit: int | None = None) -> CsvTable:
    """Read the first `limit` lines. The delimiter is that of , ; tab | which is most frequent in the header.

    Raises:
        PruneError: not text, no header, repeated column names, ragged lines, or no lines.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline(1 << 20)
            stream.seek(0)
            lines = csv.reader(stream, delimiter=max(_DELIMITERS, key=first.count), strict=True)
            header = [name.strip() for name in next(lines, [])]
            _check_header(path, header)
            cells = _cells(path, header, islice(_rows(path, header, lines), limit))
    except (UnicodeDecodeError, csv.Error) as error:
        raise PruneError(f"{path.name} is not a readable CSV file: {error}", "save it as UTF-8 text") from error
    return CsvTable(path.name, header, cells)


def _check_header(path: Path, header: list[str]) -> None:
    if not header or not all(header):
        raise PruneError(f"{path.name} has no header line with a name for each column", "add one")
    double = next((name for name in header if header.count(name) > 1), None)
    if double is not None:
        raise PruneError(f"{path.name} has two columns named {double}", "rename one")
    counted = [[str(n + start) for n in range(len(header))] for start in (0, 1)]
    if header not in counted and all(math.isfinite(_number(name)) for name in header):
        raise PruneError(f"the first line of {path.name} is all numbers", "add a header line with names")


def _rows(path: Path, header: list[str], lines: Any) -> Iterator[list[str]]:
    for row in lines:
        if not row:
            continue
        if len(row) != len(header):
            raise PruneError(
                f"{path.name} line {lines.line_num} has {len(row)} cells, the header has {len(header)}",
                "repair that line",
            )
        yield [cell.strip() for cell in row]


def _cells(path: Path, header: list[str], rows: Iterator[list[str]]) -> Array:
    blocks, count = [], 0
    while block := list(islice(rows, _BLOCK)):
        blocks.append(np.array(block, dtype=np.dtypes.StringDType()))
        count += len(block)
        check_budget(path.name, (count, len(header)), blocks[-1].dtype)
    if not blocks:
        raise PruneError(f"{path.name} has a header, but no samples", "add lines")
    return np.concatenate(blocks)


def _labels(table: CsvTable, name: str) -> InputColumn:
    if name not in table.header:
        raise PruneError(f"{table.name} has no column named {name}", f"its columns are {', '.join(table.header)}")
    text = table.text(name)
    empty = np.flatnonzero(text == "")
    if len(empty):
        raise PruneError(f"{table.name} sample {empty[0] + 1} has no {name}", "every sample needs its label")
    if max(map(len, text)) > _MAX_LABEL:
        raise PruneError(f"{table.name} has labels of over {_MAX_LABEL} characters", "give class names")
    return InputColumn.of(f"{table.name}:{name}", as_labels(text))


def as_labels(text: Array) -> Array:
    """Text as int64 if every cell is a whole number, else float64 if all are numbers, else as it is."""
    for dtype in (np.int64, np.float64):
        try:
            return text.astype(dtype)
        except (ValueError, OverflowError):
            continue
    return np.array(text.tolist(), np.str_)


def _matrix(table: CsvTable, features: list[str], spec: InputSpec) -> InputColumn:
    """All features as one array, reshaped row by row if the input's fixed dimensions ask for it."""
    wanted = spec.shape[1:]
    fixed = [d for d in wanted if isinstance(d, int)]
    size = int(np.prod(fixed)) if len(fixed) == len(wanted) else None
    if spec.shape and (size if size is not None else len(features)) != len(features):
        raise PruneError(
            f"{table.name} has {len(features)} feature columns, the model's input is {spec.describe()}",
            "name the label with --label-column, and leave out columns that are not features",
        )
    name = f"{table.name}:{features[0]}..{features[-1]}" if features else table.name
    cells = _strings(table, features) if spec.dtype == "str" else table.numbers(features)
    if len(fixed) == len(wanted) > 1 or not wanted:
        cells = cells.reshape(len(cells), *fixed)
    return InputColumn.of(name, cells)


def _strings(table: CsvTable, features: list[str]) -> Array:
    return np.asarray(table.cells[:, [table.header.index(name) for name in features]])


def _by_column(table: CsvTable, features: list[str], specs: Sequence[InputSpec]) -> dict[str, InputColumn]:
    columns = {}
    for spec in specs:
        if spec.name not in features:
            raise PruneError(
                f"{table.name} has no column for the model's input {spec.describe()}",
                f"its feature columns are {', '.join(features)}",
            )
        cells = _strings(table, [spec.name]) if spec.dtype == "str" else table.numbers([spec.name])
        columns[spec.name] = InputColumn.of(f"{table.name}:{spec.name}", cells[:, 0] if len(spec.shape) == 1 else cells)
    return columns


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
