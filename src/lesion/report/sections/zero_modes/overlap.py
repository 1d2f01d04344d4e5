"""The section of `lesion zero-modes overlap`: how many zero modes several pairs share, beside what chance gives."""

import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from lesion.report.content import FigureSpec, Grid, Section, TableSpec
from lesion.report.drawing.style import clean
from lesion.report.numbers import PLUS_MINUS, count, listed, number
from lesion.report.sections.zero_modes.rows import (
    columns,
    heat,
    main_table,
    optional_table,
    projections,
    ratio,
    share,
    significant,
    total,
    warnings,
)
from lesion.results import RunView

PAIRS_SAID, PAIRS_ON_PAGE, PAIRS_DRAWN = 6, 3, 20
"""Pairs of masks that get a sentence, a figure on the page, and a figure at all."""
LONGEST = 60
"""Characters of a mask's name in a sentence."""
DEFINITIONS = (
    ("Jaccard index", "zero modes of both masks over zero modes of either."),
    (
        "by chance",
        "zero modes that both would have were each mask’s drawn from all weights of a tensor, added over tensors.",
    ),
    (
        "within exponents",
        "the same, drawn from weights of one exponent of |w|: zero modes are large weights, and masks meet there.",
    ),
)


def section(run: RunView) -> Section:
    """The section of one run, from its tables."""
    table = main_table(run, "zero_modes_overlap")
    together = optional_table(run, "zero_modes_overlap_all")
    names = list(dict.fromkeys([*table["a"], *table["b"]]))
    pairs = [(a, b) for a, b in combinations(names, 2) if not of_pair(table, a, b).empty]
    return Section(
        title="Overlap of zero modes",
        subject=listed([clean(name, LONGEST) for name in names]),
        byline=f"{count(len(names), 'mask')} · {count(int(table['tensor'].nunique()), 'tensor')}",
        overview=tuple(sentences(table, pairs, together)),
        measured=tuple(notes(table, run.manifest)),
        definitions=DEFINITIONS,
        figures=tuple(figures(table, names, pairs)),
        tables=tuple(tables(run, table, together)),
        missing=(*warnings(run.manifest), *missing(table, pairs)),
    )


def of_pair(table: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """The rows of one pair of masks."""
    return table[(table["a"] == a) & (table["b"] == b)]


def sentences(table: pd.DataFrame, pairs: list[tuple[str, str]], together: pd.DataFrame | None) -> Iterator[str]:
    """The overview: a sentence a pair, and one on all masks together."""
    for a, b in pairs[:PAIRS_SAID]:
        yield from _pair(of_pair(table, a, b), clean(a, LONGEST), clean(b, LONGEST))
    if together is not None:
        yield from _together(together)


def _pair(rows: pd.DataFrame, a: str, b: str) -> Iterator[str]:
    row, where = total(rows)
    if row is None:
        return
    if not row["n_a"] or not row["n_b"]:
        yield f"{a} or {b} has no zero modes {where}: there is nothing to compare."
        return
    yield (
        f"{a} has {count(int(row['n_a']), 'zero mode')} {where} and {b} {int(row['n_b']):,}; they share "
        f"{int(row['n_both']):,}: {share(row['share_of_a'])} of {a}’s, {share(row['share_of_b'])} of {b}’s, Jaccard "
        f"index {significant(row['jaccard'])}. Chance would give {_chance(row, '')}{_exponents(row)}."
    )


def _exponents(row: pd.Series) -> str:
    if not math.isfinite(row["n_both_by_chance_in_exponents"]):
        return ""
    return f"; within exponents of |w| it would give {_chance(row, '_in_exponents')}"


def _chance(row: pd.Series, kind: str) -> str:
    """What chance gives, how many times that they share, and whether two standard deviations tell the two apart."""
    expected, sd = float(row[f"n_both_by_chance{kind}"]), float(row[f"n_both_by_chance{kind}_sd"])
    if not expected:
        return "none"
    text = (
        f"{number(expected, 0)}{PLUS_MINUS}{number(sd, 0)}: they share {significant(row[f'over_chance{kind}'])} times"
    )
    near = abs(row["n_both"] - expected) <= 2 * sd
    return f"{text} as many, which is within two standard deviations" if near else f"{text} as many"


def _together(together: pd.DataFrame) -> Iterator[str]:
    row, where = total(together)
    if row is None or not row["n_in_any"]:
        return
    times = f", {significant(row['over_chance'])} times what chance would give" if row["n_in_all_by_chance"] else ""
    yield (
        f"{count(int(row['n_in_any']), 'weight')} {where} are zero modes of at least one of the "
        f"{int(row['n_masks'])} masks, {int(row['n_in_all']):,} of all of them{times}."
    )


def notes(table: pd.DataFrame, manifest: dict[str, Any]) -> Iterator[str]:
    """What was compared with what."""
    yield "Masks are compared tensor by tensor; sums are over the tensors that both have."
    weights = manifest.get("weights")
    if isinstance(weights, dict):
        yield f"Exponents of |w| are those of {clean(str(weights['name']), LONGEST)}."
    yield "± is one standard deviation over random masks with as many ones in each tensor (hypergeometric)."


def figures(table: pd.DataFrame, names: list[str], pairs: list[tuple[str, str]]) -> Iterator[FigureSpec]:
    """All masks against each other where there are three or more, then a figure a pair."""
    if len(names) > 2:
        yield from _all_masks(table, names)
    for index, (a, b) in enumerate(pairs[:PAIRS_DRAWN]):
        inside = projections(of_pair(table, a, b))
        inside = inside[inside["tensor"].notna()]
        if not inside.empty:
            yield _by_place(inside, a, b, index)


def _all_masks(table: pd.DataFrame, names: list[str]) -> Iterator[FigureSpec]:
    titles = {
        "jaccard": ("Jaccard index (%)", 100.0, "%"),
        "over_chance": ("shared weights, × chance", 1.0, ""),
        "over_chance_in_exponents": ("× chance within exponents", 1.0, ""),
    }
    panels = []
    for column, (title, factor, unit) in titles.items():
        values = np.full((len(names), len(names)), np.nan)
        for (i, a), (j, b) in combinations(enumerate(names), 2):
            row, _ = total(of_pair(table, a, b))
            if row is not None:
                values[i, j] = values[j, i] = factor * float(row[column])
        if np.isfinite(values).any():
            panels.append(Grid(title, tuple(names), tuple(names), values, unit=unit, x_label="", include=0.0))
    if panels:
        yield FigureSpec(
            "zero_modes_overlap",
            "Zero modes that pairs of masks share, in all projection matrices inside blocks: Jaccard index, and how "
            "many times as many as chance gives, among all weights of a tensor and among those of one exponent of |w|.",
            "Overlap of each pair of masks",
            tuple(panels),
            columns=columns(panels),
        )


def _by_place(inside: pd.DataFrame, a: str, b: str, index: int) -> FigureSpec:
    panels = [
        heat("Jaccard index (%)", inside, lambda rows: 100 * ratio(rows, "n_both", "n_either"), unit="%", include=0.0),
        heat("shared weights, × chance", inside, lambda rows: ratio(rows, "n_both", "n_both_by_chance"), include=0.0),
    ]
    within = "n_both_by_chance_in_exponents"
    if inside[within].notna().any():
        panels.append(
            heat("× chance within exponents", inside, lambda rows: ratio(rows, "n_both", within), include=0.0)
        )
    first, second = clean(a), clean(b)
    cells = inside.groupby(["layer", "component"])["n_both"].sum()
    return FigureSpec(
        f"zero_modes_overlap_{index + 1}",
        f"Zero modes that {first} and {second} share, by layer and projection matrix: Jaccard index, and how many "
        "times as many as chance gives, among all weights of a matrix and among those of one exponent of |w|. A cell "
        f"has {cells.min():,} to {cells.max():,} shared ones: where they are few, it scatters.",
        f"Overlap of {first} and {second} by layer and component",
        tuple(panels),
        columns=columns(panels),
        on_page=index < PAIRS_ON_PAGE,
    )


def tables(run: RunView, table: pd.DataFrame, together: pd.DataFrame | None) -> Iterator[TableSpec]:
    """The run's tables: sums first."""
    by_tensor = table[table["tensor"].notna()]
    sums = table[table["tensor"].isna()].drop(columns="tensor").dropna(axis="columns", how="all")
    if not sums.empty:
        text = "A row a pair and component, over all tensors; projections are matrices inside blocks."
        yield TableSpec("zero_modes_overlap", text, sums, part="sums")
    yield TableSpec("zero_modes_overlap", "A row a pair and tensor.", by_tensor, is_open=False, part="by tensor")
    if together is not None:
        yield TableSpec("zero_modes_overlap_all", "All masks together, by tensor and in sums.", together, is_open=False)
    uncompared = optional_table(run, "zero_modes_overlap_uncompared")
    if uncompared is not None:
        yield TableSpec("zero_modes_overlap_uncompared", "Tensors that a pair cannot share.", uncompared, is_open=False)


def missing(table: pd.DataFrame, pairs: list[tuple[str, str]]) -> Iterator[str]:
    """What a reader may look for and not find."""
    if not table["n_both_by_chance_in_exponents"].notna().any():
        yield "Nothing is compared within exponents of |w|: the weights were not at hand (--weights BASE)."
    if len(pairs) > PAIRS_SAID:
        yield f"The overview has the first {PAIRS_SAID} of {len(pairs)} pairs; the table has all."
    if len(pairs) > PAIRS_DRAWN:
        yield f"Layers and components are drawn for the first {PAIRS_DRAWN} of {len(pairs)} pairs."
