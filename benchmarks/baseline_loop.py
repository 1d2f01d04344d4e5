"""The obvious loop that drops every block of a causal model: what a researcher writes, and what a sweep must beat.

Written with care, so that the comparison is fair: inference mode, no cache, clean logits once a batch, one log-softmax
a forward, the clean probabilities kept, no Python per token. It does not share the prefix or cut up the logits.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks of a LLaMA-like or GPT-2-like model."""
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def _return_the_input(_block: nn.Module, arguments: tuple[Tensor, ...], _output: Tensor) -> Tensor:
    return arguments[0]


def _log_probabilities(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Log-probabilities of every position with a next token, (position, vocabulary), float32."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return logits.flatten(0, 1).float().log_softmax(-1)


def _expected(p: Tensor, values: Tensor) -> Tensor:
    """Expectation of `values` at each position (one float32 sum over all positions would be off by 3e-4 nats)."""
    return torch.linalg.vecdot(p, values)


@torch.inference_mode()
def obvious_drop_sweep(model: PreTrainedModel, batches: Sequence[Tensor]) -> dict[str, list[float]]:
    """Drop each block in turn, a full forward each.

    Args:
        model: Causal, in eval mode.
        batches: Ids, (batch, token), without padding.

    Returns:
        Per layer the means over all positions of `loss_nats`, `kl_nats`, `agreement`, `top1`, `entropy_bits`.
    """
    names = ("loss_nats", "kl_nats", "agreement", "top1", "entropy_bits")
    blocks = blocks_of(model)
    sums = {name: [0.0] * len(blocks) for name in names}
    n_positions = 0
    for ids in batches:
        targets = ids[:, 1:].flatten()
        n_positions += len(targets)
        clean = _log_probabilities(model, ids)
        clean_p, clean_top = clean.exp(), clean.argmax(-1)
        clean_self = _expected(clean_p, clean)
        for layer, block in enumerate(blocks):
            handle = block.register_forward_hook(_return_the_input)
            log_p = _log_probabilities(model, ids)
            handle.remove()
            top = log_p.argmax(-1)
            sums["loss_nats"][layer] -= log_p.gather(1, targets[:, None]).sum().item()
            sums["kl_nats"][layer] += (clean_self - _expected(clean_p, log_p)).sum().item()
            sums["agreement"][layer] += (top == clean_top).sum().item()
            sums["top1"][layer] += (top == targets).sum().item()
            sums["entropy_bits"][layer] -= _expected(log_p.exp(), log_p).sum().item() / math.log(2)
    return {name: [value / n_positions for value in values] for name, values in sums.items()}
