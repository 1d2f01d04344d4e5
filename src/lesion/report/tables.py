"""Tables for the page: a value and its standard error in one cell, units in the head, a sort key in each cell."""

import math
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lesion.report.figures import clean
from lesion.report.numbers import Measure, decimals, measured, number

LONGEST_TEXT = 200
"""Characters of a cell that is no number; the table in `tables/` has them all."""
UNITS = ("nats", "bits")
WORDS = {"kl": "KL", "top1": "top-1", "mlp": "MLP", "nan": "NaN"}


class Cell(NamedTuple):
    """What a cell shows, and what it is sorted by."""

    text: str
    key: str
    is_number: bool


class Table(NamedTuple):
    """A table ready for the template."""

    head: list[tuple[str, bool]]
    rows: list[list[Cell]]


def table_of(frame: pd.DataFrame) -> Table:
    """All columns and rows of `frame`; `x_sem` joins `x`, null is an empty cell."""
    errors = {f"{name}_sem" for name in frame.columns} & set(frame.columns)
    columns = [str(name) for name in frame.columns if name not in errors]
    numeric = {name: bool(pd.api.types.is_numeric_dtype(frame[name])) for name in columns}
    head = [(heading(name), numeric[name]) for name in columns]
    places = {name: _places(frame, name) for name in columns if numeric[name]}
    rows = [[_cell(row, name, places.get(name)) for name in columns] for row in frame.to_dict("records")]
    return Table(head, rows)


def heading(column: str) -> str:
    """`loss_change_nats` as `loss change (nats)`, `kl_nats` as `KL (nats)`."""
    words = column.split("_")
    unit = next((word for word in words if word in UNITS), None)
    text = " ".join(WORDS.get(word, word) for word in words if word not in UNITS)
    return f"{text} ({unit})" if unit else text


def _places(frame: pd.DataFrame, name: str) -> int | None:
    if pd.api.types.is_integer_dtype(frame[name]):
        return 0
    if f"{name}_sem" in frame.columns and frame[f"{name}_sem"].notna().any():
        return None  # by each row's own standard error
    largest = float(frame[name].abs().max())
    return decimals(largest) if math.isfinite(largest) else 2


def _cell(row: Mapping[Hashable, Any], name: str, places: int | None) -> Cell:
    value = row[name]
    if isinstance(value, list | tuple | np.ndarray):  # a shape
        return Cell(clean(" × ".join(str(part) for part in value), LONGEST_TEXT), "", False)
    if pd.isna(value):
        return Cell("", "", isinstance(value, float))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(clean(str(value), LONGEST_TEXT), "", False)
    sem = row.get(f"{name}_sem", math.nan)
    error = float(sem) if isinstance(sem, int | float) else math.nan
    text = number(float(value), places) if places is not None else measured(Measure(float(value), error))
    return Cell(text, f"{value:.8g}", True)
