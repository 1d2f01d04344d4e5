"""Figures of a training: losses, rate, and zero modes by step."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from lesion.report.content import Curve, Curves, FigureSpec, Grid
from lesion.report.drawing.style import tick
from lesion.report.sections.zero_modes.rows import PROJECTIONS, called, in_order, numbers, role_and_marker

FEW_POINTS = 60
"""Up to so many points of a line each has a marker."""
FEW_LAYERS = 6
"""Up to so many layers each has a panel of its own."""
MOST_ROWS = 24
"""Steps of the heat map; of more, so many are drawn, evenly spread."""
TYPES = {"bf16": 0, "fp16": 1, "fp32": 2}
"""The colour of a stored type, whichever others there are."""
AMOUNTS = ["n_weights", "n_zero_modes", "n_never_changed", "n_came_back"]
QUANTITIES = {
    "fraction": "zero modes (% of weights)",
    "fraction_never_changed": "never changed (% of weights)",
    "share_came_back": "came back (% of zero modes)",
}


def unit_of(losses: pd.DataFrame) -> str:
    """What was read: tokens or images."""
    return "images" if "n_images" in losses.columns else "tokens"


def last_count(zero_modes: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last counted step."""
    found: pd.DataFrame = zero_modes[zero_modes["step"] == zero_modes["step"].max()]
    return found


def over_projections(zero_modes: pd.DataFrame) -> pd.DataFrame:
    """A row a step and type over all projection matrices inside blocks, with its shares."""
    inside = zero_modes[zero_modes["layer"].notna() & zero_modes["component"].isin(PROJECTIONS)]
    sums = inside.groupby(["step", "dtype"], sort=False)[AMOUNTS].sum().reset_index()
    return _with_shares(sums)


def _with_shares(rows: pd.DataFrame) -> pd.DataFrame:
    weights, zero_modes = rows["n_weights"].astype(float), rows["n_zero_modes"].astype(float)
    return rows.assign(
        fraction=zero_modes / weights,
        fraction_never_changed=rows["n_never_changed"] / weights,
        share_came_back=rows["n_came_back"] / zero_modes.where(zero_modes > 0),
    )


def figures(
    losses: pd.DataFrame,
    held_out: pd.DataFrame | None,
    by_domain: pd.DataFrame | None,
    zero_modes: pd.DataFrame | None,
) -> Iterator[FigureSpec]:
    """In the order of the page."""
    yield _loss(losses, held_out, by_domain)
    yield _rate(losses)
    if zero_modes is None:
        return
    rows = over_projections(zero_modes)
    if rows.empty:
        return
    yield FigureSpec(
        "training_zero_modes",
        "Weights of the projection matrices with the bits of the start, by step and stored type: their share, the "
        "share that had changed at no counted step, and the share of zero modes that had changed and come back.",
        "Zero modes by step and stored type",
        tuple(_by_type(rows, column, title) for column, title in QUANTITIES.items()),
    )
    for index, word in enumerate(dict.fromkeys(zero_modes["dtype"])):
        yield _by_layer(zero_modes[zero_modes["dtype"] == word], str(word), on_page=not index)


def _loss(losses: pd.DataFrame, held_out: pd.DataFrame | None, by_domain: pd.DataFrame | None) -> FigureSpec:
    unit = unit_of(losses).removesuffix("s")
    title = f"loss (nats an {unit})" if unit == "image" else f"loss (nats a {unit})"
    lines = [Curve("training", "swap", numbers(losses, "step"), numbers(losses, "loss_nats"))]
    text = "Training loss by step, the mean over the steps between two points."
    if held_out is not None:
        lines.append(_with_band("held out", "drop", "o", held_out))
        text = f"{text[:-1]}, and the loss on what was held out with its standard error."
    panels = [Curves(title, tuple(lines), "step", whole_x=True, from_zero=False)]
    if by_domain is not None:
        domains = []
        for index, name in enumerate(dict.fromkeys(by_domain["domain"])):
            role, marker = role_and_marker(index)
            domains.append(_with_band(str(name), role, marker, by_domain[by_domain["domain"] == name]))
        panels.append(Curves(title, tuple(domains), "step", whole_x=True, from_zero=False, note="held out, by domain"))
    return FigureSpec("training_loss", text, "Loss by step", tuple(panels))


def _with_band(label: str, role: str, marker: str, rows: pd.DataFrame) -> Curve:
    x, y, sem = numbers(rows, "step"), numbers(rows, "loss_nats"), np.nan_to_num(numbers(rows, "loss_nats_sem"))
    return Curve(label, role, x, y, y - sem, y + sem, marker=marker if len(x) <= FEW_POINTS else "")


def _rate(losses: pd.DataFrame) -> FigureSpec:
    rates = numbers(losses, "learning_rate")
    power = math.floor(math.log10(rates.max())) if rates.max() > 0 else 0
    scale = f" (in {tick(10.0**power)})" if power < -1 else ""
    shown = {f"learning rate{scale}": rates / 10.0**power if scale else rates}
    shown["norm of the gradient"] = numbers(losses, "gradient_norm")
    panels = []
    for title, values in shown.items():
        line = Curve("last step of each row", "domain_0", numbers(losses, "step"), values)
        panels.append(Curves(title, (line,), "step", whole_x=True))
    text = "Learning rate, and the norm of the gradient before it was clipped, by step."
    return FigureSpec("training_rate", text, "Learning rate and gradient by step", tuple(panels))


def _by_type(rows: pd.DataFrame, column: str, title: str) -> Curves:
    lines = []
    for word in dict.fromkeys(rows["dtype"]):
        own = rows[rows["dtype"] == word].sort_values("step")
        lines.append(_line(str(word), TYPES[str(word)], own, column))
    return Curves(title, tuple(lines), "step", whole_x=True)


def _line(label: str, index: int, rows: pd.DataFrame, column: str) -> Curve:
    role, marker = role_and_marker(index)
    x, y = numbers(rows, "step"), 100 * numbers(rows, column)
    return Curve(label, role, x, y, marker=marker if len(x) <= FEW_POINTS else "")


def _by_layer(rows: pd.DataFrame, word: str, *, on_page: bool) -> FigureSpec:
    inside = rows[rows["layer"].notna() & rows["component"].isin(PROJECTIONS)]
    layers = sorted({int(layer) for layer in inside["layer"]})
    name, label = f"training_zero_modes_{word}", f"Zero modes by step, layer and component, stored as {word}"
    text = f"Zero modes against the start, stored as {word}"
    if len(layers) > FEW_LAYERS:
        grid, fewer = _grid(inside, layers)
        caption = f"{text}, in the projection matrices by step and layer.{fewer}"
        return FigureSpec(name, caption, label, (grid,), on_page=on_page)
    panels = []
    for layer in layers:
        own = inside[inside["layer"] == layer]
        lines = [
            _line(called(component), index, own[own["component"] == component].sort_values("step"), "fraction")
            for index, component in enumerate(in_order(list(own["component"])))
        ]
        title = QUANTITIES["fraction"]
        panels.append(Curves(title, tuple(lines), "step", whole_x=True, note=f"layer {layer}"))
    caption = f"{text}, by step and component, a panel a layer."
    return FigureSpec(name, caption, label, tuple(panels), on_page=on_page)


def _grid(inside: pd.DataFrame, layers: list[int]) -> tuple[Grid, str]:
    steps = sorted(set(inside["step"]))
    chosen = [steps[place] for place in np.linspace(0, len(steps) - 1, min(len(steps), MOST_ROWS), dtype=int)]
    sums = inside.groupby(["step", "layer"])[["n_zero_modes", "n_weights"]].sum()
    shares = (100 * sums["n_zero_modes"] / sums["n_weights"]).unstack("layer").reindex(index=chosen, columns=layers)
    grid = Grid(
        QUANTITIES["fraction"],
        tuple(f"{step:,}" for step in chosen),
        tuple(map(str, layers)),
        np.asarray(shares, dtype=np.float64),
        unit="%",
        y_label="step",
        include=0.0,
    )
    fewer = "" if len(chosen) == len(steps) else f" {len(chosen)} of {len(steps)} counted steps, evenly spread."
    return grid, fewer
