"""What a layers run measured: positions, interventions and the definition of each quantity."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lesion.report.figures import clean
from lesion.report.numbers import Measure, count, listed, measured, number
from lesion.report.sections.layers.rows import INTERVENTIONS, Rows

POSITIONS = {
    "causal": "Positions: every position whose next token is known; the same positions for every intervention.",
    "masked": "Positions: the masked positions, fixed in advance; the same for every intervention.",
    "image": "Positions: one an image, the class logits; the same images for every intervention.",
}
SEM = (
    "Two numbers are called distinguishable if they differ by more than two standard errors of their difference, "
    "computed as if the two were independent; both come from the same data, so that this is cautious where their "
    "errors go together."
)


def notes(rows: Rows) -> Iterator[str]:
    """What was run on what, in sentences."""
    model, data = rows.manifest["model"], rows.manifest["data"]
    done = [text for name, text in INTERVENTIONS.items() if not rows.of(name).empty]
    yield f"Interventions, one at a time: {listed(done)}. Swap ℓ exchanges blocks ℓ and ℓ+1; all else runs unchanged."
    yield POSITIONS[model["objective"]]
    if model["objective"] != "image":
        yield f"Context {data['context']} tokens; {_bos(data['bos'])}; {_pack(data['pack'])}."
    shares = [f"{clean(str(domain['name']), 100)} ({_size(rows, domain)})" for domain in data["domains"]]
    yield f"Data: {listed(shares)}."
    if model["norm"] == "post":
        yield "The model normalises after adding: a dropped attention or MLP contributes zero and its norm still runs."
    yield f"± is {rows.standard_error}. {SEM}"


def definitions(rows: Rows) -> tuple[tuple[str, str], ...]:
    """One line for each quantity of the table."""
    noun = rows.noun
    return (
        ("KL (nats)", f"KL divergence from the whole model’s prediction to the changed one’s, mean over {noun}s."),
        ("agreement", f"share of {noun}s for which both give the same class the highest probability."),
        ("top-1", "accuracy: share for which the highest probability is on the right class."),
        (
            "loss (nats)",
            f"cross-entropy, mean over {noun}s; its change is the changed model’s minus the whole model’s.",
        ),
        ("entropy (bits)", "entropy of the predicted distribution; a positive change is a less certain prediction."),
        ("relative depth", f"layer / (layers − 1), here layer / {max(rows.depth - 1, 0)}."),
    )


def missing(rows: Rows) -> Iterator[str]:
    """What a reader may look for and not find, and what the run warned of."""
    yield from (f"Warning: {clean(str(warning), 1000)}." for warning in rows.manifest.get("warnings", []))
    yield from _worse_than_guessing(rows)
    if not rows.has_loss:
        yield "The data has no labels: there is no loss, no accuracy and no figure of the change in loss."
    if not rows.has_errors:
        yield "There are no standard errors (a single document): no bands are drawn and no two numbers are compared."
    left_out = [text for name, text in INTERVENTIONS.items() if rows.of(name).empty]
    if left_out and rows.depth > 1:
        yield f"Not part of this run: {listed(left_out)}."
    if rows.depth == 1:
        yield "With a single block there is nothing to swap and no interior."


def _worse_than_guessing(rows: Rows) -> Iterator[str]:
    """A model that knows less than nothing of its text: most often the tokenizer is not its own."""
    outputs = rows.manifest["model"].get("vocabulary")
    if not rows.has_loss or not outputs:
        return
    loss, guess = rows.clean("loss_clean_nats"), Measure(math.log(outputs), 0.0)
    if loss.exceeds(guess) if math.isfinite(loss.sem) else loss.value > guess.value:
        source = "the labels" if rows.noun == "image" else "the tokenizer and the text"
        yield (
            f"Warning: the loss of the whole model, {measured(loss)} nats, is above that of guessing all {outputs:,} "
            f"outputs alike, {number(guess.value, 2)} nats: are {source} those that it was trained with?"
        )


def _size(rows: Rows, domain: Mapping[str, Any]) -> str:
    """All that was read of a domain; which of its tokens count is another matter."""
    read = int(domain["n_tokens"])
    if rows.noun == "image":
        return count(read, "image")
    return f"{count(int(domain['n_documents']), 'document')}, {count(read, 'token')}"


def _bos(value: Any) -> str:
    if isinstance(value, bool):
        return "a BOS token in front of every document" if value else "no BOS token added"
    return f"BOS {value}"


def _pack(value: Any) -> str:
    return "documents packed into full contexts" if value else "one document a sequence, cut at the context"
