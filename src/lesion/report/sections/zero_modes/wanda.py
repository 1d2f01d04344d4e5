"""The section of `lesion zero-modes wanda`: where zero modes sit in rankings of the weights (§5, footnote 16)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from lesion.report.content import Curve, Curves, FigureSpec, Mark, Section, TableSpec
from lesion.report.drawing.style import clean
from lesion.report.facts import about_model
from lesion.report.numbers import count
from lesion.report.sections.zero_modes.rows import (
    called,
    columns,
    heat,
    in_order,
    main_table,
    numbers,
    optional_table,
    ratio,
    role_and_marker,
    share,
    significant,
    warnings,
)
from lesion.results import RunView

PARTS = 10
BY = {
    "wanda": ("|w| × activation (Wanda)", "drop", "o"),
    "magnitude": ("|w| alone", "swap", "s"),
    "activation": ("activation alone", "drop_attn", "^"),
}
"""Rankings: what they are called, their colour and their marker."""
DEFINITIONS = (
    ("Wanda score", "|w| times the Euclidean norm of its input over all tokens, in the dense model."),
    ("tenth", "weights of an output row in ten equal parts by the ranking, 1 the lowest; ties share alike."),
    (
        "× mean",
        "share of zero modes in a tenth over their share in all weights; 1 where a ranking says nothing of them.",
    ),
    ("rank of a neuron", "1 has the highest sum of scores of its matrix: over its row, or its column in down and fc2."),
)


def section(run: RunView) -> Section:
    """The section of one run, from its tables."""
    table = main_table(run, "zero_modes_wanda")
    neurons = optional_table(run, "zero_modes_wanda_neurons")
    return Section(
        title="Zero modes in the ranking of weights",
        subject=str(run.manifest["model"]["name"]),
        byline=about_model(run.manifest),
        overview=tuple(sentences(table, neurons)),
        measured=tuple(notes(table, run.manifest)),
        definitions=DEFINITIONS,
        figures=tuple(figures(table, neurons)),
        tables=tuple(tables(table)),
        missing=(*warnings(run.manifest), *missing(table, neurons)),
    )


def sums(table: pd.DataFrame, component: str, by: str) -> pd.DataFrame:
    """The ten rows of a component over all blocks, or of all `projections`, by one ranking."""
    rows = table[table["tensor"].isna() & (table["component"] == component) & (table["by"] == by)]
    return rows.sort_values("decile")


def sentences(table: pd.DataFrame, neurons: pd.DataFrame | None) -> Iterator[str]:
    """The overview."""
    rows = {by: sums(table, "projections", by).dropna(subset="over_mean") for by in BY}
    rows = {by: found for by, found in rows.items() if len(found)}
    if "wanda" in rows:
        own = rows["wanda"]
        yield (
            f"{share(ratio(own, 'n_zero_modes', 'n_weights'))} of {int(own['n_weights'].sum()):,} weights in "
            "the projection matrices are zero modes. Of the tenth with the highest Wanda scores "
            f"{_at(own, -1)}, of that with the lowest {_at(own, 0)}."
        )
    if "magnitude" in rows:
        own = rows["magnitude"]
        yield f"Ranked by |w| alone, of the highest tenth {_at(own, -1)}, of the lowest {_at(own, 0)}."
    if "activation" in rows:
        low, high = rows["activation"]["over_mean"].min(), rows["activation"]["over_mean"].max()
        yield f"Ranked by activation alone, tenths have {significant(low)} to {significant(high)} times the mean share."
    if neurons is not None:
        yield from _neurons(neurons)


def _at(rows: pd.DataFrame, place: int) -> str:
    row = rows.iloc[place]
    return f"{share(row['fraction'])} are ({significant(row['over_mean'])} times the mean)"


def _neurons(neurons: pd.DataFrame) -> Iterator[str]:
    """Zero modes of the neurons with the highest scores beside those of all."""
    top, every = neurons.loc[_tenths(neurons) == 1, "fraction"].mean(), neurons["fraction"].mean()
    if np.isfinite(top) and np.isfinite(every):
        yield (
            f"MLP neurons among the tenth with the highest summed scores of their matrix have on average {share(top)} "
            f"zero modes, all neurons {share(every)}."
        )


def _tenths(neurons: pd.DataFrame) -> pd.Series:
    """For each neuron, its tenth of the neurons of its matrix; 1 has the highest scores."""
    found: pd.Series = (neurons["rank"] - 1) * PARTS // neurons.groupby("tensor")["rank"].transform("size") + 1
    return found


def notes(table: pd.DataFrame, manifest: dict[str, Any]) -> Iterator[str]:
    """What was run and ranked."""
    tokens = manifest.get("counts", {}).get("n_tokens_seen")
    over = f" over {count(int(tokens), 'token')}" if tokens is not None else ""
    yield f"Norms of inputs were taken in the dense model{over}: every real token counts, padding does not."
    yield "Weights are ranked within their output row; numbers are sums over rows of matrices ranked each by itself."
    yield f"Ranked: {table['tensor'].nunique():,} projection matrices of {clean(str(manifest['model']['name']), 100)}."


def figures(table: pd.DataFrame, neurons: pd.DataFrame | None) -> Iterator[FigureSpec]:
    """Tenths in all projections, by component, by layer; and neurons."""
    found = sums(table, "projections", "wanda")
    mean = 100 * ratio(found, "n_zero_modes", "n_weights")
    lines = tuple(_line(sums(table, "projections", by), "fraction", 100.0, *BY[by]) for by in BY)
    lines = tuple(line for line in lines if np.isfinite(line.y).any())
    if lines:
        panel = Curves(
            "zero modes (% of weights)", lines, "tenth of the ranking", whole_x=True, marks=(Mark("mean", y=mean),)
        )
        by_component = [_components(table, by) for by in BY if not sums(table, "projections", by).empty]
        yield FigureSpec(
            "zero_modes_wanda",
            "Share of zero modes in each tenth of the weights of an output row, ranked by Wanda’s score, by |w| alone "
            "and by activation alone, in all projection matrices inside blocks. Dashed: their share in all weights.",
            "Zero modes by tenth of three rankings",
            (panel,),
        )
        yield FigureSpec(
            "zero_modes_wanda_components",
            "The same by component over all blocks, as a multiple of the component’s own share; dashed: 1. A panel a "
            "ranking.",
            "Zero modes by tenth of three rankings and component",
            tuple(by_component),
        )
    yield from _by_layer(table)
    if neurons is not None:
        yield from _neuron_figure(neurons)


def _line(rows: pd.DataFrame, column: str, factor: float, label: str, role: str, marker: str) -> Curve:
    return Curve(label, role, numbers(rows, "decile"), factor * numbers(rows, column), marker=marker)


def _components(table: pd.DataFrame, by: str) -> Curves:
    components = in_order(list(table["component"]))
    lines = tuple(
        _line(sums(table, component, by), "over_mean", 1.0, called(component), *role_and_marker(index))
        for index, component in enumerate(components)
    )
    title = "share of zero modes (× mean)"
    return Curves(title, lines, "tenth of the ranking", whole_x=True, marks=(Mark("", y=1.0),), note=BY[by][0])


def _by_layer(table: pd.DataFrame) -> Iterator[FigureSpec]:
    top = table[table["tensor"].notna() & (table["decile"] == PARTS)]
    panels = []
    for by, (name, _, _) in BY.items():
        rows = top[(top["by"] == by) & top["over_mean"].notna()]
        if not rows.empty:
            panels.append(heat("highest tenth, × mean", rows, _mean_over, include=0.0, note=name))
    if panels:
        yield FigureSpec(
            "zero_modes_wanda_layers",
            "Zero modes among the tenth of weights that each ranking puts highest, as a multiple of their share in the "
            "whole matrix, by layer and projection matrix.",
            "Zero modes in the highest tenth by layer and component",
            tuple(panels),
            columns=columns(panels),
        )


def _mean_over(rows: pd.DataFrame) -> float:
    return float(rows["over_mean"].mean())


def _neuron_figure(neurons: pd.DataFrame) -> Iterator[FigureSpec]:
    """Zero modes by tenth of the neurons of a matrix, mean over layers."""
    means = neurons.assign(tenth=_tenths(neurons)).groupby(["component", "tenth"])["fraction"].mean()
    lines = []
    for index, component in enumerate(in_order(list(neurons["component"]))):
        own = means.loc[component]
        x = np.asarray(own.index, dtype=np.float64)
        role, marker = role_and_marker(index)
        lines.append(Curve(called(component), role, x, 100 * np.asarray(own, dtype=np.float64), marker=marker))
    if any(np.isfinite(line.y).any() for line in lines):
        title = "zero modes of a neuron (% of weights)"
        panel = Curves(title, tuple(lines), "tenth of neurons, highest scores first", whole_x=True)
        yield FigureSpec(
            "zero_modes_wanda_neurons",
            "Share of zero modes among the weights of an MLP neuron (row of gate, up and fc1, column of down and fc2), "
            "mean over the tenth of a matrix’s neurons with the highest summed Wanda scores, the next, and so on, and "
            "over layers.",
            "Zero modes by rank of neurons",
            (panel,),
        )


def tables(table: pd.DataFrame) -> Iterator[TableSpec]:
    """The run's table: sums unfolded."""
    text = "All projection matrices, and each component over all blocks, by ranking and tenth."
    by_tensor = table[table["tensor"].notna()]
    yield TableSpec(
        "zero_modes_wanda", text, table.drop(by_tensor.index).drop(columns=["tensor", "layer"]), part="sums"
    )
    yield TableSpec("zero_modes_wanda", "By matrix.", by_tensor, is_open=False, part="by matrix")


def missing(table: pd.DataFrame, neurons: pd.DataFrame | None) -> Iterator[str]:
    """What a reader may look for and not find."""
    if not table["over_mean"].notna().any():
        yield "There are no zero modes in these matrices: nothing is drawn relative to them."
    if neurons is None:
        yield "None of the matrices belongs to an MLP whose neurons are known: there are no neurons."
    else:
        yield "The table of neurons (zero_modes_wanda_neurons) has a row a neuron and matrix; it is in tables/."
