"""The figures of a copying run: the counterparts of figures 3, 15 and 16 of the paper on zero modes."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from lesion.report.content import Curve, Curves, FigureSpec, Grid, Mark, Picture
from lesion.report.drawing.grid import size
from lesion.report.drawing.style import clean
from lesion.report.palette import DOMAIN_MARKERS, WEIGHTS
from lesion.report.sections.zero_modes.rows import numbers
from lesion.results import RunView

NONE = "none"
TASKS = {"integers": "repeated integers", "tokens": "repeated tokens"}
SCORES = {
    "induction": "induction",
    "induction_null": "null of induction",
    "previous_token": "previous token",
    "duplicate_token": "duplicate token",
}
MOST_LINES, MOST_MAPS = 8, 5
"""Conditions that a figure shows as lines, and as maps of one head; the tables have them all."""
BLACK = 0.5
"""Attention that is drawn black."""
KINDS = {"none": "original", "zero_modes": "zero_modes", "random": "random", "random_matched": "matched"}
"""Roles of colours, as everywhere."""
Maps = Mapping[str, Mapping[str, np.ndarray]]
Head = tuple[int, int]


def tasks_of(table: pd.DataFrame) -> list[str]:
    """Tasks in the order of the table."""
    return [str(task) for task in dict.fromkeys(table["task"])]


def maps_of(run: RunView) -> Maps:
    """Mean attention maps by task, where strings had one length."""
    names = [name for name in run.manifest["arrays"] if name.startswith("attention_")]
    return {name.removeprefix("attention_"): run.arrays(name) for name in names}


def followed(run: RunView) -> list[Head]:
    """The heads that were followed under every condition."""
    pairs = [str(name).split(":") for name in run.manifest.get("followed", [])]
    return [(int(layer), int(head)) for layer, head in pairs]


def figures(
    table: pd.DataFrame,
    depths: pd.DataFrame,
    heads: pd.DataFrame | None,
    generation: pd.DataFrame | None,
    maps: Maps,
    chosen: Sequence[Head],
) -> Iterator[FigureSpec]:
    """In the order of the page."""
    groups = groups_of(table)
    yield _depths(depths, table, groups)
    if heads is not None:
        yield from _scores(heads)
    yield from _maps(maps, chosen, groups)
    yield from _scopes(table)
    if generation is not None:
        yield from _generation(generation, groups)


Group = tuple[str, list[str]]
"""A name, and the conditions of it: those that differ in their seed only."""


def groups_of(table: pd.DataFrame) -> list[Group]:
    """Conditions in order, seeds together."""
    found: dict[str, list[str]] = {}
    for row in table.drop_duplicates("condition").to_dict("records"):
        name = str(row["condition"])
        found.setdefault(name.rpartition("#")[0] if pd.notna(row["seed"]) else name, []).append(name)
    return list(found.items())


def _styles(groups: Sequence[Group], table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Colour and marker of each group: its kind's, unless several groups have one kind."""
    kinds = table.drop_duplicates("condition").set_index("condition")["kind"]
    of = {name: str(kinds[conditions[0]]) for name, conditions in groups}
    styles = {}
    for place, name in enumerate(of):
        marker = DOMAIN_MARKERS[place % len(DOMAIN_MARKERS)]
        known = KINDS.get(of[name])
        own = known is not None and len(set(of.values()) - set(KINDS)) == 0 and list(of.values()).count(of[name]) == 1
        role = WEIGHTS[known] if own and known else f"domain_{place % len(DOMAIN_MARKERS)}"
        styles[name] = (role, marker)
    return styles


def _depths(depths: pd.DataFrame, table: pd.DataFrame, groups: Sequence[Group]) -> FigureSpec:
    shown = list(groups[:MOST_LINES])
    styles = _styles(shown, depths)
    panels = []
    for task in tasks_of(depths):
        own = depths[depths["task"] == task]
        lines = tuple(_line(own, name, conditions, "depth", *styles[name]) for name, conditions in shown)
        chance = 100 * float(table.loc[table["task"] == task, "chance"].iloc[0])
        marks = (Mark("an item at random", y=chance),)
        panels.append(Curves("accuracy (%)", lines, "depth", whole_x=True, marks=marks, note=TASKS[task]))
    rest = (
        f" The first {len(shown)} of {len(groups)} conditions; the table has all." if len(groups) > len(shown) else ""
    )
    seeds = " (the mean and the range over seeds, where there are several)" if _has_seeds(shown) else ""
    return FigureSpec(
        "copying_depths",
        "Share of right answers where the model’s final norm and head read the residual stream at each depth: 0 after "
        "the embedding, odd after attention, even after an MLP, in the order of blocks. Bands: Wilson’s 95 % "
        f"interval{seeds}. Dashed: saying one of the string’s items at random.{rest}",
        "Accuracy of copying by depth",
        tuple(panels),
        columns=2,
    )


def _has_seeds(groups: Sequence[Group]) -> bool:
    return any(len(conditions) > 1 for _, conditions in groups)


def _line(rows: pd.DataFrame, name: str, conditions: Sequence[str], along: str, role: str, marker: str) -> Curve:
    """Accuracy of a group: with its interval, or the mean and the range over seeds."""
    own = rows[rows["condition"].isin(conditions)].sort_values(along)
    if len(conditions) == 1:
        low, high = 100 * numbers(own, "accuracy_low"), 100 * numbers(own, "accuracy_high")
        return Curve(clean(name), role, numbers(own, along), 100 * numbers(own, "accuracy"), low, high, marker)
    wide = own.pivot_table(index=along, columns="condition", values="accuracy", dropna=False)
    values = 100 * np.asarray(wide, dtype=np.float64)
    x = np.asarray(wide.index, dtype=np.float64)
    return Curve(clean(name), role, x, values.mean(1), values.min(1), values.max(1), marker)


def _scores(heads: pd.DataFrame) -> Iterator[FigureSpec]:
    panels = []
    highest = float(heads["induction"].max())
    for column, title in SCORES.items():
        wide = heads.pivot_table(index="head", columns="layer", values=column, dropna=False)
        values = np.asarray(wide, dtype=np.float64)
        rows, columns = tuple(map(str, wide.index)), tuple(map(str, wide.columns))
        ends = highest if column == "induction_null" and math.isfinite(highest) else 0.0  # on one scale with induction
        panels.append(Grid(title, rows, columns, values, y_label="head", include=ends))
    widest = max(size(panel)[0] for panel in panels)
    yield FigureSpec(
        "copying_heads",
        f"Scores of {len(heads)} heads: mean attention from tokens that are said again to the token after their first "
        "occurrence (induction), the same distances in sequences that repeat nothing (null), from each token to the "
        f"one before it, and to the first occurrence. Over {int(heads['n_examples'].iloc[0]):,} sequences.",
        "Scores of heads by layer",
        tuple(panels),
        columns=4 if widest == 1 else widest,
    )


def _maps(maps: Maps, chosen: Sequence[Head], groups: Sequence[Group]) -> Iterator[FigureSpec]:
    """Maps of the heads that were followed, a figure a task: without an ablation and under the first conditions."""
    for task, arrays in maps.items():
        panels = []
        for layer, head in chosen[:MOST_MAPS]:
            panels.append(_picture(arrays["none"][layer, head], f"head {layer}:{head}", NONE))
            for _, conditions in groups[1:MOST_MAPS]:
                name = f"{conditions[0]}/{layer}:{head}"
                if name in arrays:
                    panels.append(_picture(arrays[name], f"head {layer}:{head}", clean(conditions[0], 40)))
        if panels:
            yield FigureSpec(
                f"copying_maps_{task}",
                f"Mean attention of the heads that were followed, on {TASKS[task]}: a row is a position that attends, "
                f"position 0 is the first of the string. Black is {BLACK:g} or more. A head that attends to what "
                "followed an earlier occurrence has diagonals below the middle one.",
                f"Attention maps on {TASKS[task]}",
                tuple(panels),
                columns=min(len(panels), 3),
            )


def _picture(values: np.ndarray, title: str, note: str) -> Picture:
    shades = np.clip(values.astype(np.float64) / BLACK, 0.0, 1.0)
    pixels = np.rint(255 * np.nan_to_num(shades)).astype(np.uint8)
    return Picture(title, pixels, (values.shape[0], values.shape[1]), "attended position", "position", note=note)


def _scopes(table: pd.DataFrame) -> Iterator[FigureSpec]:
    """Sweeps: a line a kind where scopes are layers, a heat map a kind where they are heads."""
    layers, heads = _placed(table, r"layer:(\d+)$"), _placed(table, r"head:(\d+):(\d+)$")
    if not layers.empty and layers["first"].nunique() > 1:
        yield _by_layer(layers)
    if not heads.empty and len(heads.drop_duplicates(["first", "second"])) > 1:
        yield from _by_head(heads)


def _placed(table: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """Rows whose scope has this form, with the numbers in it."""
    found = (
        table["scope"]
        .astype("string")
        .str.extract("^" + pattern)
        .set_axis(["first", "second"][: pattern.count("(")], axis=1)
    )
    placed = table.join(found)
    return placed[placed["first"].notna()].astype(dict.fromkeys(found.columns, int))


def _by_layer(rows: pd.DataFrame) -> FigureSpec:
    panels = []
    for task in tasks_of(rows):
        lines = []
        for place, kind in enumerate(dict.fromkeys(rows["kind"])):
            own = rows[(rows["task"] == task) & (rows["kind"] == kind)].groupby("first")["accuracy_change"]
            mean, low, high = (100 * np.asarray(part, dtype=np.float64) for part in (own.mean(), own.min(), own.max()))
            role = WEIGHTS[KINDS[kind]] if kind in KINDS else f"domain_{place % len(DOMAIN_MARKERS)}"
            x = np.asarray(sorted(own.groups), dtype=np.float64)
            lines.append(Curve(clean(str(kind)), role, x, mean, low, high, DOMAIN_MARKERS[place % len(DOMAIN_MARKERS)]))
        title = "change in accuracy (points)"
        panels.append(Curves(title, tuple(lines), "layer", whole_x=True, marks=(Mark("", y=0.0),), note=TASKS[task]))
    return FigureSpec(
        "copying_layers",
        "Change in accuracy with weights of one layer set to 0, by layer and kind; bands: the range over seeds.",
        "Change in accuracy by layer",
        tuple(panels),
        columns=2,
    )


def _by_head(rows: pd.DataFrame) -> Iterator[FigureSpec]:
    for task in tasks_of(rows):
        panels = []
        for kind in dict.fromkeys(rows["kind"]):
            own = rows[(rows["task"] == task) & (rows["kind"] == kind)]
            wide = own.pivot_table(index="second", columns="first", values="accuracy_change", dropna=False)
            values = 100 * np.asarray(wide, dtype=np.float64)
            heads, layers = tuple(map(str, wide.index)), tuple(map(str, wide.columns))
            panels.append(
                Grid(
                    "change in accuracy (points)",
                    heads,
                    layers,
                    values,
                    y_label="head",
                    include=0.0,
                    note=clean(str(kind)),
                )
            )
        yield FigureSpec(
            f"copying_by_head_{task}",
            f"Change in accuracy on {TASKS[task]} with weights of one head set to 0, mean over seeds; a panel a kind.",
            f"Change in accuracy by head on {TASKS[task]}",
            tuple(panels),
            columns=max(3 if size(panel)[0] == 1 else size(panel)[0] for panel in panels),
        )


def _generation(rows: pd.DataFrame, groups: Sequence[Group]) -> Iterator[FigureSpec]:
    """Attention to what copying says next, and accuracy, by step of generation."""
    shown = list(groups[:MOST_LINES])
    styles = _styles(shown, rows)
    first = rows.drop_duplicates(["layer", "head"]).iloc[0]
    own = rows if pd.isna(first["layer"]) else rows[(rows["layer"] == first["layer"]) & (rows["head"] == first["head"])]
    panels = []
    for task in tasks_of(own):
        part = own[own["task"] == task]
        if part["attention"].notna().any():
            lines = tuple(_attention(part, name, conditions, *styles[name]) for name, conditions in shown)
            name = f"{TASKS[task]}, head {int(first['layer'])}:{int(first['head'])}"
            panels.append(Curves("attention to what comes", lines, "step", whole_x=True, note=name))
        lines = tuple(_line(part, name, conditions, "step", *styles[name]) for name, conditions in shown)
        panels.append(Curves("accuracy (%)", lines, "step", whole_x=True, note=TASKS[task]))
    yield FigureSpec(
        "copying_generation",
        "Greedy generation from the prompts: what the last token pays to all earlier positions that hold what copying "
        "says next (of the first head that was followed), and how often it is said, by step. Bands: for accuracy "
        "Wilson’s 95 % interval, for attention one standard error; for several seeds the range.",
        "Generation by step",
        tuple(panels),
        columns=2,
    )


def _attention(rows: pd.DataFrame, name: str, conditions: Sequence[str], role: str, marker: str) -> Curve:
    own = rows[rows["condition"].isin(conditions)].sort_values("step")
    x, y = numbers(own, "step"), numbers(own, "attention")
    if len(conditions) == 1:
        sem = np.nan_to_num(numbers(own, "attention_sem"))
        return Curve(clean(name), role, x, y, y - sem, y + sem, marker)
    wide = own.pivot_table(index="step", columns="condition", values="attention", dropna=False)
    values = np.asarray(wide, dtype=np.float64)
    return Curve(clean(name), role, np.asarray(wide.index, float), values.mean(1), values.min(1), values.max(1), marker)
