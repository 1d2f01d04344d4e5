"""The loss on what was held out."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from lesion.data import ImageData, TextData
from lesion.interventions import in_eval_mode
from lesion.statistics import ClusteredMean, ClusteredMeanResult

LOGITS = 2**25
"""Numbers that the logits of a batch may have: 128 MiB in float32."""
METRICS = ("loss_nats", "top1")
Row = dict[str, float | int]


@torch.no_grad()
def evaluate(
    model: nn.Module, data: TextData | ImageData, indices: Sequence[int], outputs: int
) -> tuple[Row, dict[str, Row]]:
    """Mean loss and share of right predictions over all positions with a target.

    Args:
        indices: sequences or images.
        outputs: width of the logits, which bounds how many positions are worked on at a time.

    Returns:
        In all, and by domain: `n_tokens` (positions, or images), `loss_nats` (a position) and `top1` (share of right
        predictions), each with its standard error over sequences (`_sem`).
    """
    means = {domain: ClusteredMean(1, len(METRICS)) for domain in range(len(data.domains))}
    for domain, mean in means.items():
        own = [int(index) for index in indices if data.domain_of[int(index)] == domain]
        size = max(1, LOGITS // (outputs * max((int(data.lengths[index]) for index in own), default=1)))
        with in_eval_mode(model):
            for start in range(0, len(own), size):
                _add(model, data, own[start : start + size], mean)
    seen = {domain: mean for domain, mean in means.items() if mean.state_dict()["counts"][0]}
    whole = ClusteredMean(1, len(METRICS))
    for mean in seen.values():
        whole.merge(mean)
    return _row(whole.result()), {data.domains[domain]: _row(mean.result()) for domain, mean in seen.items()}


def _add(model: nn.Module, data: TextData | ImageData, indices: list[int], mean: ClusteredMean) -> None:
    batch = data.batch(indices).to(next(model.parameters()).device)
    logits = model(**batch.model_inputs()).logits.float()
    logits = logits[:, None] if logits.ndim == 2 else logits
    flat, targets = logits.flatten(0, 1), batch.targets.flatten()
    losses = functional.cross_entropy(flat, targets, ignore_index=-100, reduction="none")
    right = (flat.argmax(dim=1) == targets).float()
    values = torch.stack([losses, right], dim=1).double() * batch.keep.flatten()[:, None]
    sums = values.view(*batch.keep.shape, len(METRICS)).sum(dim=1)
    mean.update(sums[:, None], batch.keep.sum(dim=1))


def _row(result: ClusteredMeanResult) -> Row:
    found: Row = {"n_tokens": result.n_tokens}
    for column, name in enumerate(METRICS):
        found |= {name: float(result.mean[0, column]), f"{name}_sem": float(result.sem[0, column])}
    return found
