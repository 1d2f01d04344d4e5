"""Figures with matplotlib, from plain data: the same drawing as SVG and PNG files and as panels for the page."""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lesion.report import axes as decisions
from lesion.report import svg
from lesion.report.content import FigureSpec, Panel, Series
from lesion.report.numbers import Measure, measured, number
from lesion.report.palette import ROLES
from lesion.results import atomic_write

CROWDED = 16
"""Above this number of layers markers are smaller; with more than four lines they are dots."""
ROOMY = 10
"""Up to so many layers a number written over a point stays clear of the axis beside it."""
MARKER_SIZES = {"^": 5.0, "v": 5.0, "D": 3.9, "*": 6.0, "P": 5.0, "X": 5.0}
"""Sizes at which markers look alike, in points; 4.2 for the others."""
PANEL = (2.55, 2.0)
"""Width of one panel, and its height without the title, in inches."""
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": ROLES["muted"].light,
    "axes.labelcolor": ROLES["ink"].light,
    "text.color": ROLES["ink"].light,
    "xtick.color": ROLES["muted"].light,
    "ytick.color": ROLES["muted"].light,
    "xtick.labelcolor": ROLES["ink"].light,
    "ytick.labelcolor": ROLES["ink"].light,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.2,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with dollar signs is a name
    "svg.fonttype": "none",
    "svg.hashsalt": "lesion",
    "savefig.facecolor": ROLES["page"].light,
    "figure.facecolor": ROLES["page"].light,
}


def write_files(spec: FigureSpec, folder: Path) -> list[Path]:
    """Writes `<name>.svg` and `<name>.png`, light, for papers; returns their paths."""
    with _style():
        figure = _compose(spec.panels, spec, legend=True)
        text = svg.standalone(_svg(figure, transparent=False), title=spec.label)
        paths = [folder / f"{spec.name}.svg", folder / f"{spec.name}.png"]
        atomic_write(paths[0], lambda path: _write(path, text.encode()))
        atomic_write(paths[1], lambda path: figure.savefig(path, format="png", dpi=220, metadata={"Software": None}))
    return paths


def inline_panels(spec: FigureSpec, prefix: str) -> list[str]:
    """One SVG a panel, for a page: colours as classes, identifiers under `prefix`, values shown on hover."""
    drawn = []
    with _style():
        for index, panel in enumerate(spec.panels):
            figure = _compose([panel], spec, legend=False)
            label = f"{spec.label}: {panel.note + ', ' if panel.note else ''}{panel.title}"
            text = _svg(figure, transparent=True)
            drawn.append(svg.inline(text, prefix=f"{prefix}-{index}", label=label, hover=_hover(panel, spec)))
    return drawn


def legend_lines(spec: FigureSpec) -> list[Series]:
    """The lines that a legend names, each label once."""
    return list({line.label: line for panel in spec.panels for line in panel.series}.values())


def clean(text: str, most: int = 40) -> str:
    """Text from data, fit for a figure: one line, no longer than `most`, not hidden by a leading underscore."""
    shown = " ".join(svg.legal(text).split())
    shown = shown if len(shown) <= most else shown[: most - 1] + "…"
    return f" {shown}" if shown.startswith("_") else shown


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _compose(panels: Sequence[Panel], spec: FigureSpec, *, legend: bool) -> Figure:
    columns = min(spec.columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    top = 0.5 if any(panel.note for panel in panels) else 0.34
    head = 0.22 if legend else 0.0
    width, height = PANEL[0] * columns, (PANEL[1] + top) * rows + head
    figure = Figure(figsize=(width, height))
    for index, panel in enumerate(panels):
        left, bottom = PANEL[0] * (index % columns), (PANEL[1] + top) * (rows - 1 - index // columns)
        box = ((left + 0.42) / width, (bottom + 0.42) / height, (PANEL[0] - 0.55) / width, (PANEL[1] - 0.45) / height)
        _draw(figure.add_axes(box), panel, spec.panels if spec.shared_y else [panel])
    if legend:
        handles = [_key(line) for line in legend_lines(spec)]
        labels = [clean(line.label) for line in legend_lines(spec)]
        place = (0.2 / width, 1 - 0.02 / height)
        figure.legend(
            handles, labels, loc="upper left", ncols=min(4, len(labels)), bbox_to_anchor=place, borderaxespad=0
        )
    return figure


def _draw(axes: Axes, panel: Panel, scaled_with: Sequence[Panel]) -> None:
    unit = ", log scale" if decisions.is_log(scaled_with) else ""
    title = f"{clean(panel.note)}\n{panel.title}{unit}" if panel.note else panel.title + unit
    axes.set_title(title, loc="left", x=-0.12, pad=7, linespacing=1.3)
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
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "\u2212") if abs(value) > 1e-12 else "0")


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


def _hover(panel: Panel, spec: FigureSpec) -> dict[str, list[str]]:
    with _style():
        axes = Figure().add_subplot()
        _scale_y(axes, spec.panels if spec.shared_y else [panel])
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


def _key(line: Series) -> Line2D:
    edge = ROLES["page"].light
    return Line2D([], [], color=ROLES[line.role].light, marker=line.marker, markeredgecolor=edge, markeredgewidth=0.6)


def _svg(figure: Figure, *, transparent: bool) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=transparent, metadata=nothing)
    return re.sub(r"<!DOCTYPE[^>]*>", "", buffer.getvalue())


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
