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
class Curve:
    """One line over any quantity, of few points or of thousands.

    Attributes:
        label: what the legend calls it.
        role: its colour, a key of `palette.ROLES`.
        x, y: the points, x rising; NaN in y leaves a gap.
        low, high: a band around it, such as the least and the greatest over seeds; None where there is none.
        marker: a matplotlib marker, drawn at every point; empty for a bare line.
        dashed: for a line that another one hides.
    """

    label: str
    role: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    marker: str = ""
    dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """A thin line across a panel of curves, or one point of it, with a few words.

    Attributes:
        label: what is written beside it; empty for a bare line.
        x: place on the horizontal axis; None draws a line at `y` from left to right.
        y: place on the vertical axis; None draws a line at `x` from bottom to top.
        role: its colour.
    """

    label: str
    x: float | None = None
    y: float | None = None
    role: str = "muted"


@dataclass(frozen=True)
class Curves:
    """One pair of axes with lines over any quantity.

    Attributes:
        title: quantity and unit of the vertical axis.
        curves: the lines.
        x_label: quantity and unit of the horizontal axis.
        scale: of the vertical axis; `log` is used only where the values allow it and span more than 30-fold.
        log_x: whether the horizontal axis is logarithmic; its values are then above 0.
        whole_x: whether x is counted: ticks are then whole numbers.
        from_zero: whether the vertical axis holds 0.
        peaks: of points that share a place on the screen, draw the greatest only, not the range: for spectra, whose
            peaks matter.
        marks: lines and points that are pointed out.
        note: a short second line of the title.
    """

    title: str
    curves: tuple[Curve, ...]
    x_label: str
    scale: Literal["linear", "log"] = "linear"
    log_x: bool = False
    whole_x: bool = False
    from_zero: bool = True
    peaks: bool = False
    marks: tuple[Mark, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Dots:
    """Points with intervals, a row a category, the points of several lines below each other in it.

    Attributes:
        title: quantity and unit of the horizontal axis.
        rows: the categories from top to bottom; may come from data.
        curves: `x` are numbers of rows, `y` the values, `low` and `high` the ends of a value's interval; a value that
            is NaN is not drawn, an interval with an end that is NaN neither.
        marks: lines from top to bottom, at their `x`.
        note: a short second line of the title.
    """

    title: str
    rows: tuple[str, ...]
    curves: tuple[Curve, ...]
    marks: tuple[Mark, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """A heat map: a coloured cell a number, which is written in it where there is room.

    Attributes:
        title: what a cell is.
        rows, columns: the names along the vertical and the horizontal axis.
        values: rows × columns; a cell without a number (NaN) is drawn empty, with a stroke through it.
        unit: what stands behind a number, as a short sign such as `%`; may be empty.
        x_label, y_label: what columns and rows are.
        scale: of the colours; `log` is used only where the values allow it and span more than 30-fold.
        include: a number that a linear scale of colours must hold, such as 0 for a share; None takes the values' range.
        note: a short second line of the title.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray
    unit: str = ""
    x_label: str = "layer"
    y_label: str = ""
    scale: Literal["linear", "log"] = "linear"
    include: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A matrix as an image in grey: white for 0, black for 255, on a dark page too.

    Attributes:
        title: what is shown.
        pixels: rows × columns, uint8; row 0 is on top.
        shape: rows and columns of the matrix that it is a picture of, for the numbers along the axes.
        x_label, y_label: what columns and rows of the matrix are.
        centred: whether the numbers along the axes count from the middle, as frequencies do.
        note: a short second line of the title.
    """

    title: str
    pixels: np.ndarray
    shape: tuple[int, int]
    x_label: str
    y_label: str
    centred: bool = False
    note: str = ""


AnyPanel = Panel | Curves | Dots | Grid | Picture
"""What a figure may be made of."""


@dataclass(frozen=True)
class FigureSpec:
    """A figure: panels side by side with one legend.

    Attributes:
        name: its file name without the ending.
        caption: what is drawn, on how much data, and what the band is.
        label: one line for readers who cannot see it.
        panels: the panels, of one kind or of several.
        columns: panels of ordinary width in a row of the figure's file; a heat map may take up to three.
        shared_y: whether all panels of lines over layers have the same vertical axis.
        on_page: whether the page shows it; the others are files only.
    """

    name: str
    caption: str
    label: str
    panels: tuple[AnyPanel, ...]
    columns: int = 3
    shared_y: bool = False
    on_page: bool = True


@dataclass(frozen=True)
class TableSpec:
    """A table of the run; columns `x` and `x_sem` are shown as one column `x ± SEM`.

    Attributes:
        name: of its file in `tables/`.
        caption: what a row is, and over what.
        frame: all its rows; of a very long table the page shows the first ones and says so.
        is_open: whether the page shows it unfolded.
        part: which rows of the file these are, where they are not all; such as `sums`.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    is_open: bool = True
    part: str = ""


@dataclass(frozen=True)
class Section:
    """A study's section of the page.

    Attributes:
        title: its heading.
        subject: what was studied: the name of a model, or of a pair.
        byline: its kind and sizes, as far as they are known.
        overview: sentences for the top of the page, each with numbers of the tables only.
        measured: what was measured, on which positions.
        definitions: pairs of a quantity and its definition in one line.
        figures: in the order of the page.
        tables: in the order of the page.
        missing: why something that a reader expects is not there.
    """

    title: str
    subject: str
    byline: str
    overview: tuple[str, ...]
    measured: tuple[str, ...]
    definitions: tuple[tuple[str, str], ...]
    figures: tuple[FigureSpec, ...]
    tables: tuple[TableSpec, ...]
    missing: tuple[str, ...] = field(default=())
