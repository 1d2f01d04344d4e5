"""What the sections of zero modes share: tables read with care, components in order, and heat maps over layers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lesion.errors import RunFolderError
from lesion.report.content import Grid
from lesion.report.drawing.grid import size
from lesion.report.drawing.style import clean, tick
from lesion.report.numbers import decimals, listed, number
from lesion.report.palette import DOMAIN_MARKERS
from lesion.results import RunView

PROJECTIONS = ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "fc1", "down", "fc2")
"""Projection matrices inside blocks, in the order in which figures and sentences name them."""
NAMES = {
    "q": "W_Q",
    "k": "W_K",
    "v": "W_V",
    "qkv": "W_QKV",
    "o": "W_O",
}
"""Components as the paper calls them; the others go by their own names."""
TINY = 1e-3
"""Below it a number is written with a power of ten."""
LONGEST = 100
"""Characters of a name that a sentence shows."""


def main_table(run: RunView, name: str) -> pd.DataFrame:
    """The table that the study cannot do without.

    Raises:
        RunFolderError: the run has no rows yet.
    """
    table = run.table(name) if name in run.tables else pd.DataFrame()
    if table.empty:
        status = run.manifest["status"]
        raise RunFolderError(
            f"{run.path} has no results to report yet (status {status}); give its command again to finish it"
        )
    return table


def optional_table(run: RunView, name: str) -> pd.DataFrame | None:
    """A table that not every run has; None where it is absent or has no rows."""
    table = run.table(name) if name in run.tables else pd.DataFrame()
    return None if table.empty else table


def total(rows: pd.DataFrame) -> tuple[pd.Series | None, str]:
    """The row of all projection matrices inside blocks and where that is, in words; else that of all tensors.

    None where the table has neither, or both are empty.
    """
    sums = rows[rows["tensor"].isna() & rows["layer"].isna() & (rows["n_weights"] > 0)]
    places = {"projections": "in the projection matrices", "all": "in all tensors"}
    for component, where in places.items():
        found = sums[sums["component"] == component]
        if len(found):
            return found.iloc[0], where
    return None, ""


def in_order(components: Sequence[str]) -> list[str]:
    """Projections among `components`, in the order of figures."""
    found = set(components)
    return [name for name in PROJECTIONS if name in found]


def projections(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of projection matrices inside blocks."""
    return table[table["layer"].notna() & table["component"].isin(PROJECTIONS)]


def called(component: str) -> str:
    """A component as a sentence names it."""
    return NAMES.get(component, component)


def weighted(table: pd.DataFrame, value: str, weight: str) -> float:
    """The mean of `value` weighted by `weight` over rows that have both; NaN where none has."""
    values, weights = numbers(table, value), numbers(table, weight)
    chosen = np.isfinite(values) & (weights > 0)
    return float(np.average(values[chosen], weights=weights[chosen])) if chosen.any() else math.nan


def ratio(table: pd.DataFrame, part: str, whole: str) -> float:
    """Sum of `part` over sum of `whole`; NaN where the latter is 0."""
    below = float(numbers(table, whole).sum())
    return float(numbers(table, part).sum()) / below if below else math.nan


def numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column as float64, null as NaN."""
    return np.asarray(pd.to_numeric(table[column]), dtype=np.float64)


def by_place(table: pd.DataFrame, measure: Any) -> tuple[list[str], list[int], np.ndarray]:
    """`measure` of the rows of each component and layer.

    Args:
        table: rows of projections with `layer` and `component`.
        measure: from such rows to a number.

    Returns:
        Components, layers, and the numbers: components × layers, NaN where there are no rows.
    """
    components, layers = in_order(list(table["component"])), sorted({int(layer) for layer in table["layer"]})
    values = np.full((len(components), len(layers)), np.nan)
    for (layer, component), rows in table.groupby(["layer", "component"]):
        values[components.index(str(component)), layers.index(int(layer))] = measure(rows)  # type: ignore[call-overload]
    return components, layers, values


def heat(title: str, table: pd.DataFrame, measure: Any, **more: Any) -> Grid:
    """A heat map of `measure`: a row a component, a column a layer."""
    components, layers, values = by_place(table, measure)
    return Grid(title, tuple(map(called, components)), tuple(map(str, layers)), values, **more)


def columns(panels: Sequence[Grid]) -> int:
    """How wide a figure of heat maps is: as the widest of them, or three that are narrow side by side."""
    widest = max(size(panel)[0] for panel in panels)
    return 3 if widest == 1 else widest


def significant(value: float) -> str:
    """A number to three digits; a whole one without decimals."""
    value = float(value)
    if 0 < abs(value) < TINY:
        return tick(float(f"{value:.3g}"))
    return number(value, 0 if value.is_integer() else max(0, decimals(value) - 1))


def share(value: float) -> str:
    """A share as per cent, to three digits; `0 %` only where it is 0."""
    if math.isnan(value):
        return "–"
    return f"{'0' if value == 0 else significant(100 * value)}\u00a0%"


def named(checkpoint: Mapping[str, Any]) -> str:
    """A checkpoint's name, short enough for a sentence."""
    return clean(str(checkpoint["name"]), LONGEST)


def components_list(components: Sequence[str]) -> str:
    """`W_Q, W_K and gate`."""
    return listed([called(name) for name in components])


def warnings(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What the run warned of."""
    yield from (f"Warning: {clean(str(warning), 1000)}." for warning in manifest.get("warnings", []))


def role_and_marker(index: int) -> tuple[str, str]:
    """The colour and the marker of a component in a figure of several."""
    return f"domain_{index % len(DOMAIN_MARKERS)}", DOMAIN_MARKERS[index % len(DOMAIN_MARKERS)]
