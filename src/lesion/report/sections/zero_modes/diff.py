"""The section of `lesion zero-modes diff`: how many weights fine-tuning left as they were, where, and how large."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from lesion.report.content import Curve, Curves, FigureSpec, Section, TableSpec
from lesion.report.numbers import count, layer_list, listed
from lesion.report.sections.zero_modes import pictures
from lesion.report.sections.zero_modes.rows import (
    called,
    columns,
    components_list,
    heat,
    in_order,
    main_table,
    named,
    numbers,
    optional_table,
    projections,
    ratio,
    role_and_marker,
    share,
    significant,
    warnings,
    weighted,
)
from lesion.results import RunView

SIZE = "mean_abs_zero_modes_over_matrix"
DEFINITIONS = (
    ("zero mode", "a weight whose stored bits are the same in both checkpoints (paper on zero modes, section 2)."),
    ("share", "zero modes over all weights of a matrix, or of several together."),
    ("size", "mean |w| of TUNED’s zero modes over the mean |w| of all weights of their matrix."),
    ("exact zero", "a weight that is 0 in both checkpoints: setting such a zero mode to 0 does nothing."),
    ("distance", "units in the last place between a changed weight before and after, the median of a sample."),
)


def section(run: RunView) -> Section:
    """The section of one run, from its tables and, where it looked at matrices, from its images."""
    table, summary = main_table(run, "zero_modes"), main_table(run, "zero_modes_summary")
    uncompared = optional_table(run, "zero_modes_uncompared")
    ulps = optional_table(run, "zero_modes_ulps")
    looked = pictures.read(run)
    return Section(
        title="Zero modes",
        subject=f"{named(run.manifest['tuned'])} against {named(run.manifest['base'])}",
        byline=byline(table),
        overview=(*sentences(table, summary, uncompared, run.manifest), *pictures.sentences(looked)),
        measured=(*notes(table, run.manifest), *pictures.notes(looked)),
        definitions=(*DEFINITIONS, *pictures.definitions(looked)),
        figures=(*figures(table, run.manifest), *distances(ulps), *pictures.figures(looked)),
        tables=(*tables(run, table, summary, uncompared, ulps), *pictures.tables(looked)),
        missing=(*warnings(run.manifest), *missing(table), *pictures.missing(looked)),
    )


def byline(table: pd.DataFrame) -> str:
    """Sizes and types of what was compared."""
    depth = table["layer"].nunique()
    sizes = [count(len(table), "tensor"), count(int(table["n_weights"].sum()), "weight")]
    sizes += [count(depth, "layer")] if depth else []
    return f"{', '.join(sizes)} · compared as {listed(sorted(set(table['compared_as'])))}"


def sentences(
    table: pd.DataFrame, summary: pd.DataFrame, uncompared: pd.DataFrame | None, manifest: dict[str, Any]
) -> Iterator[str]:
    """The overview."""
    inside = projections(table)
    after = f", after both sides were rounded to {manifest['arguments']['cast']}" if _cast(manifest) else ""
    if inside.empty:
        yield f"{_found(table)} have the same bits in both checkpoints{after}: {_share(table)} of all compared."
    else:
        where = f"in the projection matrices of {count(inside['layer'].nunique(), 'block')}"
        yield f"{_found(inside)} {where} have the same bits in both checkpoints{after}: {_share(inside)}."
        yield from _extremes(inside)
        whole = summary[summary["component"] == "projections"].iloc[-1]
        yield from _large(whole)
        yield from _zeros(whole)
        yield from _distances(inside, whole)
    yield from _elsewhere(table)
    if uncompared is not None:
        yield f"{count(len(uncompared), 'tensor')} could not be compared: no counterpart, or another shape."


def _found(table: pd.DataFrame) -> str:
    return f"{int(table['n_zero_modes'].sum()):,} of {count(int(table['n_weights'].sum()), 'weight')}"


def _share(table: pd.DataFrame) -> str:
    return share(ratio(table, "n_zero_modes", "n_weights"))


def _extremes(inside: pd.DataFrame) -> Iterator[str]:
    """Which component and which layer has the least and the most of them."""
    parts = []
    for kind in ("component", "layer"):
        rows = inside.groupby(kind)[["n_zero_modes", "n_weights"]].sum()
        shares = (rows["n_zero_modes"] / rows["n_weights"]).dropna()
        if shares.nunique() > 1:
            ends = [(float(end), list(shares.index[shares == end])) for end in (shares.min(), shares.max())]
            least, most = (f"{share(end)} ({_named(kind, at)})" for end, at in ends)
            parts.append(f"by {kind} from {least} to {most}")
    if parts:
        yield f"Their share goes {' and '.join(parts)}."


def _named(kind: str, found: list[Any]) -> str:
    return components_list(in_order(found)) if kind == "component" else layer_list([int(layer) for layer in found])


def _large(whole: pd.Series) -> Iterator[str]:
    """How large they are; of one row of the summary."""
    if not np.isfinite(whole[SIZE]):
        return
    held = whole["share_of_squares"]
    squares = f"; they hold {share(held)} of the sum of squares" if np.isfinite(held) else ""
    yield f"On average a zero mode is {significant(whole[SIZE])} times as large as its matrix’s mean |w|{squares}."


def _zeros(whole: pd.Series) -> Iterator[str]:
    if not whole["n_zero_modes"]:
        return
    if not whole["fraction_both_zero"]:
        yield "None of them is exactly 0."
        return
    exact = int(whole["n_both_zero"] - whole["n_signed_zero"])
    yield (
        f"{exact:,} of them ({share(whole['fraction_both_zero'])}) are exactly 0 in both checkpoints: "
        "setting these to 0 does nothing."
    )


def _distances(inside: pd.DataFrame, whole: pd.Series) -> Iterator[str]:
    found = numbers(inside, "ulps_median")
    found = found[np.isfinite(found)]
    if found.size:
        least, most = (significant(float(value)) for value in (found.min(), found.max()))
        near = whole["share_one_ulp"]
        one = f"; {share(near)} of all moved by a single unit" if np.isfinite(near) else ""
        yield f"By matrix, the median weight that changed moved by {least} to {most} units in the last place{one}."


def _elsewhere(table: pd.DataFrame) -> Iterator[str]:
    """What is no projection matrix inside a block."""
    rest = table.drop(projections(table).index)
    if rest.empty or len(rest) == len(table):
        return
    parts = [f"{name} {_share(rows)}" for name, rows in rest.groupby("component") if rows["n_weights"].sum()]
    if parts:
        yield f"Outside the projection matrices: {listed(parts)}."


def notes(table: pd.DataFrame, manifest: dict[str, Any]) -> Iterator[str]:
    """What was compared with what, and how."""
    base, tuned = (_stored(table, side, manifest) for side in ("base", "tuned"))
    yield f"Compared bit by bit, file against file, without building a model: {tuned} against {base}."
    yield (
        "Only the bits decide: +0 and −0 differ, and a NaN is the same as a NaN with the same bits. Names are those of "
        "TUNED’s files."
    )
    if nan := int(table["n_nan"].sum()):
        yield f"{count(nan, 'weight')} {'is' if nan == 1 else 'are'} NaN on one side or both."
    yield "The masks are in arrays/zero_modes.safetensors, a bit a weight."


def _stored(table: pd.DataFrame, side: str, manifest: dict[str, Any]) -> str:
    kinds = listed(sorted(set(table[f"dtype_{side}"])))
    return f"{named(manifest[side])} (stored as {kinds})"


def figures(table: pd.DataFrame, manifest: dict[str, Any]) -> Iterator[FigureSpec]:
    """Heat maps over layers and components of what the run measured."""
    inside = projections(table)
    if inside.empty:
        return
    panels = [
        heat(
            "zero modes (% of weights)",
            inside,
            lambda rows: 100 * ratio(rows, "n_zero_modes", "n_weights"),
            unit="%",
            include=0.0,
        )
    ]
    parts = ["The share of weights with the same bits in both checkpoints"]
    if np.isfinite(numbers(inside, SIZE)).any():
        panels.append(
            heat(
                "mean |w| over the matrix’s",
                inside,
                lambda rows: weighted(rows, SIZE, "n_zero_modes"),
                include=1.0,
            )
        )
        parts.append("how large these weights are on average, beside all of their matrix")
    if inside["n_both_zero"].sum():
        panels.append(heat("exactly 0 (% of zero modes)", inside, _share_of_zeros, unit="%", include=0.0))
        parts.append("how many of them are exactly 0 in both")
    if np.isfinite(numbers(inside, "ulps_median")).any():
        panels.append(
            heat(
                "median distance (ulp)",
                inside,
                lambda rows: weighted(rows, "ulps_median", "n_ulps"),
                scale="log",
            )
        )
        parts.append("how far the others moved, in units in the last place (ulp)")
    rounded = f" Both sides were rounded to {manifest['arguments']['cast']} first." if _cast(manifest) else ""
    caption = f"{listed(parts)}, by layer and projection matrix.{rounded} {_found(inside)}."
    label = "Zero modes by layer and component"
    yield FigureSpec("zero_modes", caption, label, tuple(panels), columns=columns(panels))


def distances(ulps: pd.DataFrame | None) -> Iterator[FigureSpec]:
    """How far the sampled weights moved, a line a component: what rounding hides are the moves left of 1."""
    inside = pd.DataFrame() if ulps is None else projections(ulps)
    if inside.empty:
        return
    most = int(inside["ulps_from"].max())
    x = np.array([1 << power for power in range(max(most, 1).bit_length())], dtype=np.uint64)
    lines = []
    for index, component in enumerate(in_order(sorted(set(inside["component"])))):
        found = inside[inside["component"] == component].groupby("ulps_from")["n_ulps"].sum()
        shares = 100 * found.reindex(x, fill_value=0).to_numpy() / found.sum()
        role, marker = role_and_marker(index)
        lines.append(Curve(called(component), role, x.astype(np.float64), shares, marker=marker))
    panel = Curves("changed weights (%)", tuple(lines), "units in the last place, from", log_x=True)
    yield FigureSpec(
        "zero_modes_distances",
        "How far sampled weights moved that did change, in units in the last place of their format, all layers "
        "together: at 1 those that moved by one unit, at 2 by 2 or 3, at 4 by 4 to 7, and so on. A change of less "
        "than half a unit leaves a zero mode; one that crosses 0 passes all the small numbers and is far to the right.",
        "Distances of changed weights by component",
        (panel,),
    )


def _share_of_zeros(rows: pd.DataFrame) -> float:
    total = int(rows["n_zero_modes"].sum())
    return 100 * float((rows["n_both_zero"] - rows["n_signed_zero"]).sum()) / total if total else float("nan")


def tables(
    run: RunView,
    table: pd.DataFrame,
    summary: pd.DataFrame,
    uncompared: pd.DataFrame | None,
    ulps: pd.DataFrame | None,
) -> Iterator[TableSpec]:
    """The run's tables, the shortest unfolded."""
    components = optional_table(run, "zero_modes_components")
    if components is not None:
        yield TableSpec("zero_modes_components", "By component, over all blocks.", components)
    text = "By layer and component; the last row is all projection matrices inside blocks."
    yield TableSpec("zero_modes_summary", text, summary, is_open=components is None)
    yield TableSpec("zero_modes", "A row a tensor, as TUNED’s files name it.", table, is_open=False)
    if ulps is not None:
        text = "How many of the sampled weights moved by how many units in the last place."
        yield TableSpec("zero_modes_ulps", text, ulps, is_open=False)
    if uncompared is not None:
        yield TableSpec("zero_modes_uncompared", "Tensors that were not compared, and why.", uncompared, is_open=False)


def missing(table: pd.DataFrame) -> Iterator[str]:
    """What a reader may look for and not find."""
    if projections(table).empty:
        yield "There is no projection matrix inside a block among the tensors: no heat map is drawn."
    if not np.isfinite(numbers(table, "ulps_median")).any():
        yield "How far the other weights moved was not measured; --ulps N samples N of each tensor."


def _cast(manifest: dict[str, Any]) -> bool:
    return bool(manifest["arguments"].get("cast"))
