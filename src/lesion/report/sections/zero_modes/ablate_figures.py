"""Figures of an ablation of zero modes: losses over layers, components and other scopes, heads, and domains (Fig 5)."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lesion.report.content import AnyPanel, Curve, Curves, Dots, FigureSpec, Grid, Mark
from lesion.report.drawing.style import clean
from lesion.report.numbers import count, listed
from lesion.report.sections.zero_modes.ablate_overview import set_to
from lesion.report.sections.zero_modes.ablate_rows import (
    CONTROLS,
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
LOSS, OTHERS, CHANGE = "loss (nats)", "loss without all others (nats)", "zero modes − control (nats)"


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
        caption = _caption("layer by layer", run) + " Dashed: the model as it is." + said
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
        caption = f"{_caption(by, run)} Dotted line: the model as it is.{more}{said}"
        label = f"Loss without zero modes by {sort[:-1]}"
        yield _spec(f"zero_mode_ablation_{sort}{ending}", caption, label, panels, on_page=on_page)


def _first(run: Ablation, scopes: list[str]) -> tuple[list[str], str]:
    """As many scopes as a figure shows: those that hurt most without zero modes, in the order of the table."""
    if len(scopes) <= ROWS:
        return scopes, ""
    changes = {scope: run.loss("zero_modes", scope).change for scope in scopes}
    kept = sorted(scopes, key=lambda scope: -changes[scope] if math.isfinite(changes[scope]) else math.inf)[:ROWS]
    more = f" Of {len(scopes)} scopes the {ROWS} whose loss rises most without zero modes."
    return [scope for scope in scopes if scope in kept], more


def layer_panels(run: Ablation, scopes: Sequence[str], note: str = "") -> list[AnyPanel]:
    """Losses over layers, differences to the controls, and losses of another scale (Fig 5)."""
    layers = sorted(scopes, key=layer_of)
    places = [(run, scope) for scope in layers]
    x = np.array([layer_of(scope) for scope in layers], dtype=np.float64)
    panels: list[AnyPanel] = []
    for title, kinds in ((LOSS, COMPARED), (OTHERS, APART)):
        lines = tuple(_losses(kind, places, x) for kind in kinds if kind in run.kinds)
        if _has_points(lines):
            marks = (Mark("", y=run.clean_loss.value),) if math.isfinite(run.clean_loss.value) else ()
            panels.append(Curves(title, lines, "layer", whole_x=True, from_zero=False, marks=marks, note=note))
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
    for title, kinds in ((LOSS, COMPARED), (OTHERS, APART)):
        lines = tuple(_losses(kind, places, x) for kind in kinds if kind in first.kinds)
        if _has_points(lines):
            lines = lines if same else (*lines, Curve("as it is", "muted", x, own, marker="X"))
            panels.append(Dots(title, names, lines, marks, note))
    lines = tuple(_differences(control, places, x) for control in first.controls)
    if _has_points(lines):
        panels.insert(1, Dots(CHANGE, names, lines, (Mark("", x=0.0),), note))
    return panels


def _losses(kind: str, places: Sequence[tuple[Ablation, str]], x: np.ndarray) -> Curve:
    """Losses of a kind at each place (tables and scope), the mean over seeds, with a band over several seeds."""
    found = [run.loss(kind, scope) for run, scope in places]
    values = np.array([(loss.loss, loss.least, loss.greatest) for loss in found])
    return _curve(KINDS[kind].label, kind, x, values)


def _differences(control: str, places: Sequence[tuple[Ablation, str]], x: np.ndarray) -> Curve:
    """Zero modes minus a control at each place, with intervals."""
    found = [run.difference(control, scope) for run, scope in places]
    values = np.array([(one.value, one.low, one.high) for one in found])
    return _curve(f"zero modes − {KINDS[control].label}", control, x, values)


def _curve(label: str, kind: str, x: np.ndarray, values: np.ndarray) -> Curve:
    """A line whose `values` have the columns y, low and high; without ends it has no band."""
    look = KINDS[kind]
    low, high = (values[:, side] if np.isfinite(values[:, side]).any() else None for side in (1, 2))
    hides = kind == "keep_only"  # with the value 0 it is the same as all but zero modes
    return Curve(label, look.role, x, values[:, 0], low, high, marker=look.marker, dashed=hides)


def _has_points(lines: Sequence[Curve]) -> bool:
    return any(np.isfinite(line.y).any() for line in lines)


def head_panels(run: Ablation, scopes: Sequence[str], note: str = "") -> list[AnyPanel]:
    """Layers by heads: the change of the loss, the difference to a control, and that over half its interval."""
    values = {scope: loss.change for scope, loss in run.losses("zero_modes").items()}
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
        more = f"{apart} of {len(over)} beyond ±1"
        panels.append(_heads("difference / half interval", over, scopes, f"{note}: {more}" if note else more))
    return panels


def _heads(title: str, values: Mapping[str, float], scopes: Sequence[str], note: str) -> Grid:
    places = [head_of(scope) for scope in scopes]
    layers, heads = (sorted({place[side] for place in places}) for side in (0, 1))
    cells = np.full((len(layers), len(heads)), np.nan)
    for scope, (layer, head) in zip(scopes, places, strict=True):
        cells[layers.index(layer), heads.index(head)] = values.get(scope, np.nan)
    rows, columns = (tuple(map(str, numbers)) for numbers in (layers, heads))
    return Grid(title, rows, columns, cells, x_label="head", y_label="layer", include=0.0, note=note)


def _domains(domains: Sequence[tuple[str, Ablation]]) -> Iterator[FigureSpec]:
    """A row a domain, for all blocks."""
    shown = [(name, run) for name, run in domains if "all" in run.scopes][:ROWS]
    if len(shown) < 2:
        return
    panels = dot_panels([(clean(name), run, "all") for name, run in shown])
    if panels:
        caption = f"{_caption('in all blocks, by domain', *(run for _, run in shown))} A cross is the model as it is."
        yield _spec("zero_mode_ablation_domains", caption, "Loss without zero modes by domain", panels)


def _spec(name: str, caption: str, label: str, panels: list[AnyPanel], *, on_page: bool = True) -> FigureSpec:
    grids = [panel for panel in panels if isinstance(panel, Grid)]
    wide = columns(grids) if grids else 3
    return FigureSpec(name, caption, label, tuple(panels), columns=wide, on_page=on_page)


def _caption(by: str, *runs: Ablation) -> str:
    """What is drawn of losses, on how much data; of several domains, on all of it."""
    run = runs[0]
    drawn = [NAMES[kind] for kind in COMPARED if kind in run.kinds]
    parts = [f"Loss after weights were {set_to(run.value)}, {by}"]
    parts[0] += f": {listed(drawn)}." if drawn else "."
    if any(run.has_seeds(kind) for kind in CONTROLS):
        parts.append("Random ones are means over draws, from the least to the greatest; zero modes are one set.")
    if run.controls:
        parts.append("Zero modes − a control: how much higher the loss is without zero modes, with 95 % intervals.")
    if others := [NAMES[kind] for kind in APART if kind in run.kinds]:
        parts.append(f"On an axis of their own: {listed(others)}.")
    n_tokens, n_documents = (sum(int(one.lanes[name].iloc[0]) for one in runs) for name in ("n_tokens", "n_documents"))
    parts.append(f"{count(n_tokens, 'position')} of {count(n_documents, 'document')}.")
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
