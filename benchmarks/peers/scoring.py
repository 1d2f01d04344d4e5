"""What a dropped block does to the prediction, scored in one way for every tool but lesion, which brings its own.

Runs in each peer's environment, so that it needs torch alone. Written with care, as the peers' times include it: one
log-softmax a forward, the clean probabilities kept, no Python per token, and only the three numbers that are compared.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

NUMBERS = ("loss_nats", "kl_nats", "agreement")

Numbers = dict[str, list[float]]
Passes = Callable[[Tensor, Sequence[int]], Iterable[Tensor]]
"""Of ids (document, token) and layers: logits (document, token, vocabulary), clean first, then each layer dropped."""
Sweep = Callable[[Tensor, Sequence[int], int], Numbers]
"""Of ids, layers and documents in a call: the mean of each number over all positions with a next token, by layer."""


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits[:, :-1].flatten(0, 1).float().log_softmax(-1)


def _expected(p: Tensor, values: Tensor) -> Tensor:
    """Expectation at each position (one float32 sum over all positions would be off by 3e-4 nats)."""
    return torch.linalg.vecdot(p, values)


def _scores(logits: Iterator[Tensor], targets: Tensor) -> Iterator[tuple[float, float, float]]:
    """Sums over positions of loss, KL and agreement, a layer at a time."""
    clean = _log_probabilities(next(logits))
    clean_p, clean_top = clean.exp(), clean.argmax(-1)
    clean_self = _expected(clean_p, clean)
    for dropped in logits:
        log_p = _log_probabilities(dropped)
        yield (
            -log_p.gather(1, targets[:, None]).sum().item(),
            (clean_self - _expected(clean_p, log_p)).sum().item(),
            (log_p.argmax(-1) == clean_top).sum().item(),
        )


def scored(passes: Passes) -> Sweep:
    """A sweep made of a tool's forward passes."""

    @torch.inference_mode()
    def sweep(ids: Tensor, layers: Sequence[int], batch_size: int) -> Numbers:
        sums = torch.zeros(len(layers), len(NUMBERS), dtype=torch.float64)
        for batch in ids.split(batch_size):
            targets = batch[:, 1:].flatten()
            rows = list(_scores(iter(passes(batch, layers)), targets))
            if len(rows) != len(layers):
                raise ValueError(f"{len(layers)} layers were asked for and {len(rows)} came")
            sums += torch.tensor(rows, dtype=torch.float64)
        means = sums / (ids.shape[0] * (ids.shape[1] - 1))
        return {name: means[:, column].tolist() for column, name in enumerate(NUMBERS)}

    return sweep
