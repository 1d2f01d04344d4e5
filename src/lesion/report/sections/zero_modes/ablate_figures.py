"""Figures of an ablation of zero modes: losses over layers, components and other scopes, heads, and domains (Fig 5)."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lesion.report.content import AnyPanel, Curve, Curves, Dots, FigureSpec, Grid, Mark
from lesion.report.drawing.style import clean
from lesion.report.numbers import count, listed
from lesion.report.sections.zero_modes.ablate_overview import set_to
from lesion.report.sections.zero_modes.ablate_rows import (
    KINDS,
    Ablation,
    head_of,
    layer_of,
    short,
    sorted_out,
)
from lesion.report.sections.zero_modes.rows import columns

COMPARED, APART = ("zero_modes", "random", "random_matched"), ("complement", "keep_only")
"""Kinds that share an axis, and those of another scale."""
NAMES = {
    "zero_modes": "zero modes",
    "random": "as many random weights of each matrix",
    "random_matched": "as many of each exponent of |w|",
    "complement": "all weights that are no zero modes",
    "keep_only": "the same set to 0, so that zero modes are kept alone",
}
ROWS = 40
"""Scopes or domains that a figure of points shows."""
ON_PAGE = 2
"""Domains whose figures the page shows."""
LOSS, CHANGE = "loss (nats)", "zero modes − control (nats)"


def figures(run: Ablation, domains: Sequence[tuple[str, Ablation]]) -> Iterator[FigureSpec]:
    """All figures: over all domains, then, where there are several, by domain."""
    sorts = sorted_out(run.scopes)
    if "scopes" in sorts:
        yield from _by_scope(run, "scopes", sorts["scopes"])
    if len(domains) > 1:
        yield from _domains(domains)
    yield from _all(run, sorts)
    for index, (name, own) in enumerate(domains if len(domains) > 1 else (), start=1):
        yield from _all(own, sorts, f"_{index}", clean(name), on_page=index <= ON_PAGE)


def _all(
    run: Ablation, sorts: Mapping[str, list[str]], ending: str = "", domain: str = "", *, on_page: bool = True
) -> Iterator[FigureSpec]:
    said = f" Domain: {domain}." if domain else ""
    if "layers" in sorts and (panels := layer_panels(run, sorts["layers"], domain)):
        caption = _caption(run, "layer by layer") + " Dashed: the model as it is." + said
        name = f"zero_mode_ablation_layers{ending}"
        yield _spec(name, caption, "Loss without zero modes by layer", panels, on_page=on_page)
    if "components" in sorts:
        yield from _by_scope(run, "components", sorts["components"], ending, domain, on_page=on_page)
    if "heads" in sorts and (panels := head_panels(run, sorts["heads"], domain)):
        name = f"zero_mode_ablation_heads{ending}"
        yield _spec(name, _heads_caption(run) + said, "Loss without zero modes by head", panels, on_page=on_page)


def _by_scope(
    run: Ablation, sort: str, scopes: list[str], ending: str = "", domain: str = "", *, on_page: bool = True
) -> Iterator[FigureSpec]:
    """Rows of scopes or of components."""
    chosen, more = _first(run, scopes)
    if panels := dot_panels([(short(scope), run, scope) for scope in chosen], domain):
        by = "by component, over all blocks" if sort == "components" else "by scope"
        said = f" Domain: {domain}." if domain else ""
        caption = f"{_caption(run, by)} Dotted line: the model as it is.{more}{said}"
        label = f"Loss without zero modes by {sort[:-1]}"
        yield _spec(f"zero_mode_ablation_{sort}{ending}", caption, label, panels, on_page=on_page)


def _first(run: Ablation, scopes: list[str]) -> tuple[list[str], str]:
    """As many scopes as a figure shows: those that hurt most without zero modes, in the order of the table."""
    if len(scopes) <= ROWS:
        return scopes, ""
    changes = run.losses("zero_modes").reindex(scopes)["change"].fillna(-np.inf)
    kept = set(changes.sort_values(ascending=False, kind="stable").index[:ROWS])
    more = f" Of {len(scopes)} scopes the {ROWS} whose loss rises most without zero modes."
    return [scope for scope in scopes if scope in kept], more


def layer_panels(run: Ablation, scopes: Sequence[str], note: str = "") -> list[AnyPanel]:
    """Losses over layers, differences to the controls, and losses of another scale (Fig 5)."""
    layers = sorted(scopes, key=layer_of)
    places = [(run, scope) for scope in layers]
    x = np.array([layer_of(scope) for scope in layers], dtype=np.float64)
    panels: list[AnyPanel] = []
    for kinds in (COMPARED, APART):
        lines = tuple(_losses(kind, places, x) for kind in kinds if kind in run.kinds)
        if _has_points(lines):
            marks = (Mark("as it is", y=run.clean_loss.value),) if math.isfinite(run.clean_loss.value) else ()
            panels.append(Curves(LOSS, lines, "layer", whole_x=True, from_zero=False, marks=marks, note=note))
    lines = tuple(_differences(control, places, x) for control in run.controls)
    if _has_points(lines):
        panels.insert(1, Curves(CHANGE, lines, "layer", whole_x=True, marks=(Mark("", y=0.0),), note=note))
    return panels


def dot_panels(rows: Sequence[tuple[str, Ablation, str]], note: str = "") -> list[AnyPanel]:
    """The same in rows of categories.

    Args:
        rows: the name of each row, its tables and its scope.
        note: a second line of titles.
    """
    x, names = np.arange(len(rows), dtype=np.float64), tuple(name for name, _, _ in rows)
    places, first = [(run, scope) for _, run, scope in rows], rows[0][1]
    own = np.array([run.clean_loss.value for run, _ in places])
    same = len(set(own)) == 1
    marks = (Mark("", x=float(own[0])),) if same and math.isfinite(own[0]) else ()
    panels: list[AnyPanel] = []
    for kinds in (COMPARED, APART):
        lines = tuple(_losses(kind, places, x) for kind in kinds if kind in first.kinds)
        if _has_points(lines):
            lines = lines if same else (*lines, Curve("as it is", "muted", x, own, marker="X"))
            panels.append(Dots(LOSS, names, lines, marks, note))
    lines = tuple(_differences(control, places, x) for control in first.controls)
    if _has_points(lines):
        panels.insert(1, Dots(CHANGE, names, lines, (Mark("", x=0.0),), note))
    return panels


def _losses(kind: str, places: Sequence[tuple[Ablation, str]], x: np.ndarray) -> Curve:
    """Losses of a kind at each place (tables and scope), the mean over seeds, with a band over several seeds."""
    rows = [run.losses(kind).reindex([scope]) for run, scope in places]
    y, low, high = (np.concatenate([row[name].to_numpy() for row in rows]) for name in ("loss", "least", "greatest"))
    return _curve(KINDS[kind].label, kind, x, (y, low, high))


def _differences(control: str, places: Sequence[tuple[Ablation, str]], x: np.ndarray) -> Curve:
    """Zero modes minus a control at each place, with intervals."""
    found = [run.difference(control, scope) for run, scope in places]
    y, low, high = (np.array([getattr(one, name) for one in found]) for name in ("value", "low", "high"))
    return _curve(f"zero modes − {KINDS[control].label}", control, x, (y, low, high))


def _curve(label: str, kind: str, x: np.ndarray, values: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Curve:
    y, low, high = values
    ends = (low, high) if np.isfinite(low).any() else (None, None)
    return Curve(label, KINDS[kind].role, x, y, *ends, marker=KINDS[kind].marker)


def _has_points(lines: Sequence[Curve]) -> bool:
    return any(np.isfinite(line.y).any() for line in lines)


def head_panels(run: Ablation, scopes: Sequence[str], note: str = "") -> list[AnyPanel]:
    """Layers by heads: the change of the loss, the difference to a control, and that over half its interval."""
    values = {scope: float(change) for scope, change in run.losses("zero_modes")["change"].items()}
    panels: list[AnyPanel] = []
    if any(math.isfinite(values.get(scope, math.nan)) for scope in scopes):
        panels.append(_heads("change of loss (nats)", values, scopes, note))
    if not run.controls:
        return panels
    control = run.controls[-1]
    found = {scope: run.difference(control, scope) for scope in scopes}
    gaps = {scope: one.value for scope, one in found.items()}
    if any(math.isfinite(value) for value in gaps.values()):
        panels.append(_heads(f"zero modes − {KINDS[control].label} (nats)", gaps, scopes, note))
    over = {scope: 2 * one.value / (one.high - one.low) for scope, one in found.items() if one.high > one.low}
    if over:
        apart = sum(one.verdict in ("more", "less") for one in found.values())
        more = f"beyond ±1 the interval excludes 0: {apart} of {len(over)}"
        panels.append(_heads("difference / half interval", over, scopes, f"{note}: {more}" if note else more))
    return panels


def _heads(title: str, values: Mapping[str, float], scopes: Sequence[str], note: str) -> Grid:
    places = [head_of(scope) for scope in scopes]
    layers, heads = (sorted({place[side] for place in places}) for side in (0, 1))
    cells = np.full((len(layers), len(heads)), np.nan)
    for scope, (layer, head) in zip(scopes, places, strict=True):
        cells[layers.index(layer), heads.index(head)] = values.get(scope, np.nan)
    names = (tuple(map(str, numbers)) for numbers in (layers, heads))
    return Grid(title, *names, cells, x_label="head", y_label="layer", include=0.0, note=note)


def _domains(domains: Sequence[tuple[str, Ablation]]) -> Iterator[FigureSpec]:
    """A row a domain, for all blocks."""
    shown = [(name, run) for name, run in domains if "all" in run.scopes][:ROWS]
    if len(shown) < 2:
        return
    panels = dot_panels([(clean(name), run, "all") for name, run in shown])
    if panels:
        caption = f"{_caption(shown[0][1], 'in all blocks, by domain')} A cross is the model as it is."
        yield _spec("zero_mode_ablation_domains", caption, "Loss without zero modes by domain", panels)


def _spec(name: str, caption: str, label: str, panels: list[AnyPanel], *, on_page: bool = True) -> FigureSpec:
    grids = [panel for panel in panels if isinstance(panel, Grid)]
    wide = columns(grids) if grids else 3
    return FigureSpec(name, caption, label, tuple(panels), columns=wide, on_page=on_page)


def _caption(run: Ablation, by: str) -> str:
    """What is drawn of losses, on how much data."""
    drawn = [NAMES[kind] for kind in COMPARED if kind in run.kinds]
    parts = [f"Loss after weights were {set_to(run.value)}, {by}"]
    parts[0] += f": {listed(drawn)}." if drawn else "."
    if any((run.losses(kind)["n_seeds"] > 1).any() for kind in run.controls):
        parts.append("Random ones are means over draws, from the least to the greatest; zero modes are one set.")
    if run.controls:
        parts.append("Zero modes − a control: how much higher the loss is without zero modes, with 95 % intervals.")
    if others := [NAMES[kind] for kind in APART if kind in run.kinds]:
        parts.append(f"On an axis of their own: {listed(others)}.")
    first = run.lanes.iloc[0]
    parts.append(f"{count(int(first['n_tokens']), 'position')} of {count(int(first['n_documents']), 'document')}.")
    return " ".join(parts)


def _heads_caption(run: Ablation) -> str:
    parts = ["By head, what taking its zero modes away changes."]
    if run.controls:
        words = KINDS[run.controls[-1]].words
        parts.append(
            f"Beside it, the loss without zero modes minus that without as many {words}, and this difference over "
            "half the width of its 95 % interval: above 1 zero modes matter more, below −1 less, between them the "
            "interval holds 0."
        )
    return " ".join(parts)
