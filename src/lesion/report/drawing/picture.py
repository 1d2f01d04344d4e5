"""A matrix as a small image in grey, with the places of its rows and columns along the axes."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lesion.report.content import FigureSpec, Picture
from lesion.report.drawing.style import Box, add_axes, plain, set_title

LEVELS = 16
"""Shades of grey: more than the eye tells apart at this size, and a quarter of the bytes of 256."""
NARROWEST = 0.2
"""An image is drawn at least so wide, or so high, of its other side, however long the matrix is."""


def draw(figure: Figure, box: Box, panel: Picture, spec: FigureSpec) -> None:
    """Draws the panel in `box`, in the shape of its matrix, flush with the upper left corner."""
    axes = add_axes(figure, box, left=0.5)
    set_title(axes, panel.title, panel.note)
    rows, columns = panel.shape
    left, top = (-(columns // 2), -(rows // 2)) if panel.centred else (0, 0)
    axes.imshow(
        shades(panel.pixels),
        cmap="gray_r",
        vmin=0,
        vmax=255,
        extent=(left - 0.5, left + columns - 0.5, top + rows - 0.5, top - 0.5),
        interpolation="none",
        aspect="auto",
    )
    axes.set_box_aspect(min(max(rows / columns, NARROWEST), 1 / NARROWEST))
    axes.set_anchor("NW")
    for spine in axes.spines.values():
        spine.set_visible(True)
    axes.set_xlabel(panel.x_label, labelpad=2)
    axes.set_ylabel(panel.y_label, labelpad=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        axis.set_major_formatter(lambda value, _: plain(value))


def hover(panel: Picture, spec: FigureSpec) -> dict[str, list[str]]:
    """Nothing: an image has no points."""
    return {}


def shades(pixels: np.ndarray) -> np.ndarray:
    """The image in `LEVELS` shades of grey, 0 and 255 among them."""
    step = 255 / (LEVELS - 1)
    rounded: np.ndarray = np.rint(np.rint(pixels / step) * step).astype(np.uint8)
    return rounded
