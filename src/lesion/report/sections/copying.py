"""The section of `lesion copying`: copy tasks and induction heads (paper `zero-modes`, section 3.1 and App. B)."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from lesion.report.content import Section, TableSpec
from lesion.report.drawing.style import clean
from lesion.report.facts import about_model
from lesion.report.numbers import listed, number
from lesion.report.sections.copying_drawings import NONE, TASKS, figures, followed, maps_of, tasks_of
from lesion.report.sections.zero_modes.rows import main_table, optional_table, warnings
from lesion.results import RunView

MOST_NAMED = 6
"""Heads, or conditions, that a sentence names."""
CONTROLS = {"random": "as many random weights", "random_matched": "as many of the same exponents"}
DEFINITIONS = (
    ("accuracy", "share of prompts whose next token, by the greatest logit, is the one that copying gives."),
    ("an item at random", "the accuracy of saying one of the string’s items, drawn at random; dashed in figures."),
    ("loss (nats)", "cross-entropy with that token, mean over prompts."),
    ("probability", "the model’s probability of that token, mean over prompts."),
    ("depth", "0 after the embedding, 2ℓ+1 after attention of block ℓ, 2ℓ+2 after its MLP; final norm and head of the "
     "model read that residual stream."),
    ("attention to the answer", "sum of what the last token of the prompt pays to all earlier positions that hold the "
     "answer; sd over prompts."),
    ("induction", "mean attention from a token in the second repetition to the token after its first occurrence."),
    ("null", "the same distances in sequences of distinct tokens, which repeat nothing."),
    ("previous token, duplicate token", "mean attention to the position before, and to the first occurrence."),
)  # fmt: skip


def section(run: RunView) -> Section:
    """The section of one run, from its tables."""
    table, depths = main_table(run, "copying"), main_table(run, "copying_depths")
    heads, attention = optional_table(run, "heads"), optional_table(run, "copying_attention")
    generation = optional_table(run, "copying_generation")
    return Section(
        title="Copying and induction heads",
        subject=str(run.manifest["model"]["name"]),
        byline=about_model(run.manifest),
        overview=tuple(sentences(table, depths, heads, attention)),
        measured=tuple(notes(table, run.manifest, heads)),
        definitions=DEFINITIONS if heads is not None else DEFINITIONS[:5],
        figures=tuple(figures(table, depths, heads, generation, maps_of(run), followed(run))),
        tables=tuple(tables(table, depths, heads, attention, generation)),
        missing=(*warnings(run.manifest), *missing(table, heads, run)),
    )


def sentences(
    table: pd.DataFrame, depths: pd.DataFrame, heads: pd.DataFrame | None, attention: pd.DataFrame | None
) -> Iterator[str]:
    """The overview."""
    for task in tasks_of(table):
        rows = table[table["task"] == task]
        clean_row = rows[rows["condition"] == NONE].iloc[0]
        yield f"{TASKS[task].capitalize()}: {_accuracy(clean_row)}; an item at random: {_percent(clean_row['chance'])}."
        yield from _jump(depths[(depths["task"] == task) & (depths["condition"] == NONE)], task)
    if heads is not None:
        yield _heads(heads)
    for task in tasks_of(table):
        yield from _effects(table[table["task"] == task], task)
    if attention is not None:
        yield from _attention(attention)


def _accuracy(row: "pd.Series[Any]") -> str:
    return f"{_percent(row['accuracy'])} of the answers are right ({_between(row, 'accuracy')})"


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{number(100 * value, 1)}\u00a0%"


def _points(value: float) -> str:
    """A change of a share, in percentage points."""
    sign = "+" if value > 0 else ""
    return f"{sign}{number(100 * value, 1)} points"


def _between(row: "pd.Series[Any]", name: str) -> str:
    low, high = (number(100 * row[f"{name}_{end}"], 1) for end in ("low", "high"))
    return f"95 % interval {low} to {high}"


def _jump(rows: pd.DataFrame, task: str) -> Iterator[str]:
    """Where accuracy by depth rises most, if it does by more than its intervals."""
    rows = rows.sort_values("depth", ignore_index=True)
    rises = rows["accuracy"].diff()
    if rises.isna().all() or float(rises.max()) <= 0:
        return
    at = int(np.nanargmax(np.asarray(rises, dtype=np.float64)))
    before, after = rows.iloc[at - 1], rows.iloc[at]
    if after["accuracy_low"] > before["accuracy_high"]:
        part = "attention" if after["after"] == "attention" else "the MLP"
        yield (
            f"{TASKS[task].capitalize()}: accuracy rises most after {part} of block {int(after['layer'])}, from "
            f"{_percent(before['accuracy'])} to {_percent(after['accuracy'])}."
        )


def _heads(heads: pd.DataFrame) -> str:
    found = heads[heads["is_induction"]].sort_values("induction", ascending=False)
    if found.empty:
        best = heads["induction"].max()
        return f"No head is an induction head; the highest score is {number(float(best), 2)}."
    names = [
        f"{row['layer']}:{row['head']} ({number(row['induction'], 2)}, null {number(row['induction_null'], 2)})"
        for row in found.head(MOST_NAMED).to_dict("records")
    ]
    more = f", and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    noun = "head" if len(found) == 1 else "heads"
    return (
        f"{len(found)} induction {noun} of {len(heads)} heads, as layer:head with their scores: {listed(names)}{more}."
    )


def _effects(rows: pd.DataFrame, task: str) -> Iterator[str]:
    """The conditions that change accuracy most; zero modes beside their controls of the same scope."""
    changed = rows[(rows["condition"] != NONE) & rows["accuracy_change"].notna()]
    sets = changed[changed["kind"] == "zero_modes"]
    if sets.empty:
        several = len(changed) > 1
        for row in changed.nsmallest(1, "accuracy_change").to_dict("records"):
            name = clean(str(row["condition"]))
            yield (
                f"{TASKS[task].capitalize()}: {f'of {len(changed)} conditions {name}' if several else name} changes "
                f"accuracy{' most,' if several else ''} by {_points(row['accuracy_change'])} (95 % interval "
                f"{_points(row['accuracy_change_low'])} to {_points(row['accuracy_change_high'])})."
            )
        return
    strongest = sets.nsmallest(1, "accuracy_change").iloc[0]
    beside = changed[changed["scope"] == strongest["scope"]].groupby("kind")["accuracy_change"].mean()
    others = [f"{text} {_points(float(beside[kind]))}" for kind, text in CONTROLS.items() if kind in beside]
    against = f"; {listed(others)} (means over seeds)" if others else ""
    change = (
        f"{_points(strongest['accuracy_change'])} (95 % interval {_points(strongest['accuracy_change_low'])} to "
        f"{_points(strongest['accuracy_change_high'])})"
    )
    scope, n = clean(str(strongest["scope"])), len(sets)
    if strongest["accuracy_change_low"] <= 0 <= strongest["accuracy_change_high"]:
        none = f"zero modes in none of {n} scopes change" if n > 1 else f"zero modes in {scope} do not change"
        most = f"; most in {scope}, by {change}" if n > 1 else f": by {change}"
        yield f"{TASKS[task].capitalize()}: {none} accuracy beyond its interval{most}{against}."
        return
    front, most = (f"of {n} scopes, ", " most,") if n > 1 else ("", "")
    first = f"{front}zero modes in {scope} change accuracy{most} by"
    yield f"{TASKS[task].capitalize()}: {first} {change}{against}."


def _attention(attention: pd.DataFrame) -> Iterator[str]:
    """The head that pays most to the answer."""
    own = attention[(attention["condition"] == NONE) & attention["attention"].notna()]
    for task in tasks_of(own):
        row = own[own["task"] == task].nlargest(1, "attention").iloc[0]
        yield (
            f"{TASKS[task].capitalize()}: head {int(row['layer'])}:{int(row['head'])} pays "
            f"{number(row['attention'], 2)} ± {number(row['attention_sd'], 2)} (sd over prompts) of its attention to "
            "earlier occurrences of the answer."
        )


def notes(table: pd.DataFrame, manifest: Mapping[str, Any], heads: pd.DataFrame | None) -> Iterator[str]:
    """What was drawn, and how it was read."""
    arguments = manifest["arguments"]
    n = int(table["n_examples"].max())
    whole = arguments["cut"] == "end"
    if "integers" in tasks_of(table):
        where = "the whole string is the prompt" if whole else "cut before the digits of a random one of the last four"
        yield f"Integers: five distinct four-digit integers, said twice with spaces between; {where}. {n:,} prompts."
    if "tokens" in tasks_of(table):
        where = "the whole string is the prompt" if whole else "cut before a random one of the last ten"
        how = "decoded to text and encoded again" if arguments["through_text"] else "as they are"
        yield f"Tokens: ten distinct ids of the vocabulary, said three times, {how}; {where}. {n:,} prompts."
    yield (
        "Drawn are ids that are not special and that some text is encoded with. Every string is read whole, and looked "
        f"at where its prompt ends; {'a BOS stands in front' if manifest['data'].get('bos') else 'no BOS in front'}."
    )
    if arguments.get("edits"):
        yield f"Everything was measured under {clean(', '.join(arguments['edits']), 300)}."
    yield from _reading(manifest["model"])
    if heads is not None:
        yield (
            f"An induction head has a score of at least {arguments['threshold']:g} that exceeds the null by more than "
            "three standard errors of the difference."
        )
    if table["condition"].nunique() > 2:
        yield (
            "Which of several conditions changes most is picked after the fact: an interval holds for a condition that "
            "was chosen beforehand."
        )
    yield (
        "Intervals hold 95 %: Wilson’s for shares, Agresti and Min’s for changes over the same prompts, Student’s t "
        "for changes of losses. Errors are over prompts, which are drawn independently."
    )


def _reading(model: Mapping[str, Any]) -> Iterator[str]:
    """What a depth is in this model."""
    if model.get("norm") == "post":
        yield "This model normalises after adding: after attention is read what its MLP reads."
    elif model.get("parallel"):
        yield "Attention and MLP read the same input here: after attention is read the block with its attention alone."


def tables(
    table: pd.DataFrame,
    depths: pd.DataFrame,
    heads: pd.DataFrame | None,
    attention: pd.DataFrame | None,
    generation: pd.DataFrame | None,
) -> Iterator[TableSpec]:
    """The run's tables: what matters most unfolded."""
    yield TableSpec("copying", "Every task and condition; changes are against none, over the same prompts.", table)
    if heads is not None:
        found = heads[heads["is_induction"]].sort_values("induction", ascending=False)
        if len(found):
            yield TableSpec("heads", "Induction heads, the highest score first.", found, part="induction heads")
        yield TableSpec("heads", "All heads.", heads, is_open=False, part="all heads")
    if attention is not None:
        yield TableSpec("copying_attention", "What the heads that were followed pay to the answer.", attention)
    yield TableSpec("copying_depths", "Accuracy and loss by depth.", depths, is_open=False)
    if generation is not None:
        yield TableSpec("copying_generation", "Generation, a row a step.", generation, is_open=False)


def missing(table: pd.DataFrame, heads: pd.DataFrame | None, run: RunView) -> Iterator[str]:
    """What a reader may look for and not find."""
    if heads is None:
        yield "No attention was computed (--heads none): there are no scores of heads and no maps."
    elif not maps_of(run):
        yield "The strings of these tasks differ in length: there is no mean attention map."
    if table["condition"].nunique() == 1:
        yield "There is no condition but the model itself; give --condition or --masks."
