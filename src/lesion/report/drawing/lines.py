"""Lines over layers: a marker and a standard error at each; points beyond the axis are named at its edge."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lesion.report import axes as decisions
from lesion.report.content import FigureSpec, Panel, Series
from lesion.report.drawing.style import Box, add_axes, clean, plain, set_title, style
from lesion.report.numbers import Measure, measured, number
from lesion.report.palette import ROLES

CROWDED = 16
"""Above this number of layers markers are smaller; with more than four lines they are dots."""
ROOMY = 10
"""Up to so many layers a number written over a point stays clear of the axis beside it."""
MARKER_SIZES = {"^": 5.0, "v": 5.0, "D": 3.9, "*": 6.0, "P": 5.0, "X": 5.0}
"""Sizes at which markers look alike, in points; 4.2 for the others."""


def draw(figure: Figure, box: Box, panel: Panel, spec: FigureSpec) -> None:
    """Draws the panel in `box`."""
    axes, scaled_with = add_axes(figure, box), _scaled_with(panel, spec)
    set_title(axes, panel.title + (", log scale" if decisions.is_log(scaled_with) else ""), panel.note)
    axes.set_xlabel(panel.x_label, labelpad=2)
    _scale_y(axes, scaled_with)
    if panel.zero:
        axes.axhline(0, color=ROLES["rule"].light, linewidth=0.8, zorder=0)
    for index, line in enumerate(panel.series):
        _draw_line(axes, line, f"series-{index}", len(panel.series))
    _mark_beyond(axes, panel.series)
    layers = np.concatenate([line.x for other in scaled_with for line in other.series])
    axes.set_xticks(decisions.layer_ticks(layers))
    pad = max(0.5, 0.04 * float(np.ptp(layers)))
    axes.set_xlim(layers.min() - pad, layers.max() + pad)


def _scale_y(axes: Axes, panels: Sequence[Panel]) -> None:
    low, high = decisions.limits(panels)
    if decisions.is_log(panels):
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        ticks = decisions.log_ticks(low, high)
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks([], minor=True)
        return
    axes.set_ylim(low, high)
    axes.locator_params(axis="y", nbins=5)
    axes.yaxis.set_major_formatter(lambda value, _: plain(value))


def _draw_line(axes: Axes, line: Series, identifier: str, lines: int) -> None:
    colour = ROLES[line.role].light
    low, high = axes.get_ylim()
    inside = _inside(axes, line)
    axes.plot(line.x, np.where(inside, line.y, np.nan), color=colour, zorder=3)
    band = np.isfinite(line.sem) & inside
    bottom, top = np.clip(line.y - line.sem, low, high), np.clip(line.y + line.sem, low, high)
    axes.fill_between(line.x, bottom, top, where=band, color=colour, alpha=0.22, linewidth=0, zorder=2)
    axes.vlines(line.x[band], bottom[band], top[band], color=colour, linewidth=0.9, zorder=3)
    marker = axes.plot(
        line.x[inside],
        line.y[inside],
        linestyle="none",
        marker=line.marker,
        markersize=_marker_size(line, lines),
        color=colour,
        markeredgecolor=ROLES["page"].light,
        markeredgewidth=0.6 if line.x.size <= CROWDED else 0.3,
        zorder=4,
    )
    marker[0].set_gid(identifier)


def _marker_size(line: Series, lines: int) -> float:
    crowded = line.x.size > CROWDED
    if crowded and lines > 4:
        return 2.0
    return MARKER_SIZES.get(line.marker, 4.2) * (0.65 if crowded else 1.0)


def _mark_beyond(axes: Axes, lines: Sequence[Series]) -> None:
    low, high = axes.get_ylim()
    for above in (True, False):
        found = [
            (float(x), float(y), line)
            for line in lines
            for x, y in zip(line.x, line.y, strict=True)
            if math.isfinite(y) and (y > high if above else y < low)
        ]
        height = {x: 0 for x, _, _ in found}
        for x, y, line in sorted(found, key=lambda item: -item[1]):
            _arrow(axes, x, f"{'↑' if above else '↓'} {number(y, 1 if abs(y) < 100 else 0)}", line, height[x], above)
            height[x] += 1


def _arrow(axes: Axes, x: float, text: str, line: Series, row: int, above: bool) -> None:
    roomy = line.x.size <= ROOMY
    left = x <= (float(line.x.min()) + float(line.x.max())) / 2
    side = 0 if roomy else 5 if left else -5
    axes.annotate(
        text,
        (x, 1.0 if above else 0.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(side, (-1 if above else 1) * (1 + 9.5 * row)),
        textcoords="offset points",
        ha="center" if roomy else "left" if left else "right",
        va="top" if above else "bottom",
        fontsize=7.5,
        color=ROLES[line.role].light,
        annotation_clip=False,
    )


def _inside(axes: Axes, line: Series) -> np.ndarray:
    low, high = axes.get_ylim()
    inside: np.ndarray = np.isfinite(line.y) & (line.y >= low) & (line.y <= high)
    return inside


def hover(panel: Panel, spec: FigureSpec) -> dict[str, list[str]]:
    """What each marker says, by the identifier of its line."""
    with style():
        axes = Figure().add_subplot()
        _scale_y(axes, _scaled_with(panel, spec))
    texts = {}
    for index, line in enumerate(panel.series):
        points = zip(line.x, line.y, line.sem, _inside(axes, line), strict=True)
        unit = " %" if panel.scale == "percent" else ""
        texts[f"series-{index}"] = [
            f"{clean(line.label)}, {panel.x_label} {int(x)}: {measured(Measure(float(y), float(sem)))}{unit}"
            for x, y, sem, inside in points
            if inside
        ]
    return texts


def _scaled_with(panel: Panel, spec: FigureSpec) -> list[Panel]:
    return [other for other in spec.panels if isinstance(other, Panel)] if spec.shared_y else [panel]
