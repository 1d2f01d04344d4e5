"""AdamW whose parameters live in a narrower type than its arithmetic (spec `zero-modes`, section 4)."""

from typing import Any

import torch


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
        self.round()

    def step(self, closure: Any = None) -> Any:
        """One update, rounded."""
        loss = super().step(closure)
        self.round()
        return loss

    @torch.no_grad()
    def round(self) -> None:
        """Rounds all parameters to the nearest that they can hold."""
        if self.held is None:
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.copy_(parameter.to(self.held))
