"""The section of `lesion train`: losses, and zero modes on the way (paper `zero-modes`, Figs 12, 13 and 14)."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from lesion.report.content import Section, TableSpec
from lesion.report.drawing.style import clean
from lesion.report.facts import about_model, text
from lesion.report.numbers import count, listed
from lesion.report.sections.training.drawings import figures, last_count, over_projections, unit_of
from lesion.report.sections.zero_modes.rows import (
    PROJECTIONS,
    components_list,
    in_order,
    main_table,
    optional_table,
    share,
    significant,
    warnings,
)
from lesion.results import RunView

TITLES = {"train pretrain": "Training from nothing", "train finetune": "Fine-tuning"}
DEFINITIONS = (
    ("loss", "mean cross-entropy, in nats, of all positions with a target; in training, over the steps of a row."),
    ("held out", "the last part of each domain, which was never trained on; the band is one standard error."),
)
COUNTED = (
    ("zero mode", "a weight whose bits, rounded to a stored type, are those of the start rounded to that type."),
    ("never changed", "a zero mode that had these bits at every counted step before, too."),
    ("came back", "a zero mode that had other bits at some counted step before."),
)


def section(run: RunView) -> Section:
    """The section of one run, from its tables."""
    losses = main_table(run, "training")
    held_out, zero_modes = optional_table(run, "training_evaluation"), optional_table(run, "training_zero_modes")
    by_domain = optional_table(run, "training_evaluation_by_domain")
    return Section(
        title=TITLES[str(run.manifest["study"])],
        subject=clean(str(run.manifest["model"]["name"]), 200),
        byline=about_model(run.manifest),
        overview=tuple(sentences(losses, held_out, zero_modes)),
        measured=tuple(measured(run.manifest)),
        definitions=DEFINITIONS + (COUNTED if zero_modes is not None else ()),
        figures=tuple(figures(losses, held_out, by_domain, zero_modes)),
        tables=tuple(tables(losses, held_out, by_domain, zero_modes)),
        missing=(*warnings(run.manifest), *missing(held_out, zero_modes)),
    )


def sentences(losses: pd.DataFrame, held_out: pd.DataFrame | None, zero_modes: pd.DataFrame | None) -> Iterator[str]:
    """The overview: losses at both ends, and what is left of the start's bits."""
    first, last, unit = losses.iloc[0], losses.iloc[-1], unit_of(losses)
    yield (
        f"{count(int(last['step']), 'step')}, {int(last[f'n_{unit}']):,} {unit}: the training loss went from "
        f"{first['loss_nats']:.3f} nats (to step {int(first['step']):,}) to {last['loss_nats']:.3f}."
    )
    if held_out is not None:
        before, after = held_out.iloc[0], held_out.iloc[-1]
        yield (
            f"On what was held out it went from {before['loss_nats']:.3f} at step {int(before['step']):,} to "
            f"{_with_error(after)} at step {int(after['step']):,}, and the share of right predictions from "
            f"{share(before['top1'])} to {share(after['top1'])}."
        )
    if zero_modes is not None:
        yield from _zero_mode_sentences(zero_modes)


def _with_error(row: pd.Series) -> str:
    error = row["loss_nats_sem"]
    return f"{row['loss_nats']:.3f} nats" + ("" if pd.isna(error) else f" (standard error {error:.3f})")


def _zero_mode_sentences(zero_modes: pd.DataFrame) -> Iterator[str]:
    rows, step = over_projections(last_count(zero_modes)), int(zero_modes["step"].max())
    if rows.empty:
        return
    parts = [f"{share(row['fraction'])} stored as {row['dtype']}" for row in rows.to_dict("records")]
    yield f"At step {step:,} of the weights of the projection matrices {listed(parts)} have the bits of the start."
    by_type = rows.set_index("dtype")["fraction"]
    if {"bf16", "fp16"} <= set(by_type.index) and by_type["fp16"]:
        yield f"That is {significant(by_type['bf16'] / by_type['fp16'])} times as many in bf16 as in fp16."
    for row in rows.to_dict("records"):
        if row["n_zero_modes"] and zero_modes["step"].nunique() > 1:
            yield (
                f"Of those in {row['dtype']}, {share(row['n_never_changed'] / row['n_zero_modes'])} had changed at no "
                f"counted step, and {share(row['share_came_back'])} had changed and come back."
            )
    yield from _components(last_count(zero_modes))


def _components(rows: pd.DataFrame) -> Iterator[str]:
    word = rows["dtype"].iloc[0]
    own = rows[(rows["dtype"] == word) & rows["component"].isin(PROJECTIONS) & rows["layer"].notna()]
    sums = own.groupby("component")[["n_zero_modes", "n_weights"]].sum()
    values = sums["n_zero_modes"] / sums["n_weights"]
    if values.nunique() < 2:
        return
    ends = [(float(end), in_order(list(values.index[values == end]))) for end in (values.min(), values.max())]
    least, most = (f"{share(end)} ({components_list(which)})" for end, which in ends)
    yield f"By component, over all layers in {word}, the share goes from {least} to {most}."


def measured(manifest: Mapping[str, Any]) -> Iterator[str]:
    """The recipe in words."""
    asked, counts = manifest["arguments"], manifest["counts"]
    falls = "then down to 0 as a cosine" if asked["schedule"] == "cosine" else "then constant"
    yield (
        f"AdamW, learning rate up to {text(asked['learning_rate'])} in {asked['warmup']:,} steps, {falls}; weight "
        f"decay {text(asked['weight_decay'])} on matrices; {count(asked['batch_size'], 'sequence')} a step."
    )
    held = f"held in {asked['hold']}, updates worked out in float32" if asked["hold"] else "masters in float32"
    yield (
        f"Weights {held}; passes in {asked['compute']}; models stored as {listed(asked['store'])}, each rounded once "
        f"from what was trained. {counts['n_sequences']:,} sequences to train on, {counts['n_held_out']:,} held out."
    )
    if asked["count_every"]:
        yield (
            f"Zero modes were counted every {count(asked['count_every'], 'step')}: what moved and came back between "
            "two counts is taken to have never changed."
        )


def tables(
    losses: pd.DataFrame,
    held_out: pd.DataFrame | None,
    by_domain: pd.DataFrame | None,
    zero_modes: pd.DataFrame | None,
) -> Iterator[TableSpec]:
    """The run's tables; of zero modes the last count first."""
    if held_out is not None:
        yield TableSpec("training_evaluation", "What was held out, over all domains; n_tokens are positions.", held_out)
    if by_domain is not None:
        yield TableSpec("training_evaluation_by_domain", "The same by domain.", by_domain, is_open=False)
    if zero_modes is not None:
        last = last_count(zero_modes)
        yield TableSpec("training_zero_modes", "The last count, by type, layer and component.", last, part="last")
        yield TableSpec("training_zero_modes", "Every count.", zero_modes, is_open=False, part="all")
    text = "Training loss over the steps up to each; rate, and norm of the gradient before it was clipped, of the last."
    yield TableSpec("training", text, losses, is_open=False)


def missing(held_out: pd.DataFrame | None, zero_modes: pd.DataFrame | None) -> Iterator[str]:
    """What a reader may look for and not find."""
    if held_out is None:
        yield "Nothing was held out (--held-out 0): the loss is that of the training data only."
    if zero_modes is None:
        yield "Zero modes were not counted on the way (--count-every)."
    elif over_projections(zero_modes).empty:
        yield "There is no projection matrix inside a block: zero modes are in the table only."
