"""Lines over any quantity: spectra, profiles of neurons, deciles, checkpoints."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from lesion.report import axes as decisions
from lesion.report.content import Curve, Curves, FigureSpec, Mark
from lesion.report.drawing.style import Box, add_axes, clean, plain, set_title, tick
from lesion.report.numbers import Measure, measured
from lesion.report.palette import ROLES

BINS = 300
"""Of a line of more points, the least and the greatest in each of so many parts of the axis: the same at its width."""
DIPS = 0.02
"""The share of a long line that may lie below a logarithmic axis."""
MARKED = 40
"""Above so many points a line has no markers."""


def draw(figure: Figure, box: Box, panel: Curves, spec: FigureSpec) -> None:
    """Draws the panel in `box`."""
    axes = add_axes(figure, box)
    is_log = decisions.is_log_range(_values(panel), panel.scale)
    set_title(axes, panel.title + (", log scale" if is_log else ""), panel.note)
    axes.set_xlabel(panel.x_label, labelpad=2)
    _scale_x(axes, panel)
    _scale_y(axes, panel, is_log)
    for index, line in enumerate(panel.curves):
        _draw_curve(axes, line, f"curve-{index}", panel)
    for mark in panel.marks:
        draw_mark(axes, mark)


def hover(panel: Curves, spec: FigureSpec) -> dict[str, list[str]]:
    """What each marker says, by the identifier of its line."""
    texts = {}
    for index, line in enumerate(panel.curves):
        if _has_markers(line):
            points = zip(line.x, line.y, strict=True)
            texts[f"curve-{index}"] = [
                f"{clean(line.label)}, {panel.x_label} {x:g}: {measured(Measure(float(y), math.nan))}"
                for x, y in points
                if math.isfinite(y)
            ]
    return texts


def thinned(
    x: np.ndarray, y: np.ndarray, *, bins: int = BINS, log_x: bool = False, peaks: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A line of at most 2 `bins` points that covers the same pixels.

    Args:
        x: rising, and above 0 with `log_x`.
        y: NaN where there is a gap; a part of the axis without any number keeps one NaN.
        peaks: keep the greatest only.

    Returns:
        In each part of the axis the point with the least and the one with the greatest y, in their order; the line as
        it is where it has no more points than that.
    """
    if x.size <= 2 * bins:
        return x, y
    starts = _parts(x, bins, log_x)
    kept = [_ends(y[start:stop], peaks) + start for start, stop in zip(starts, [*starts[1:], x.size], strict=True)]
    chosen = np.concatenate(kept)
    return x[chosen], y[chosen]


def _parts(x: np.ndarray, bins: int, log_x: bool) -> np.ndarray:
    """Where points begin that lie in one part of the axis, of `bins` equal ones."""
    place = np.log(x) if log_x else x
    edges = np.linspace(place[0], place[-1], bins + 1)[1:-1]
    found: np.ndarray = np.flatnonzero(np.diff(np.searchsorted(edges, place, side="right"), prepend=-1))
    return found


def _ends(y: np.ndarray, peaks: bool) -> np.ndarray:
    if np.isnan(y).all():
        return np.zeros(1, dtype=np.intp)
    return np.unique([np.nanargmax(y) if peaks else np.nanargmin(y), np.nanargmax(y)])


def _values(panel: Curves) -> np.ndarray:
    parts = [np.zeros(0)]
    for line in panel.curves:
        parts += [part for part in (line.y, line.low, line.high) if part is not None]
    parts += [np.array([mark.y]) for mark in panel.marks if mark.y is not None]
    found = np.concatenate(parts)
    finite: np.ndarray = found[np.isfinite(found)]
    return finite


def _scale_x(axes: Axes, panel: Curves) -> None:
    x = np.concatenate([np.zeros(0), *(line.x for line in panel.curves)])
    if not x.size:
        axes.set_xticks([])
        return
    low, high = float(x.min()), float(x.max())
    if panel.log_x:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.15, max(high, 1.2 * low) * 1.15)
        ticks = decisions.log_ticks(low, high)
        axes.set_xticks(ticks, [tick(value) for value in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        return
    pad = max(0.03 * (high - low), 0.5 if panel.whole_x else 0.0) or 0.5
    axes.set_xlim(low - pad, high + pad)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=panel.whole_x, min_n_ticks=1))
    axes.xaxis.set_major_formatter(lambda value, _: plain(value))


def _scale_y(axes: Axes, panel: Curves, is_log: bool) -> None:
    found = _values(panel)
    if not found.size:
        axes.set_ylim(0, 1)
        return
    low, high = float(found.min()), float(found.max())
    if is_log:
        axes.set_yscale("log")
        low, high = max(low, _lowest(panel)) / 1.6, high * 1.6
        axes.set_ylim(low, high)
        ticks = decisions.log_ticks(low, high)
        axes.set_yticks(ticks, [tick(value) for value in ticks])
        axes.set_yticks([], minor=True)
        return
    if panel.from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    span = (high - low) or abs(high) or 1.0
    axes.set_ylim(low - (0.0 if panel.from_zero and low == 0 else 0.06 * span), high + 0.1 * span)
    axes.locator_params(axis="y", nbins=5)
    axes.yaxis.set_major_formatter(lambda value, _: plain(value))


def _lowest(panel: Curves) -> float:
    """Where a logarithmic axis begins: deep dips of long lines end below it, so that they do not flatten the rest."""
    found = [line.y[np.isfinite(line.y)] for line in panel.curves]
    return min((float(np.quantile(y, DIPS if y.size > MARKED else 0.0)) for y in found if y.size), default=0.0)


def _has_markers(line: Curve) -> bool:
    return bool(line.marker) and line.x.size <= MARKED


def _draw_curve(axes: Axes, line: Curve, identifier: str, panel: Curves) -> None:
    colour = ROLES[line.role].light
    if line.low is not None and line.high is not None:
        _draw_band(axes, line, line.low, line.high, panel)
    x, y = thinned(line.x, line.y, log_x=panel.log_x, peaks=panel.peaks)
    width = 1.3 if line.x.size <= MARKED else 0.9
    axes.plot(x, y, color=colour, linewidth=width, linestyle=(0, (2.5, 1.8)) if line.dashed else "-", zorder=3)
    if _has_markers(line):
        found = np.isfinite(line.y)
        points = axes.plot(
            line.x[found],
            line.y[found],
            linestyle="none",
            marker=line.marker,
            color=colour,
            markeredgecolor=ROLES["page"].light,
            markeredgewidth=0.6,
            zorder=4,
        )
        points[0].set_gid(identifier)


def _draw_band(axes: Axes, line: Curve, low: np.ndarray, high: np.ndarray, panel: Curves) -> None:
    x = line.x
    if x.size > 2 * BINS:  # what the line's own points are: the ends of each part of the axis, or its greatest
        starts = _parts(x, BINS, panel.log_x)
        lowest = np.fmax if panel.peaks else np.fmin
        x, low, high = x[starts], lowest.reduceat(low, starts), np.fmax.reduceat(high, starts)
    axes.fill_between(x, low, high, color=ROLES[line.role].light, alpha=0.25, linewidth=0, zorder=2)


def draw_mark(axes: Axes, mark: Mark) -> None:
    """A thin line across the axes, or a point, with its words."""
    colour = ROLES[mark.role].light
    if mark.x is not None and mark.y is not None:
        axes.plot([mark.x], [mark.y], linestyle="none", marker="o", markersize=4.2, color=colour, zorder=5)
        _write_at_point(axes, mark.x, mark.y, mark.label, colour)
    elif mark.x is not None:
        axes.axvline(mark.x, color=colour, linewidth=0.5, linestyle=(0, (1, 1.6)), zorder=1)
        _write(axes, (mark.x, 1.0), mark.label, colour, axes.get_xaxis_transform(), ("left", "top"))
    elif mark.y is not None:
        axes.axhline(mark.y, color=colour, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
        _write(axes, (1.0, mark.y), mark.label, colour, axes.get_yaxis_transform(), ("right", "bottom"))


def _write_at_point(axes: Axes, x: float, y: float, label: str, colour: str) -> None:
    """Beside the point, on the side where there is room: above it in the upper half, below it in the lower."""
    across, up = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    side, align = (6, "left") if across < 0.5 else (-6, "right")
    rise, stands = (3, "bottom") if up > 0.5 else (-3, "top")
    place = (side, rise)
    axes.annotate(
        clean(label), (x, y), place, textcoords="offset points", ha=align, va=stands, fontsize=7.5, color=colour
    )


def _write(
    axes: Axes, place: tuple[float, float], label: str, colour: str, transform: object, align: Sequence[str]
) -> None:
    if label:
        offset = (2.5 if align[0] == "left" else 0, 0 if align[1] == "top" else 1.5)
        axes.annotate(
            clean(label),
            place,
            xycoords=transform,
            xytext=offset,
            textcoords="offset points",
            ha=align[0],
            va=align[1],
            fontsize=7,
            color=colour,
            annotation_clip=False,
        )
