"""AdamW whose parameters live in a narrower type than its arithmetic (spec `zero-modes`, section 4)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lesion.errors import InputError


class HeldAdamW(torch.optim.AdamW):
    """Works out every update in float32, and rounds the parameters to the type that they are held in.

    Parameters are float32 tensors that hold nothing but numbers of that type, so that a type in which a machine cannot
    compute (float16 on a CPU) is held all the same. Moments are never rounded.

    Args:
        held: bfloat16 or float16; None rounds nothing.
    """

    def __init__(self, parameters: Any, *, held: torch.dtype | None, **options: Any) -> None:
        super().__init__(parameters, **options)
        self.held = held

    def step(self, closure: Any = None) -> Any:
        """One update, rounded."""
        loss = super().step(closure)
        if self.held is not None:
            for group in self.param_groups:
                round_to(group["params"], self.held)
        return loss


@torch.no_grad()
def round_to(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> int:
    """Rounds parameters in place to the nearest numbers of a type; how many of them changed."""
    changed = 0
    for parameter in parameters:
        rounded = parameter.to(dtype).to(parameter.dtype)
        changed += int(torch.count_nonzero(rounded != parameter))
        parameter.copy_(rounded)
    return changed


def hold(model: nn.Module, word: str, dtype: torch.dtype) -> int:
    """Rounds a model's parameters to the type that they will live in; how many of them that changed.

    Raises:
        InputError: a weight is too large for the type.
    """
    changed = round_to(model.parameters(), dtype)
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise InputError(f"--hold {word}: {name} holds weights that are too large for {word}; leave --hold out")
    return changed
