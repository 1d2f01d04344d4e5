"""What a study hands to the page: text, figures and tables as plain data, without layout."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Series:
    """One line of a panel: a value with its standard error at each layer.

    Attributes:
        label: what the legend calls it; may come from data, so anything may be in it.
        role: its colour, a key of `palette.ROLES`.
        marker: a matplotlib marker.
        x: the layers.
        y: the values; NaN leaves a gap.
        sem: the standard errors; NaN where there is none.
    """

    label: str
    role: str
    marker: str
    x: np.ndarray
    y: np.ndarray
    sem: np.ndarray


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: quantity and unit, set above the axes in the place of a label of the vertical axis.
        series: the lines.
        scale: `log` is used only where the values allow it and span more than 30-fold.
        zero: whether a line at zero (no change) is drawn.
        x_label: what is on the horizontal axis.
        note: a short second line of the title, such as the name of a panel's subject.
    """

    title: str
    series: tuple[Series, ...]
    scale: Literal["linear", "log", "percent"] = "linear"
    zero: bool = False
    x_label: str = "layer"
    note: str = ""


@dataclass(frozen=True)
class FigureSpec:
    """A figure: panels side by side with one legend.

    Attributes:
        name: its file name without the ending.
        caption: what is drawn, on how much data, and what the band is.
        label: one line for readers who cannot see it.
        panels: the panels, of equal size.
        columns: panels in a row of the figure's file.
        shared_y: whether all panels have the same vertical axis.
    """

    name: str
    caption: str
    label: str
    panels: tuple[Panel, ...]
    columns: int = 3
    shared_y: bool = False


@dataclass(frozen=True)
class TableSpec:
    """A complete table of the run; columns `x` and `x_sem` are shown as one column `x ± SEM`."""

    name: str
    caption: str
    frame: pd.DataFrame
    is_open: bool = True


@dataclass(frozen=True)
class Section:
    """A study's section of the page.

    Attributes:
        title: its heading.
        overview: sentences for the top of the page, each with numbers of the tables only.
        measured: what was measured, on which positions.
        definitions: pairs of a quantity and its definition in one line.
        figures: in the order of the page.
        tables: in the order of the page.
        missing: why something that a reader expects is not there.
    """

    title: str
    overview: tuple[str, ...]
    measured: tuple[str, ...]
    definitions: tuple[tuple[str, str], ...]
    figures: tuple[FigureSpec, ...]
    tables: tuple[TableSpec, ...]
    missing: tuple[str, ...] = field(default=())
