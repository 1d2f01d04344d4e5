"""The loss on what was held out."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from lesion.data import ImageData, TextData
from lesion.interventions import in_eval_mode
from lesion.statistics import ClusteredMean

BATCH_TOKENS = 4096
METRICS = ("loss_nats", "top1")


@torch.no_grad()
def evaluate(model: nn.Module, data: TextData | ImageData, indices: Sequence[int]) -> dict[str, float | int]:
    """Mean loss and share of right predictions over all positions with a target.

    Returns:
        `loss_nats` (a token, or an image), `top1`, each with its standard error over documents (`_sem`), and
        `n_tokens`.
    """
    mean = ClusteredMean(1, len(METRICS))
    device = next(model.parameters()).device
    size = max(1, BATCH_TOKENS // max(int(data.lengths[index]) for index in indices))
    with in_eval_mode(model):
        for start in range(0, len(indices), size):
            batch = data.batch([int(index) for index in indices[start : start + size]]).to(device)
            logits = model(**batch.model_inputs()).logits.float()
            logits = logits[:, None] if logits.ndim == 2 else logits
            flat, targets = logits.flatten(0, 1), batch.targets.flatten()
            losses = functional.cross_entropy(flat, targets, ignore_index=-100, reduction="none")
            right = (flat.argmax(dim=1) == targets).float()
            values = torch.stack([losses, right], dim=1).double() * batch.keep.flatten()[:, None]
            sums = values.view(*batch.keep.shape, len(METRICS)).sum(dim=1)
            mean.update(sums[:, None], batch.keep.sum(dim=1))
    result = mean.result()
    found: dict[str, float | int] = {"n_tokens": result.n_tokens}
    for column, name in enumerate(METRICS):
        found |= {name: float(result.mean[0, column]), f"{name}_sem": float(result.sem[0, column])}
    return found
