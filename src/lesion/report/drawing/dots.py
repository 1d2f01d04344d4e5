"""Points with intervals in rows of categories: losses and differences by component, by scope, by domain."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lesion.report.content import Curve, Dots, FigureSpec
from lesion.report.drawing.curves import draw_mark
from lesion.report.drawing.style import TOP, Box, add_axes, clean, plain, set_title
from lesion.report.numbers import Measure, decimals, measured, number
from lesion.report.palette import ROLES

ROW = 0.34
"""Height of a row, in inches."""
BELOW = 0.3
"""Room for the numbers of the horizontal axis."""
APART = 0.24
"""Between the points of two lines in a row, at most, as a share of its height; all of them take up to 0.7 of it."""
LONGEST = 24
"""Characters of a row's name."""
CHARACTER_WIDE = 0.072
"""Width of a character of a name, in inches."""
NARROW = 0.9
"""Room for names, in inches, that a panel of ordinary width has."""


def size(panel: Dots) -> tuple[int, float]:
    """Ordinary panels that it is wide, and its height without the title in inches."""
    return (1 if _beside(panel) <= NARROW else 2), max(len(panel.rows), 1) * ROW + BELOW + TOP


def _beside(panel: Dots) -> float:
    return 0.16 + CHARACTER_WIDE * max([len(clean(name, LONGEST)) for name in panel.rows], default=1)


def draw(figure: Figure, box: Box, panel: Dots, spec: FigureSpec) -> None:
    """Draws the panel in `box`."""
    axes = add_axes(figure, box, _beside(panel), BELOW)
    set_title(axes, panel.title, panel.note, left=_beside(panel) - 0.05)
    axes.set_ylim(max(len(panel.rows), 1) - 0.5, -0.5)
    axes.set_yticks(np.arange(len(panel.rows)), [clean(name, LONGEST) for name in panel.rows])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _scale(axes, panel)
    for row in range(1, len(panel.rows)):
        axes.axhline(row - 0.5, color=ROLES["rule"].light, linewidth=0.4, zorder=0)
    for index, line in enumerate(panel.curves):
        _draw_line(axes, line, f"dots-{index}", _beside_each_other(index, len(panel.curves)))
    for mark in panel.marks:
        draw_mark(axes, mark)


def hover(panel: Dots, spec: FigureSpec) -> dict[str, list[str]]:
    """What each point says, by the identifier of its line."""
    return {
        f"dots-{index}": [
            f"{clean(line.label)}, {clean(panel.rows[int(x)])}: {_said(float(y), low, high)}"
            for x, y, (low, high) in zip(line.x, line.y, _intervals(line), strict=True)
            if math.isfinite(y)
        ]
        for index, line in enumerate(panel.curves)
    }


def _said(value: float, low: float, high: float) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return measured(Measure(value, math.nan))
    places = decimals(value, (high - low) / 4)
    return f"{number(value, places)} ({number(low, places)} to {number(high, places)})"


def _intervals(line: Curve) -> np.ndarray:
    """Ends of each point's interval, NaN where it has none."""
    none = np.full(line.y.shape, np.nan)
    return np.stack([none if line.low is None else line.low, none if line.high is None else line.high], axis=1)


def _beside_each_other(index: int, lines: int) -> float:
    """How far below the middle of a row the points of a line are."""
    return (index - (lines - 1) / 2) * min(APART, 0.7 / lines)


def _scale(axes: Axes, panel: Dots) -> None:
    parts = [np.array([mark.x for mark in panel.marks if mark.x is not None], dtype=np.float64)]
    for line in panel.curves:
        parts += [line.y, _intervals(line).ravel()]
    found = np.concatenate(parts)
    found = found[np.isfinite(found)]
    if not found.size:
        axes.set_xlim(0, 1)
        axes.set_xticks([])
        return
    low, high = float(found.min()), float(found.max())
    pad = 0.06 * ((high - low) or abs(high) or 1.0)
    axes.set_xlim(low - pad, high + pad)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: plain(value))


def _draw_line(axes: Axes, line: Curve, identifier: str, offset: float) -> None:
    colour, found, ends = ROLES[line.role].light, np.isfinite(line.y), _intervals(line)
    place = line.x + offset
    reach = found & np.isfinite(ends).all(axis=1)
    axes.hlines(place[reach], ends[reach, 0], ends[reach, 1], color=colour, linewidth=1.1, zorder=3)
    points = axes.plot(
        line.y[found],
        place[found],
        linestyle="none",
        marker=line.marker or "o",
        color=colour,
        markeredgecolor=ROLES["page"].light,
        markeredgewidth=0.6,
        zorder=4,
    )
    points[0].set_gid(identifier)
