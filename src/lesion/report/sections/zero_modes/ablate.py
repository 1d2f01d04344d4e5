"""The section of `lesion zero-modes ablate`: the loss without zero modes, beside controls (Fig 5, Tables 1-3, 7)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lesion.report.content import Section, TableSpec
from lesion.report.drawing.style import clean
from lesion.report.facts import about_model
from lesion.report.numbers import count, listed
from lesion.report.sections.zero_modes.ablate_figures import ROWS, figures
from lesion.report.sections.zero_modes.ablate_overview import SAID, sentences, set_to
from lesion.report.sections.zero_modes.ablate_rows import CONTROLS, KINDS, Ablation, read, short, sorted_out
from lesion.report.sections.zero_modes.rows import main_table, share, warnings
from lesion.results import RunView

DEFINITIONS = {
    "": (
        ("loss (nats)", "cross-entropy, mean over positions; its change is that to the model as it is."),
        ("zero mode", "a weight whose stored bits are the same in the two checkpoints of the masks."),
    ),
    "random": (("random weights", "as many in each matrix as it has zero modes, drawn anew for each seed."),),
    "random_matched": (
        (
            "matched in size",
            "as many in each matrix and of each exponent of |w|: zero modes are large weights, and large weights "
            "matter more whatever they are.",
        ),
    ),
    "complement": (("all but zero modes", "all weights of the scope that are no zero modes are taken away."),),
    "keep_only": (("zero modes kept alone", "the same weights are set to 0, whatever others are set to."),),
    "contrasts": (
        (
            "matter more, less",
            "the loss is higher, lower without zero modes than without the others, and the interval of the "
            "difference excludes 0.",
        ),
        (
            "95 % interval",
            "Student’s, of differences taken document by document; beside the mean of several draws its error is "
            "that over documents and that over draws together, beside one draw that over documents only.",
        ),
    ),
}
TARGETS = {
    "tuned": "The weights are those of the tuned checkpoint of the masks.",
    "base": "The weights are those of the base checkpoint of the masks.",
    "other": "The model is neither checkpoint of the masks.",
}
COUNTED = ("zero_modes", *CONTROLS)
"""Kinds that are as many weights as there are zero modes."""
LISTED = 6
"""Scopes that a note names."""


def section(run: RunView) -> Section:
    """The section of one run, from its tables."""
    main_table(run, "zero_mode_ablation")
    whole = read(run)
    assert whole is not None  # it has rows, or the line before has said that there are none
    domains = by_domain(run)
    return Section(
        title="The model without its zero modes",
        subject=str(run.manifest["model"]["name"]),
        byline=about_model(run.manifest),
        overview=tuple(sentences(whole, domains)),
        measured=tuple(notes(whole, run.manifest)),
        definitions=tuple(definitions(whole)),
        figures=tuple(figures(whole, domains)),
        tables=tuple(tables(whole, domains)),
        missing=(*warnings(run.manifest), *missing(whole)),
    )


def by_domain(run: RunView) -> list[tuple[str, Ablation]]:
    """Each domain's name and tables, in the order of the data."""
    found = read(run, "_by_domain")
    if found is None:
        return []
    return [(str(name), found.of_domain(name)) for name in dict.fromkeys(found.lanes["domain"])]


def notes(run: Ablation, manifest: Mapping[str, Any]) -> Iterator[str]:
    """What was taken away from what, and measured on what."""
    first, arguments = run.lanes.iloc[0], manifest["arguments"]
    yield (
        f"Losses are means over {count(int(first['n_tokens']), 'position')} with a target in "
        f"{count(int(first['n_documents']), 'document')}, the same for every row; ± is the standard error, clustered "
        "by document."
    )
    yield TARGETS.get(str(first["target"]), "")
    held = [*listed_or_none(arguments.get("include")), *(["projection matrices in blocks"])]
    yield f"Scopes hold {listed(held[::-1])}; weights taken away are {set_to(run.value)}."
    if edits := arguments.get("edits"):
        yield f"Everything is measured under {listed([clean(str(edit), 100) for edit in edits])}."
    yield from _drawn(run, arguments)


def listed_or_none(given: object) -> list[str]:
    """The items of an argument that is a list."""
    return [clean(str(item)) for item in given] if isinstance(given, Sequence) and not isinstance(given, str) else []


def _drawn(run: Ablation, arguments: Mapping[str, Any]) -> Iterator[str]:
    """How random weights were drawn, and how many of them are zero modes."""
    drawn = [kind for kind in CONTROLS if kind in run.kinds]
    if not drawn:
        return
    seeds = listed_or_none(arguments.get("seeds"))
    once = f"for each of the seeds {listed(seeds)}" if len(seeds) > 1 else f"once, from seed {listed(seeds or ['–'])}"
    alone = " among weights that are no zero modes" if arguments.get("disjoint") else ""
    yield f"Random weights were drawn{alone} {once}."
    parts = []
    for kind in drawn:
        found = run.losses(kind).values()
        n_set, n_own = sum(loss.n_set for loss in found), sum(loss.n_zero_modes_set for loss in found)
        if n_own > 0:
            parts.append(f"{share(n_own / n_set)} of {KINDS[kind].words}")
    if parts:
        yield f"Zero modes themselves are {listed(parts)}; --disjoint draws from all others only."


def definitions(run: Ablation) -> Iterator[tuple[str, str]]:
    """Those of what this run has."""
    yield from DEFINITIONS[""]
    for kind in run.kinds:
        yield from DEFINITIONS.get(kind, ())
    if run.controls:
        yield from DEFINITIONS["contrasts"]


def tables(run: Ablation, domains: Sequence[tuple[str, Ablation]]) -> Iterator[TableSpec]:
    """A compact table, and the run's own ones folded."""
    text = (
        "Losses in nats by scope, without each kind of weights, ± standard error over documents; of random weights the "
        "mean over draws, ± standard deviation of the draws. Then zero modes minus a control, with its 95 % interval."
    )
    yield TableSpec("zero_mode_ablation", text, compact(run), part="by scope")
    yield TableSpec("zero_mode_ablation", "A row a set of weights taken away.", run.lanes, is_open=False)
    if len(run.contrasts):
        text = "Zero modes minus a control: each seed, and the mean of all seeds (seed empty)."
        yield TableSpec("zero_mode_contrasts", text, run.contrasts, is_open=False)
    if len(domains) > 1:
        each = [compact(own).assign(domain=clean(name, 100)) for name, own in domains]
        joined = pd.concat(each, ignore_index=True)
        joined.insert(0, "domain", joined.pop("domain"))
        yield TableSpec("zero_mode_ablation_by_domain", "The same by domain.", joined, is_open=False, part="by scope")


def compact(run: Ablation) -> pd.DataFrame:
    """A row a scope: losses of each kind, and zero modes beside each control."""
    scopes = run.scopes
    table = pd.DataFrame({"scope": [short(scope) for scope in scopes]})
    first = next((kind for kind in run.kinds if kind in COUNTED), None)
    if first:
        losses_first = [run.loss(first, scope) for scope in scopes]
        table["% of weights"] = [100 * one.n_set / one.n_in_scope if one.n_in_scope else 0.0 for one in losses_first]
    table["as it is"], table["as it is_sem"] = run.clean_loss
    for kind in run.kinds:
        losses, label = [run.loss(kind, scope) for scope in scopes], KINDS[kind].label
        table[label] = [loss.loss for loss in losses]
        table[f"{label}_sem"] = [loss.sd if kind in CONTROLS else loss.sem for loss in losses]
    for control in run.controls:
        found = [run.difference(control, scope) for scope in scopes]
        table[f"− {KINDS[control].label}"] = [one.value for one in found]
        table[f"interval, {KINDS[control].label}"] = [one.interval() for one in found]
    return table


def missing(run: Ablation) -> Iterator[str]:
    """What a reader may look for and not find, and why."""
    if "zero_modes" not in run.kinds:
        yield "Zero modes themselves were not taken away (--kinds): nothing is compared with them."
    elif not run.controls and not set(run.kinds) & set(CONTROLS):
        yield "No random weights were taken away (--kinds): whether zero modes matter more than others is not told."
    elif "random_matched" not in run.kinds:
        yield (
            "No weights of the same size were taken away (--kinds random_matched): zero modes may matter more than "
            "random weights only because they are larger."
        )
    for control in run.controls:
        if short := [scope for scope in run.scopes if run.is_short(control, scope)]:
            yield (
                f"Fewer {KINDS[control].words} were taken away than there are zero modes, in {_some(short)}: zero "
                "modes may matter more there only because they are more."
            )
    if run.lanes["n_documents"].max() < 2:
        yield "There is a single document: there are no standard errors and no intervals."
    if run.controls and (run.contrasts["n_seeds"] < 2).all():
        yield "Random weights were drawn once: intervals do not tell how much another draw would differ (--seeds)."
    yield from _not_finite(run.lanes)
    yield from _left_out(run)


def _not_finite(lanes: pd.DataFrame) -> Iterator[str]:
    bad = lanes[~np.isfinite(lanes["loss_nats"].astype(np.float64))]
    names = [f"{row['kind']} in {clean(str(row['scope']))}" for row in bad.to_dict("records")]
    if names:
        yield f"The loss is not finite, and neither is any difference to it, of {_some(list(dict.fromkeys(names)))}."


def _left_out(run: Ablation) -> Iterator[str]:
    if run.has_none:
        yield f"There are no zero modes in {_some(run.has_none)}: nothing is compared there."
    others = sorted_out(run.scopes).get("scopes", [])
    if len([scope for scope in others if scope != "all"]) > SAID:
        yield f"The overview has the first {SAID} of the other scopes; the table has all."
    if len(others) > ROWS:
        yield f"{ROWS} of {len(others)} scopes are drawn."


def _some(names: list[str]) -> str:
    shown = [clean(name) for name in names[:LISTED]]
    return listed(shown) if len(names) <= LISTED else f"{', '.join(shown)} and {len(names) - LISTED} more"
