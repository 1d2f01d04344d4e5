"""The overview of an ablation of zero modes: each sentence from the tables, and no verdict that an interval forbids."""

import math
from collections.abc import Iterator, Sequence

from lesion.report.drawing.style import clean
from lesion.report.numbers import Measure, count, decimals, layer_list, listed, measured, number
from lesion.report.sections.zero_modes.ablate_rows import (
    CONTROLS,
    KINDS,
    Ablation,
    Difference,
    Loss,
    in_words,
    layer_of,
    short,
    sorted_out,
)
from lesion.report.sections.zero_modes.rows import share

CHANCE = 0.05
"""Of intervals at 95 %, those that exclude 0 where there is no difference."""
SAID = 6
"""Scopes beside layers, components, heads and `all`, and domains, that get a sentence or a part of one."""
NAMED = 8
"""Scopes that a sentence lists by name."""
SINGULAR = {"layers": "layer", "components": "component", "heads": "head"}
INTERVAL = "95\u00a0% interval"


def sentences(run: Ablation, domains: Sequence[tuple[str, Ablation]]) -> Iterator[str]:
    """The overview.

    Args:
        run: over all domains.
        domains: each domain's name and tables; a sentence follows where there are several.
    """
    yield f"As it is, the model has a loss of {measured(run.clean_loss)} nats."
    zero_modes = run.losses("zero_modes")
    if zero_modes and len(run.has_none) == len(zero_modes):
        yield "There are no zero modes in what was asked for: there is nothing to take away."
    sorts = sorted_out(run.scopes)
    others = sorts.pop("scopes", [])
    if "all" in others:
        yield from _headline(run, "all")
        yield from _by_domain(domains, "all")
    for sort, scopes in sorts.items():
        yield from _sort(run, sort, scopes)
    for scope in [scope for scope in others if scope != "all"][:SAID]:
        yield from _one(run, scope)


def set_to(value: str) -> str:
    """What was done to weights, in words."""
    return "set to 0" if value == "zero" else "set to the mean of their matrix"


def _control(run: Ablation, control: str, scopes: Sequence[str]) -> str:
    """A control as something that zero modes are compared with; one draw is called that, and too few weights too."""
    fewer = "fewer " if any(run.is_short(control, scope) for scope in scopes) else ""
    several = any(run.difference(control, scope).n_seeds > 1 for scope in scopes)
    return f"{'' if several else 'the one draw of '}{fewer}{KINDS[control].words}"


def _headline(run: Ablation, scope: str) -> Iterator[str]:
    """Losses of one scope, what zero modes are beside each control, and the loss without all others."""
    parts = [_part(run, kind, scope) for kind in ("zero_modes", "random", "random_matched")]
    if any(parts):
        yield f"In {in_words(scope)}: {'; '.join(filter(None, parts))}."
    for control in run.controls:
        yield from _verdict(run, control, scope)
    for kind in ("complement", "keep_only"):
        if part := _part(run, kind, scope):
            yield f"{part[0].upper()}{part[1:]}."


def _part(run: Ablation, kind: str, scope: str) -> str:
    """What the loss is without a kind of weights; empty where that was not asked, or nothing was taken away."""
    row = run.loss(kind, scope)
    if not row.n_seeds or row.n_set == 0:
        return ""
    much = f"{share(row.n_set / row.n_in_scope)} of {number(row.n_in_scope, 0)} weights"
    as_many, drawn = "as many", _draws(row)
    if kind in CONTROLS and run.is_short(kind, scope):
        as_many, drawn = "fewer", f"only {much}; {drawn}"
    words = {
        "zero_modes": f"without zero modes ({much}, {set_to(run.value)})",
        "random": f"without {as_many} random weights ({drawn})",
        "random_matched": f"without {as_many} weights of the same size ({drawn})",
        "complement": f"without all weights that are no zero modes ({much}, {set_to(run.value)})",
        "keep_only": f"with zero modes kept alone ({much} {set_to('zero')})",
    }[kind]
    if not math.isfinite(row.loss):
        return f"{words} the loss is not finite"
    change = measured(Measure(row.change, row.change_sem), sign=True)
    return f"{words} the loss is {measured(Measure(row.loss, row.sem))}, a change of {change}"


def _draws(row: Loss) -> str:
    """How a mean over seeds came about."""
    if row.n_seeds == 1:
        return "one draw"
    if not (math.isfinite(row.least) and math.isfinite(row.greatest)):
        return f"{row.n_seeds} draws"
    places = decimals(row.least, (row.greatest - row.least) / 4)
    return f"mean of {row.n_seeds} draws, {number(row.least, places)} to {number(row.greatest, places)}"


def _verdict(run: Ablation, control: str, scope: str) -> Iterator[str]:
    """Whether zero modes matter more than a control, less, or whether that is open."""
    difference = run.difference(control, scope)
    if not math.isfinite(difference.value):
        return
    words, size = _control(run, control, [scope]), number(abs(difference.value), difference.digits())
    gap = f"the loss without them is {size} nats {'higher' if difference.value >= 0 else 'lower'} than without those"
    if difference.verdict == "open":
        yield (
            f"Whether zero modes matter more or less than {words} stays open: {gap}, and the {INTERVAL}, "
            f"{difference.interval()}, holds 0."
        )
    elif difference.verdict:
        yield f"Zero modes matter {difference.verdict} than {words}: {gap} ({INTERVAL} {difference.interval()})."
    else:
        yield f"Beside {words} {gap}; it has no interval, so that nothing follows from it."


def _by_domain(domains: Sequence[tuple[str, Ablation]], scope: str) -> Iterator[str]:
    """The difference to the last control in each domain, where there are several."""
    if len(domains) < 2 or not domains[0][1].controls:
        return
    control = domains[0][1].controls[-1]
    found = [(clean(name), run.difference(control, scope)) for name, run in domains[:SAID]]
    parts = [f"{_gap(difference)} on {name}" for name, difference in found if difference.verdict]
    if parts:
        yield f"By domain, the loss without zero modes minus that without {KINDS[control].words} is {listed(parts)}."


def _gap(difference: Difference) -> str:
    """`+0.51 nats (95 % interval −0.61 to 1.63, which holds 0)`."""
    sign = "+" if difference.value > 0 else ""
    ends = {"open": "holds 0", "more": "is above 0", "less": "is below 0"}[difference.verdict]
    value = number(difference.value, difference.digits())
    return f"{sign}{value} nats ({INTERVAL} {difference.interval()}, which {ends})"


def _sort(run: Ablation, sort: str, scopes: list[str]) -> Iterator[str]:
    """Where zero modes hurt most, and in how many scopes of a sort they differ from each control."""
    found = {scope: run.loss("zero_modes", scope) for scope in scopes}
    changes = {scope: loss.change for scope, loss in found.items() if math.isfinite(loss.change) and loss.n_set != 0}
    if changes:
        scope = max(changes, key=lambda scope: changes[scope])
        change = measured(Measure(changes[scope], found[scope].change_sem), sign=True)
        most = "taking zero modes away hurts most" if changes[scope] > 0 else "taking zero modes away helps least"
        yield f"By {SINGULAR[sort]}, {most} in {in_words(scope)}, by {change} nats{_beside(run, scope)}."
    counts = [_counted(run, control, scopes, sort) for control in run.controls]
    if any(counts):
        yield (
            f"{' '.join(filter(None, counts))} Intervals are one by one, not corrected for their number: by chance "
            f"{share(CHANCE)} of them exclude 0, here {_chances(run, scopes)}."
        )


def _chances(run: Ablation, scopes: list[str]) -> str:
    """How many of each control's intervals would exclude 0 by chance."""
    n = [sum(bool(run.difference(control, scope).verdict) for scope in scopes) for control in run.controls]
    return " and ".join(dict.fromkeys(f"{CHANCE * tested:.2g} of {tested}" for tested in n if tested))


def _beside(run: Ablation, scope: str) -> str:
    """The difference to weights of the same size, or to random ones where there are no such; with its verdict."""
    if not run.controls:
        return ""
    control = run.controls[-1]
    difference = run.difference(control, scope)
    if not difference.verdict:
        return ""
    words = _control(run, control, [scope])
    claim = {
        "more": f"there they matter more than {words}",
        "less": f"there they matter less than {words}",
        "open": f"whether more than {words} stays open",
    }[difference.verdict]
    return f"; {claim}: the difference is {_gap(difference)}"


def _counted(run: Ablation, control: str, scopes: list[str], sort: str) -> str:
    """How many scopes of a sort have an interval that excludes 0; empty where none has an interval."""
    found = {scope: run.difference(control, scope) for scope in scopes}
    by = {verdict: [s for s, d in found.items() if d.verdict == verdict] for verdict in ("more", "less", "open")}
    tested = sum(map(len, by.values()))
    if not tested:
        return ""
    words = _control(run, control, scopes)
    held = f"; in {len(by['open'])} the interval holds 0" if by["open"] else ""
    return (
        f"Of {count(tested, SINGULAR[sort])}, zero modes matter more than {words} in {_some(by['more'], sort)} and "
        f"less in {_some(by['less'], sort)}{held}."
    )


def _some(scopes: list[str], sort: str) -> str:
    """How many, and which where they are few."""
    if not scopes or len(scopes) > NAMED:
        return str(len(scopes) or "none")
    if sort == "layers":
        return f"{len(scopes)} ({layer_list([layer_of(scope) for scope in scopes])})"
    return f"{len(scopes)} ({listed([short(scope).removeprefix('head:') for scope in scopes])})"


def _one(run: Ablation, scope: str) -> Iterator[str]:
    """A scope that is neither `all` nor one of many layers, components or heads, in one sentence."""
    if part := _part(run, "zero_modes", scope):
        yield f"In {in_words(scope)}, {part}{_beside(run, scope)}."
