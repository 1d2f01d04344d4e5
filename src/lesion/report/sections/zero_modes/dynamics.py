"""The section of `lesion zero-modes dynamics`: which weights never moved over a series of checkpoints (Figs 13, 14)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from lesion.report.content import Curve, Curves, FigureSpec, Grid, Section, TableSpec
from lesion.report.drawing.style import clean
from lesion.report.numbers import count, listed
from lesion.report.sections.zero_modes.rows import (
    PROJECTIONS,
    called,
    components_list,
    in_order,
    main_table,
    numbers,
    optional_table,
    projections,
    role_and_marker,
    share,
    total,
    warnings,
)
from lesion.results import RunView

FEW_LAYERS = 6
"""Up to so many layers each has a panel of its own."""
MOST_ROWS = 24
"""Checkpoints of the heat map; of more, so many are drawn, evenly spread."""
LONGEST = 60
"""Characters of a checkpoint's name in a sentence."""
QUANTITIES = {
    "fraction": "zero modes (% of weights)",
    "fraction_never_changed": "never changed (% of weights)",
    "share_came_back": "came back (% of zero modes)",
}
DEFINITIONS = (
    ("zero mode", "a weight whose stored bits at a checkpoint are those of the first one."),
    ("never changed", "a zero mode that had these bits at every checkpoint on the way, too."),
    ("came back", "a zero mode that had other bits at some checkpoint on the way."),
)


def section(run: RunView) -> Section:
    """The section of one run, from its tables."""
    table = main_table(run, "zero_modes_dynamics")
    names = [clean(str(one["called"]), LONGEST) for one in run.manifest["checkpoints"]]
    later = sorted(set(table["checkpoint"]))
    return Section(
        title="Zero modes over a series",
        subject=f"{names[0]} to {names[-1]}",
        byline=f"{count(len(names), 'checkpoint')} · {count(int(table['tensor'].nunique()), 'tensor')}",
        overview=tuple(sentences(table, names)),
        measured=(clean(str(run.manifest["note"]), 1000) + ".", _order(names)),
        definitions=DEFINITIONS,
        figures=tuple(figures(table, names)),
        tables=tuple(tables(run, table)),
        missing=(*warnings(run.manifest), *missing(table, later)),
    )


def _order(names: list[str]) -> str:
    later = [f"{index} {name}" for index, name in enumerate(names[1:], start=1)]
    shown = later if len(later) <= MOST_ROWS else [*later[: MOST_ROWS - 1], "…", later[-1]]
    return f"The start is {names[0]}; the checkpoints after it: {', '.join(shown)}."


def at(table: pd.DataFrame, checkpoint: int) -> pd.DataFrame:
    """The rows of one checkpoint."""
    return table[table["checkpoint"] == checkpoint]


def sentences(table: pd.DataFrame, names: list[str]) -> Iterator[str]:
    """The overview: the last checkpoint, the way to it, and what differs between components."""
    last = int(table["checkpoint"].max())
    row, where = total(at(table, last))
    if row is None or not row["n_weights"]:
        return
    yield (
        f"At {names[last]} {int(row['n_zero_modes']):,} of {count(int(row['n_weights']), 'weight')} {where} have the "
        f"bits that they had at {names[0]}: {share(row['fraction'])}."
    )
    if row["n_zero_modes"]:
        yield (
            f"Of these, {int(row['n_never_changed']):,} never changed at any checkpoint on the way "
            f"({share(row['n_never_changed'] / row['n_zero_modes'])}), and {int(row['n_came_back']):,} changed and "
            f"came back ({share(row['share_came_back'])})."
        )
    if last > 1:
        yield from _way(table, names, last)
    yield from _components(at(table, last))


def _way(table: pd.DataFrame, names: list[str], last: int) -> Iterator[str]:
    shares = []
    for checkpoint in range(1, last + 1):
        row, _ = total(at(table, checkpoint))
        shares.append(float(row["fraction"]) if row is not None else float("nan"))
    steps = np.diff(shares)
    text = f"Their share went from {share(shares[0])} at {names[1]} to {share(shares[-1])}"
    if len(steps) > 1:
        text += f"; it fell at {int((steps < 0).sum())} of {len(steps)} steps and rose at {int((steps > 0).sum())}"
    yield f"{text}."


def _components(rows: pd.DataFrame) -> Iterator[str]:
    found = over_layers(rows)
    found = found[found["share_came_back"].notna()]
    if found["share_came_back"].nunique() < 2:
        return
    values = found.set_index("component")["share_came_back"]
    ends = [(float(end), in_order(list(values.index[values == end]))) for end in (values.min(), values.max())]
    least, most = (f"{share(end)} ({components_list(which)})" for end, which in ends)
    yield f"By component, the share of zero modes that changed and came back goes from {least} to {most}."


def over_layers(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a component over all layers."""
    sums = table[table["tensor"].isna() & table["layer"].isna()]
    return sums[sums["component"].isin(PROJECTIONS)]


def figures(table: pd.DataFrame, names: list[str]) -> Iterator[FigureSpec]:
    """Over all layers, then by layer."""
    later = sorted(set(table["checkpoint"]))
    rows = over_layers(table)
    if rows.empty:
        return
    panels = tuple(_panel(rows, column, title) for column, title in QUANTITIES.items())
    yield FigureSpec(
        "zero_modes_dynamics",
        f"Zero modes against {names[0]} at each checkpoint after it, by component over all layers: their share of the "
        "weights, the share that never changed on the way, and the share of zero modes that changed and came back.",
        "Zero modes over a series of checkpoints",
        panels,
    )
    by_layer = projections(table[table["tensor"].isna()])
    layers = sorted({int(layer) for layer in by_layer["layer"]})
    if 1 < len(layers) <= FEW_LAYERS:
        yield FigureSpec(
            "zero_modes_dynamics_layers",
            f"Zero modes against {names[0]} at each checkpoint after it, a panel a layer.",
            "Zero modes over a series of checkpoints, by layer",
            tuple(
                _panel(by_layer[by_layer["layer"] == layer], "fraction", QUANTITIES["fraction"], note=f"layer {layer}")
                for layer in layers
            ),
        )
    elif len(layers) > FEW_LAYERS:
        yield _by_layer(by_layer, layers, later, names)


def _panel(rows: pd.DataFrame, column: str, title: str, note: str = "") -> Curves:
    lines = []
    for index, component in enumerate(in_order(list(rows["component"]))):
        own = rows[rows["component"] == component].sort_values("checkpoint")
        role, marker = role_and_marker(index)
        x, y = numbers(own, "checkpoint"), 100 * numbers(own, column)
        lines.append(Curve(called(component), role, x, y, marker=marker))
    return Curves(title, tuple(lines), "checkpoint", whole_x=True, note=note)


def _by_layer(by_layer: pd.DataFrame, layers: list[int], later: list[int], names: list[str]) -> FigureSpec:
    places = np.linspace(0, len(later) - 1, min(len(later), MOST_ROWS), dtype=int)
    chosen = [later[place] for place in places]
    sums = by_layer.groupby(["checkpoint", "layer"])[["n_zero_modes", "n_weights"]].sum()
    shares = (100 * sums["n_zero_modes"] / sums["n_weights"]).unstack("layer").reindex(index=chosen, columns=layers)
    grid = Grid(
        "zero modes (% of weights)",
        tuple(f"{checkpoint}" for checkpoint in chosen),
        tuple(map(str, layers)),
        np.asarray(shares, dtype=np.float64),
        unit="%",
        y_label="checkpoint",
        include=0.0,
    )
    fewer = "" if len(chosen) == len(later) else f" {len(chosen)} of {len(later)} checkpoints, evenly spread."
    text = f"Zero modes against {names[0]} in the projection matrices, by checkpoint and layer.{fewer}"
    return FigureSpec("zero_modes_dynamics_layers", text, "Zero modes by checkpoint and layer", (grid,))


def tables(run: RunView, table: pd.DataFrame) -> Iterator[TableSpec]:
    """The run's tables: sums first."""
    sums = table[table["tensor"].isna() & table["layer"].isna()].drop(columns=["tensor", "layer"])
    if not sums.empty:
        text = "A row a checkpoint and component, over all its tensors; projections are matrices inside blocks."
        yield TableSpec("zero_modes_dynamics", text, sums, part="sums")
    rest = table[table["tensor"].notna() | table["layer"].notna()]
    text = "By tensor, and by layer and component where no tensor is named."
    yield TableSpec("zero_modes_dynamics", text, rest, is_open=False, part="by layer and tensor")
    uncompared = optional_table(run, "zero_modes_dynamics_uncompared")
    if uncompared is not None:
        text = "Tensors that are not in all checkpoints."
        yield TableSpec("zero_modes_dynamics_uncompared", text, uncompared, is_open=False)


def missing(table: pd.DataFrame, later: list[Any]) -> Iterator[str]:
    """What a reader may look for and not find."""
    if over_layers(table).empty:
        found = listed(sorted({str(name) for name in table["component"]}))
        yield f"There is no projection matrix inside a block among the tensors ({found}): no figure is drawn."
    if len(later) < 2:
        yield "There is one checkpoint after the start: nothing can have come back."
