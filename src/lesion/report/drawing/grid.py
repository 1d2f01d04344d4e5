"""Heat maps: a cell a number, in a scale of colours that has one version for the light page and one for the dark."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lesion.report import axes as decisions
from lesion.report.content import FigureSpec, Grid
from lesion.report.drawing.style import BOTTOM, PANEL, TOP, Box, add_axes, clean, inches_wide, set_title, tick
from lesion.report.numbers import decimals, number
from lesion.report.palette import ROLES, STEPS

CELL = 0.21
"""Height of a cell, in inches."""
TINY = 1e-3
"""Where all numbers are below it they are written with powers of ten."""
ROOMY = 0.33
"""Width of a cell, in inches, that holds a number of three digits."""
CHARACTER = 0.64
"""Width of a figure in DejaVu Sans, of its size."""
SIZES = (7.0, 6.5, 6.0)
"""Sizes of the numbers in cells, in points; where none fits there are no numbers, and hovering says them."""
BAR = (0.1, 0.11, 0.42)
"""Colour bar, in inches: its distance from the cells, its width, and the room for its numbers."""
STROKE = ((-1.0, -1.0), (1.0, 1.0))
"""What an empty cell is marked with."""
MANY = 40
"""Above so many columns the lines between cells are finer."""
LONGEST = 18
"""Characters of a row's or a column's name."""
CHARACTER_WIDE = 0.072
"""Width of a character of a name, in inches."""


def size(panel: Grid) -> tuple[int, float]:
    """Ordinary panels that it is wide, and its height without the title in inches."""
    span = next((span for span in (1, 2) if _room(panel, span) >= ROOMY), 3)
    return span, max(len(panel.rows), 3) * CELL + _below(panel, span) + TOP


def _room(panel: Grid, span: int) -> float:
    """Width of a cell in inches."""
    return (PANEL[0] * span - _beside(panel) - sum(BAR)) / max(len(panel.columns), 1)


def draw(figure: Figure, box: Box, panel: Grid, spec: FigureSpec) -> None:
    """Draws the panel in `box`, with its colour bar on the right."""
    axes = add_axes(figure, box, left=_beside(panel), bottom=_below(panel, size(panel)[0]), right=sum(BAR))
    is_log = decisions.is_log_range(panel.values[np.isfinite(panel.values)], panel.scale)
    set_title(axes, panel.title, panel.note, left=_beside(panel) - 0.05)
    axes.set_xlim(0, len(panel.columns))
    axes.set_ylim(len(panel.rows), 0)
    _label(axes, panel)
    low, high = scale(panel)
    words = said(panel)
    fitting, line = _font_size(axes, panel, words), 0.6 if len(panel.columns) <= MANY else 0.2
    for place, value in np.ndenumerate(panel.values):
        step = step_of(float(value), low, high, is_log)
        _fill(axes, place, step, line)
        if step is not None and fitting is not None:
            _write(axes, place, str(words[place]), step, fitting)
    if math.isfinite(low):
        _bar(figure, axes, panel, is_log)


def _beside(panel: Grid) -> float:
    """Room for the rows' names."""
    return 0.16 + CHARACTER_WIDE * _longest(panel.rows) + (0.16 if panel.y_label else 0.0)


def _below(panel: Grid, span: int) -> float:
    """Room for the columns' names."""
    return BOTTOM + (CHARACTER_WIDE * (_longest(panel.columns) - 2) if _is_turned(panel, span) else 0.0)


def _is_turned(panel: Grid, span: int) -> bool:
    """Whether names of columns run upwards: where they are wider than columns, and no numbers, of which some do."""
    numbered = all(name.isdecimal() for name in panel.columns)
    return not numbered and CHARACTER_WIDE * _longest(panel.columns) + 0.03 > _room(panel, span)


def _longest(names: tuple[str, ...]) -> int:
    return max([len(clean(name, LONGEST)) for name in names], default=1)


def hover(panel: Grid, spec: FigureSpec) -> dict[str, list[str]]:
    """What each cell says, by its identifier."""
    unit = f" {panel.unit}" if panel.unit else ""
    words, columns = said(panel), [clean(name) for name in panel.columns]
    front = f"{panel.x_label} " if panel.x_label else ""
    return {
        f"cell-{row}-{column}": [
            f"{clean(panel.rows[row])}, {front}{columns[column]}: {text + unit if text else 'nothing'}"
        ]
        for (row, column), text in np.ndenumerate(words)
    }


def scale(panel: Grid) -> tuple[float, float]:
    """The numbers at the two ends of the scale of colours; NaN without any number."""
    found = panel.values[np.isfinite(panel.values)]
    if not found.size:
        return math.nan, math.nan
    low, high = float(found.min()), float(found.max())
    if panel.include is not None and not decisions.is_log_range(found, panel.scale):
        low, high = min(low, panel.include), max(high, panel.include)
    return low, high


def step_of(value: float, low: float, high: float, is_log: bool) -> int | None:
    """The colour's number, from 0 for `low` to `STEPS` − 1 for `high`; None for NaN."""
    if not math.isfinite(value):
        return None
    if high <= low:
        return 0
    share = math.log(value / low) / math.log(high / low) if is_log else (value - low) / (high - low)
    return min(STEPS - 1, max(0, int(STEPS * share)))


def said(panel: Grid) -> np.ndarray:
    """The numbers as they are written: to three digits of the largest, whole where all are; empty for NaN."""
    found = np.abs(panel.values[np.isfinite(panel.values)])
    largest, whole = float(found.max(initial=0.0)), bool((found == np.rint(found)).all())
    places = 0 if whole else max(0, decimals(largest) - 1)
    words = np.full(panel.values.shape, "", dtype=object)
    for place, value in np.ndenumerate(panel.values):
        if math.isfinite(value):
            tiny = 0 < largest < TINY and value != 0
            words[place] = tick(float(f"{value:.2g}")) if tiny else number(float(value), 0 if value == 0 else places)
    return words


def _label(axes: Axes, panel: Grid) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=3)
    turned = _is_turned(panel, size(panel)[0])
    wide = 0.14 if turned else CHARACTER_WIDE * _longest(panel.columns) + 0.06
    every = math.ceil(len(panel.columns) * wide / inches_wide(axes))
    places = np.arange(0, len(panel.columns), max(every, 1))
    names = [clean(panel.columns[place], LONGEST) for place in places]
    axes.set_xticks(places + 0.5, names, rotation=90 if turned else 0)
    axes.set_yticks(np.arange(len(panel.rows)) + 0.5, [clean(name, LONGEST) for name in panel.rows])
    axes.set_xlabel(panel.x_label, labelpad=2)
    axes.set_ylabel(panel.y_label, labelpad=3)


def _fill(axes: Axes, place: tuple[int, ...], step: int | None, line: float) -> None:
    row, column = place
    page = ROLES["page"].light
    colour = page if step is None else ROLES[f"heat_{step}"].light
    patch = Rectangle((column, row), 1, 1, facecolor=colour, edgecolor=page, linewidth=line)
    patch.set_gid(f"cell-{row}-{column}")
    axes.add_patch(patch)
    if step is None:
        muted = ROLES["muted"].light
        stroke = axes.plot([column + 0.5], [row + 0.5], linestyle="none", marker=STROKE, markersize=4, color=muted)
        stroke[0].set_markeredgewidth(0.8)


def _write(axes: Axes, place: tuple[int, ...], text: str, step: int, fitting: float) -> None:
    row, column = place
    colour = ROLES["cell_low" if step < STEPS // 2 else "cell_high"].light
    axes.text(column + 0.5, row + 0.53, text, ha="center", va="center", fontsize=fitting, color=colour, zorder=5)


def _font_size(axes: Axes, panel: Grid, words: np.ndarray) -> float | None:
    """The largest size at which the longest number fits a cell."""
    longest = max([len(text) for text in words.flat], default=0)
    points = 72 * inches_wide(axes) / max(len(panel.columns), 1)
    return next((size for size in SIZES if longest * CHARACTER * size + 3 <= points), None)


def _bar(figure: Figure, axes: Axes, panel: Grid, is_log: bool) -> None:
    low, high = scale(panel)
    width, height = figure.get_size_inches()
    place = axes.get_position()
    tall = min(place.height, 2.0 / height)
    bar = figure.add_axes((place.x1 + BAR[0] / width, place.y1 - tall, BAR[1] / width, tall))
    steps = 1 if high <= low else STEPS
    for step in range(steps):
        colour = ROLES[f"heat_{step}"].light
        bar.add_patch(Rectangle((0, step / steps), 1, 1 / steps, facecolor=colour, edgecolor=colour, linewidth=0.2))
    bar.spines[:].set_visible(False)
    bar.tick_params(length=2, pad=2, labelsize=7)
    bar.set_xticks([])
    bar.set_ylim(0, 1)
    bar.yaxis.tick_right()
    ticks = [low] if high <= low else decisions.bar_ticks(low, high, is_log)
    places = [_share(value, low, high, is_log) for value in ticks]
    names = [tick(float(f"{value:.3g}")) if value else "0" for value in ticks]
    bar.set_yticks(places, [*names[:-1], f"{names[-1]} {panel.unit}".rstrip()])


def _share(value: float, low: float, high: float, is_log: bool) -> float:
    if high <= low:
        return 0.5
    return math.log(value / low) / math.log(high / low) if is_log else (value - low) / (high - low)
