"""The overview of a layers run: sentences whose every number can be read off, or computed from, its tables."""

from collections.abc import Iterator

import pandas as pd

from lesion.report.numbers import Measure, count, layer_list, measured, percent, percent_range
from lesion.report.sections.layers.rows import Rows


def sentences(rows: Rows, by_domain: pd.DataFrame | None) -> Iterator[str]:
    """The overview; a sentence is left out where the run has not measured what it needs."""
    yield whole_model(rows)
    if not rows.of("drop").empty:
        yield from dropping(rows)
    yield from interior_kept(rows)
    yield from swapping(rows)
    yield from attention_or_mlp(rows)
    if by_domain is not None:
        yield from domains(rows, by_domain)


def whole_model(rows: Rows) -> str:
    """The clean model's own numbers."""
    text = f"The whole model ({count(rows.depth, 'block')}) was run on {rows.amount}: "
    entropy = f"entropy of the prediction {measured(rows.clean('entropy_clean_bits'))} bits"
    if not rows.has_loss:
        return f"{text}{entropy}; without labels there is no loss and no accuracy."
    loss = f"loss {measured(rows.clean('loss_clean_nats'))} nats {rows.per}"
    return f"{text}{loss}, top-1 accuracy {percent(rows.clean('top1_clean'))}, {entropy}."


def dropping(rows: Rows) -> Iterator[str]:
    """Which dropped block costs most and which least, and whether the numbers can tell."""
    found = rows.measures("drop", "loss_change_nats" if rows.has_loss else "kl_nats")
    if not found:
        return
    ranked = sorted(found, key=lambda layer: found[layer].value, reverse=True)
    most, least = ranked[0], ranked[-1]
    start = f"Without block {most} {_effect(rows, found[most])}"
    if len(ranked) == 1:
        yield f"{start}."
        return
    rivals = [layer for layer in ranked[1:] if not found[most].exceeds(found[layer])]
    following = f"next is block {ranked[1]} with {_amount(rows, found[ranked[1]])}"
    if not rivals:
        yield f"{start}, more than without any other block ({following})."
    else:
        yield f"{start}, the largest effect of a dropped block, but {_unclear(rivals, found)} ({following})."
    rivals = [layer for layer in ranked[:-1] if not found[layer].exceeds(found[least])]
    ending = f"; {_unclear(rivals, found)}" if rivals else ", less than without any other block"
    yield f"The block that is missed least is {least}: without it {_effect(rows, found[least])}{ending}."


def interior_kept(rows: Rows) -> Iterator[str]:
    """How much of the top-1 predictions, and of the accuracy, dropping one interior block leaves."""
    agreement = _interior(rows.measures("drop", "agreement"), rows.depth - 2)
    if not agreement:
        return
    span = _span(list(agreement))
    kept = [measure.value for measure in agreement.values()]
    text = (
        f"Dropping one interior block ({span}) leaves the top-1 prediction as it was for {_range(kept)} of {rows.noun}s"
    )
    top1, clean = _interior(rows.measures("drop", "top1"), rows.depth - 2), rows.clean("top1_clean").value
    if rows.has_loss and top1 and clean > 0:
        text += f" and keeps {_range([measure.value / clean for measure in top1.values()])} of the top-1 accuracy"
    yield f"{text}."


def swapping(rows: Rows) -> Iterator[str]:
    """Swap ℓ against drop ℓ where both swapped blocks are interior, by KL divergence."""
    swap = _interior(rows.measures("swap", "kl_nats"), rows.depth - 3)
    drop = rows.measures("drop", "kl_nats")
    pairs = {layer: swap[layer].exceeds(drop[layer]) for layer in swap if layer in drop}
    if not pairs or not rows.has_errors:
        return
    less, more, unclear = (sum(value is verdict for value in pairs.values()) for verdict in (False, True, None))
    text = (
        f"Swapping a block with the next one changes the prediction less than dropping it in {less} of "
        f"{count(len(pairs), 'interior layer')} ({_span(list(pairs))}) and more in {more or 'none'}"
    )
    yield text + (f"; in {unclear} the two are not distinguishable." if unclear else ".")


def attention_or_mlp(rows: Rows) -> Iterator[str]:
    """Which of a block's two parts matters more for the prediction, by KL divergence."""
    attention, mlp = rows.measures("drop_attn", "kl_nats"), rows.measures("drop_mlp", "kl_nats")
    pairs = {layer: attention[layer].exceeds(mlp[layer]) for layer in attention if layer in mlp}
    if not pairs or not rows.has_errors:
        return
    named = {verdict: [layer for layer, value in pairs.items() if value is verdict] for verdict in (True, False, None)}
    texts = {
        True: "dropping the attention changes the prediction more than dropping the MLP",
        False: "dropping the MLP changes the prediction more than dropping the attention",
        None: "dropping the attention and dropping the MLP are not distinguishable",
    }
    parts = [f"{text} in {_blocks(named[verdict])}" for verdict, text in texts.items() if named[verdict]]
    yield f"Within a block, {'; '.join(parts)}."


def domains(rows: Rows, by_domain: pd.DataFrame) -> Iterator[str]:
    """Whether the block that costs most is the same in every domain."""
    column = "loss_change_nats" if rows.has_loss else "kl_nats"
    found = rows.measures("drop", column)
    if len(found) < 2:
        return
    most = max(found, key=lambda layer: found[layer].value)
    names = list(by_domain["domain"].unique())
    parts = [Rows(by_domain[by_domain["domain"] == name], rows.manifest).measures("drop", column) for name in names]
    same = sum(bool(part) and max(part, key=lambda layer: part[layer].value) == most for part in parts)
    yield f"Block {most} has the largest effect when dropped in {same} of {len(names)} domains taken by themselves."


def _effect(rows: Rows, measure: Measure) -> str:
    if not rows.has_loss:
        return f"the prediction moves by {_amount(rows, measure)} (KL divergence)"
    if measure.is_zero:
        return f"the loss changes by {_amount(rows, measure)}, which is not distinguishable from no change"
    verb = "rises" if measure.value > 0 else "falls"
    return f"the loss {verb} by {_amount(rows, Measure(abs(measure.value), measure.sem))}"


def _amount(rows: Rows, measure: Measure) -> str:
    return f"{measured(measure)} nats {rows.per}"


def _unclear(layers: list[int], found: dict[int, Measure]) -> str:
    named = f"block{'s' if len(layers) > 1 else ''} {layer_list(layers)}"
    if all(pd.isna(found[layer].sem) for layer in layers):
        return f"without standard errors it cannot be compared with {named}"
    return f"{named} {'are' if len(layers) > 1 else 'is'} not distinguishable from it"


def _interior(found: dict[int, Measure], last: int) -> dict[int, Measure]:
    return {layer: measure for layer, measure in found.items() if 1 <= layer <= last}


def _span(layers: list[int]) -> str:
    return layer_list(layers)


def _blocks(layers: list[int]) -> str:
    return f"block{'s' if len(layers) > 1 else ''} {layer_list(layers)}"


def _range(shares: list[float]) -> str:
    return percent_range(min(shares), max(shares))
