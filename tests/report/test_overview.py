"""Sentences on tables made by hand: each says what the numbers carry, and no more."""

import math
from typing import Any

import pandas as pd

from lesion.report.numbers import Measure
from lesion.report.sections.layers.measured import missing, notes
from lesion.report.sections.layers.overview import sentences
from lesion.report.sections.layers.rows import Rows

MANIFEST: dict[str, Any] = {
    "model": {"n_layers": 5, "objective": "causal"},
    "counts": {"n_tokens": 1000, "n_documents": 10},
}
DROP = [(4.1, 0.1), (0.30, 0.01), (0.08, 0.01), (0.085, 0.01), (0.62, 0.03)]


def row(kind: str, layer: int, change: float, sem: float, *, kl: float, **changes: Any) -> dict[str, Any]:
    values = {"loss_change_nats": change, "kl_nats": kl, "agreement": 0.95 - change / 10, "top1": 0.5 - change / 10}
    return {
        **{"intervention": kind, "layer": layer, "n_tokens": 1000, "n_documents": 10},
        **values,
        **{f"{name}_sem": sem for name in values},
        **{"loss_nats": 2 + change, "loss_clean_nats": 2.0, "loss_clean_nats_sem": 0.02, "top1_clean": 0.5},
        **{"entropy_clean_bits": 3.0, **changes},
    }


def table(drop: list[tuple[float, float]] = DROP, **changes: Any) -> pd.DataFrame:
    rows = [row("drop", k, *pair, kl=pair[0], **changes) for k, pair in enumerate(drop)]
    swap = [2.0, 0.1, 0.5, 0.62]  # against drops of 4.1, 0.3, 0.08
    rows += [row("swap", k, kl, 0.01, kl=kl, **changes) for k, kl in enumerate(swap[: len(drop) - 1])]
    return pd.DataFrame(rows)


def told(frame: pd.DataFrame, by_domain: pd.DataFrame | None = None, **model: Any) -> list[str]:
    manifest = {**MANIFEST, "model": {**MANIFEST["model"], **model}}
    return [text.replace("\u00a0", " ") for text in sentences(Rows(frame, manifest), by_domain)]


def test_all_sentences() -> None:
    assert told(table()) == [
        "The whole model (5 blocks) was run on 1,000 tokens of 10 documents: loss 2.000 ± 0.020 nats a token, "
        "top-1 accuracy 50.0 %, entropy of the prediction 3.000 bits.",
        "Without block 0 the loss rises by 4.10 ± 0.10 nats a token, more than without any other block "
        "(next is block 4 with 0.620 ± 0.030 nats a token).",
        "The block that is missed least is 2: without it the loss rises by 0.080 ± 0.010 nats a token; "
        "block 3 is not distinguishable from it.",
        "Dropping one interior block (1–3) leaves the top-1 prediction as it was for 92.0–94.2 % of tokens "
        "and keeps 94.0–98.4 % of the top-1 accuracy.",
        "Swapping a block with the next one changes the prediction less than dropping it in 1 of 2 interior layers "
        "(1 and 2) and more in 1.",
    ]


def test_rivals_of_the_largest_are_named() -> None:
    text = told(table([(4.1, 0.1), (0.3, 0.01), (0.1, 0.01), (0.2, 0.01), (4.0, 0.1)]))[1]
    assert "the largest effect of a dropped block, but block 4 is not distinguishable from it" in text
    assert "more than without any other" not in text


def test_gain_and_no_change_are_told_apart() -> None:
    gain = told(table([(4.1, 0.1), (0.3, 0.01), (-0.08, 0.01), (0.2, 0.01), (0.6, 0.1)]))[2]
    assert "is 2: without it the loss falls by 0.080 ± 0.010 nats a token, less than without any other block" in gain
    none = told(table([(4.1, 0.1), (0.3, 0.01), (0.01, 0.01), (0.2, 0.01), (0.6, 0.1)]))[2]
    assert "the loss changes by 0.010 ± 0.010 nats a token, which is not distinguishable from no change" in none


def test_swap_within_two_errors_is_left_open() -> None:
    frame = table()
    frame.loc[(frame["intervention"] == "swap") & (frame["layer"] == 1), "kl_nats"] = 0.29
    assert told(frame)[4].endswith("less than dropping it in 0 of 2 interior layers (1 and 2) and more in 1; "
                                   "in 1 the two are not distinguishable.")  # fmt: skip


def test_attention_against_mlp() -> None:
    rows = [row("drop_attn", k, 0.1, 0.01, kl=kl) for k, kl in enumerate((1.0, 0.1, 0.5))]
    rows += [row("drop_mlp", k, 0.1, 0.01, kl=kl) for k, kl in enumerate((0.5, 0.5, 0.5))]
    assert told(pd.DataFrame(rows))[1] == (
        "Within a block, dropping the attention changes the prediction more than dropping the MLP in block 0; "
        "dropping the MLP changes the prediction more than dropping the attention in block 1; "
        "dropping the attention and dropping the MLP are not distinguishable in block 2."
    )


def test_without_labels_the_divergence_speaks() -> None:
    frame = table(loss_nats=None, loss_change_nats=None, top1=None, loss_clean_nats=None, top1_clean=None)
    found = told(frame, objective="image")
    assert found[0] == (
        "The whole model (5 blocks) was run on 1,000 images: entropy of the prediction 3.000 bits; "
        "without labels there is no loss and no accuracy."
    )
    assert found[1].startswith(
        "Without block 0 the prediction moves by 4.10 ± 0.10 nats an image (KL divergence), more"
    )
    assert "accuracy" not in found[3]


def test_without_errors_nothing_is_compared() -> None:
    found = told(table([(value, math.nan) for value, _ in DROP], kl_nats_sem=math.nan))
    assert "±" not in "".join(found[1:])
    assert "without standard errors it cannot be compared with blocks 1–4" in found[1]
    assert not any("Swapping" in text for text in found)


def test_a_single_block() -> None:
    found = told(table(DROP[:1]), n_layers=1)
    assert found[1:] == ["Without block 0 the loss rises by 4.10 ± 0.10 nats a token."]


def test_domains_are_counted() -> None:
    other = table([(0.1, 0.1), (0.3, 0.01), (0.1, 0.01), (0.2, 0.01), (4.0, 0.1)])
    by_domain = pd.concat([table().assign(domain="a"), other.assign(domain="b")])
    assert told(table(), by_domain)[-1] == (
        "Block 0 has the largest effect when dropped in 1 of 2 domains taken by themselves."
    )


def test_measures_skip_null() -> None:
    frame = table()
    frame.loc[0, "kl_nats"] = None
    assert list(Rows(frame, MANIFEST).measures("drop", "kl_nats")) == [1, 2, 3, 4]
    assert Rows(frame, MANIFEST).measures("drop", "kl_nats")[1] == Measure(0.3, 0.01)


def test_masked_tokens_are_those_that_were_masked() -> None:
    """All that was read is more: what counts is in the table."""
    frame = table()
    frame["n_tokens"] = 150
    assert "was run on 150 masked tokens of 10 documents" in told(frame, objective="masked")[0]
    domains = [{"name": "text", "n_documents": 10, "n_tokens": 1000}]
    data = {"context": 32, "bos": "auto", "pack": False, "domains": domains}
    model = {**MANIFEST["model"], "objective": "masked", "norm": "post"}
    assert "Data: text (10 documents, 1,000 tokens)." in list(notes(Rows(frame, {"model": model, "data": data})))


def test_what_the_run_warned_of_is_said() -> None:
    rows = Rows(table(), {**MANIFEST, "warnings": ["drop:1: not finite at block 1 (documents [0])"]})
    assert "Warning: drop:1: not finite at block 1 (documents [0])." in list(missing(rows))
    assert not any("Warning" in text for text in missing(Rows(table(), MANIFEST)))
