"""Figures with matplotlib, from plain data: the same drawing as SVG and PNG files and as panels for the page."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lesion.report import svg
from lesion.report.content import AnyPanel, Curve, Curves, Dots, FigureSpec, Grid, Panel, Picture, Series
from lesion.report.drawing import curves, dots, grid, lines, picture
from lesion.report.drawing.style import PANEL, Box, clean, style
from lesion.report.palette import ROLES
from lesion.results import atomic_write

__all__ = ["clean", "inline_panels", "legend_lines", "span", "write_files"]

KINDS: Mapping[type, Any] = {Panel: lines, Curves: curves, Dots: dots, Grid: grid, Picture: picture}
"""Which file draws which kind of panel."""
CHARACTER = 0.07
"""Width of a character of the legend, in inches."""
LEGEND_ROW = 0.16
"""Height of a row of the legend, in inches."""


def write_files(spec: FigureSpec, folder: Path) -> list[Path]:
    """Writes `<name>.svg` and `<name>.png`, light, for papers; returns their paths."""
    with style():
        figure = _compose(spec.panels, spec, legend=True)
        text = svg.standalone(_svg(figure, transparent=False), title=spec.label)
        paths = [folder / f"{spec.name}.svg", folder / f"{spec.name}.png"]
        atomic_write(paths[0], lambda path: _write(path, text.encode()))
        atomic_write(paths[1], lambda path: figure.savefig(path, format="png", dpi=220, metadata={"Software": None}))
    return paths


def inline_panels(spec: FigureSpec, prefix: str) -> list[str]:
    """One SVG a panel, for a page: colours as classes, identifiers under `prefix`, values shown on hover."""
    drawn = []
    with style():
        for index, panel in enumerate(spec.panels):
            figure = _compose([panel], spec, legend=False)
            label = f"{spec.label}: {panel.note + ', ' if panel.note else ''}{panel.title}"
            text, said = _svg(figure, transparent=True), KINDS[type(panel)].hover(panel, spec)
            drawn.append(svg.inline(text, prefix=f"{prefix}-{index}", label=label, hover=said, wide=span(panel)))
    return drawn


def legend_lines(spec: FigureSpec) -> list[Series | Curve]:
    """The lines that a legend names, each label once."""
    found: dict[str, Series | Curve] = {}
    for panel in spec.panels:
        if isinstance(panel, Panel | Curves | Dots):
            found |= {line.label: line for line in (panel.series if isinstance(panel, Panel) else panel.curves)}
    return list(found.values())


def span(panel: AnyPanel) -> int:
    """How many ordinary panels wide it is."""
    return KINDS[type(panel)].size(panel)[0] if isinstance(panel, Grid | Dots) else 1


def _height(panel: AnyPanel) -> float:
    return float(KINDS[type(panel)].size(panel)[1]) if isinstance(panel, Grid | Dots) else PANEL[1]


class _Row(NamedTuple):
    """Panels side by side, each with the number of the ordinary panel at which it begins."""

    panels: list[tuple[int, AnyPanel]]
    height: float


def _rows(panels: Sequence[AnyPanel], columns: int) -> list[_Row]:
    """Panels from left to right; a row that is full, or too narrow for the next panel, ends."""
    rows: list[list[tuple[int, AnyPanel]]] = [[]]
    used = 0
    for panel in panels:
        if used and used + span(panel) > columns:
            rows.append([])
            used = 0
        rows[-1].append((used, panel))
        used += span(panel)
    return [_Row(row, max(_height(panel) for _, panel in row)) for row in rows]


def _compose(panels: Sequence[AnyPanel], spec: FigureSpec, *, legend: bool) -> Figure:
    columns = max(min(spec.columns, sum(map(span, panels))), *map(span, panels))
    rows = _rows(panels, columns)
    top = 0.5 if any(panel.note for panel in panels) else 0.34
    named = legend_lines(spec) if legend else []
    width, per_row = PANEL[0] * columns, _keys_a_row(named, PANEL[0] * columns)
    head = 0.22 + LEGEND_ROW * ((len(named) - 1) // per_row) if named else 0.0
    height = sum(row.height + top for row in rows) + head
    figure = Figure(figsize=(width, height))
    upper = height - head
    for row in rows:
        for start, panel in row.panels:
            tall = _height(panel)
            box = Box(PANEL[0] * start, upper - top - tall, PANEL[0] * span(panel), tall)
            KINDS[type(panel)].draw(figure, box, panel, spec)
        upper -= row.height + top
    if named:
        handles, labels = [_key(line) for line in named], [_name(line, width) for line in named]
        place = (0.2 / width, 1 - 0.02 / height)
        figure.legend(
            handles, labels, loc="upper left", ncols=min(per_row, len(labels)), bbox_to_anchor=place, borderaxespad=0
        )
    return figure


def _keys_a_row(named: Sequence[Series | Curve], width: float) -> int:
    """How many keys of the legend fit side by side, at most four."""
    longest = max([len(_name(line, width)) for line in named], default=0)
    return min(4, max(1, int((width - 0.2) / (CHARACTER * longest + 0.45))))


def _name(line: Series | Curve, width: float) -> str:
    """A line's name in a legend, no wider than the figure."""
    return clean(line.label, min(40, int((width - 0.7) / CHARACTER)))


def _key(line: Series | Curve) -> Line2D:
    dashes = (0, (2.5, 1.8)) if isinstance(line, Curve) and line.dashed else "-"
    key = Line2D([], [], color=ROLES[line.role].light, linestyle=dashes, markeredgewidth=0.6)
    key.set_marker(line.marker or "None")
    key.set_markeredgecolor(ROLES["page"].light)
    return key


def _svg(figure: Figure, *, transparent: bool) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=transparent, metadata=nothing)
    return re.sub(r"<!DOCTYPE[^>]*>", "", buffer.getvalue())


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
