"""Rows of tensors and their sums: by layer and component, by component over layers, of all projections, of all."""

from collections.abc import Sequence

import pandas as pd

from lesion.checkpoints.components import COMPONENTS, PROJECTIONS


def with_sums(
    rows: pd.DataFrame, *, by: Sequence[str], amounts: Sequence[str], layers: bool = False, everything: bool = False
) -> pd.DataFrame:
    """Rows of tensors, and behind those of each group the sums of their amounts.

    Args:
        rows: with the columns `by`, `tensor`, `layer`, `component` and the amounts.
        by: what is kept apart, in the order in which it comes; may be empty.
        amounts: columns that can be added. A sum over an amount that is not known is not known (NaN).
        layers: add sums of a layer and component, inside blocks.
        everything: add sums of all tensors, with the component `all`.

    Returns:
        Sums have no tensor. Those of a component are over all its tensors, wherever they are, and have no layer; those
        of the projection matrices inside blocks have the component `projections` and no layer.
    """
    inside = rows[rows["layer"].notna()]
    groups = list(rows[list(by)].drop_duplicates().itertuples(index=False, name=None)) if by else [()]
    parts = [rows, _summed(inside, [*by, "layer", "component"], amounts)] if layers else [rows]
    parts.append(_summed(rows, [*by, "component"], amounts))
    projections = inside[inside["component"].isin(PROJECTIONS)]
    for component, of in (("projections", projections), *([("all", rows)] if everything else [])):
        nothing = [
            {**dict(zip(by, group, strict=True)), "component": component, **dict.fromkeys(amounts, 0)}
            for group in groups
        ]
        whole = pd.concat([pd.DataFrame(nothing), of.assign(component=component)], ignore_index=True)
        parts.append(_summed(whole, [*by, "component"], amounts))
    columns = [*by, "tensor", "layer", "component", *amounts]
    found = [{"tensor": None, "layer": None, **row} for part in parts for row in part.to_dict("records")]
    if by:
        place = {group: number for number, group in enumerate(groups)}
        found.sort(key=lambda row: place[tuple(row[name] for name in by)])
    return pd.DataFrame(found, columns=columns).astype({"layer": "Int64"})


def ratio(amounts: pd.Series, of: pd.Series) -> pd.Series:
    """A ratio; NaN where there is nothing to compare with."""
    return amounts / of.where(of > 0)


def _summed(rows: pd.DataFrame, keys: list[str], amounts: Sequence[str]) -> pd.DataFrame:
    grouped = rows.groupby(keys, sort=False)
    sums, n_known, n_rows = grouped[list(amounts)].sum(), grouped[list(amounts)].count(), grouped.size()
    for name in amounts:
        if not n_known[name].eq(n_rows).all():
            sums[name] = sums[name].where(n_known[name].eq(n_rows))
    order = [key for key in ("layer", "component") if key in keys]
    return sums.reset_index().sort_values(order, key=_in_order, kind="stable")


def _in_order(column: pd.Series) -> pd.Series:
    """Components in their usual order, layers in that of their numbers."""
    places = {name: place for place, name in enumerate(COMPONENTS)}
    return column.map(lambda name: places.get(name, len(places))) if column.name == "component" else column
