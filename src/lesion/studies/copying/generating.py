"""Greedy generation from the prompts, and what the last token attends to at every step (`zero-modes`, Tab 10)."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lesion.anatomy import Anatomy
from lesion.data.copy_tasks import CopyTask
from lesion.interventions import Intervention
from lesion.interventions.attention import recording
from lesion.interventions.hooks import hooked
from lesion.studies.copying.measuring import (
    MAX_TOKENS,
    Advance,
    AnswerAttention,
    Asked,
    Streams,
    answer_positions,
    logits_of,
    order_of,
    run,
)


@dataclass
class GenerationResult:
    """What one condition generated on one task.

    Attributes:
        right: 1 where the generated token is what copying says at that step; NaN where logits are not finite.
        attention: of each head asked for, the summed attention from the last token to all earlier positions that hold
            what copying says next; what the model has generated is among them.
    """

    right: Float[np.ndarray, "step example"]
    attention: Float[np.ndarray, "step head example"]

    def arrays(self) -> dict[str, np.ndarray]:
        """As a shard keeps it."""
        return {"generated_right": self.right, "generated_attention": self.attention}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "GenerationResult":
        """The result whose `arrays` these are."""
        return cls(arrays["generated_right"], arrays["generated_attention"])


def generate(
    anatomy: Anatomy,
    task: CopyTask,
    intervention: Intervention | None,
    asked: Asked,
    n_steps: int,
    *,
    batch_size: int | None = None,
    advance: Advance | None = None,
) -> GenerationResult:
    """Generates greedily from every prompt, on a model on which the intervention is in place already.

    Each step is a whole forward pass without a cache, so that every edit acts as it does elsewhere. Prompts of unequal
    length lie in one batch, filled up on the right, where nothing that is looked at can see.
    """
    order, n = order_of(anatomy, intervention), task.n_examples
    result = GenerationResult(np.full((n_steps, n), np.nan), np.full((n_steps, len(asked.heads), n), np.nan))
    layers = sorted({layer for layer, _ in asked.heads} & set(order))
    longest = int(task.cuts.max()) + n_steps
    at_once = batch_size or max(1, MAX_TOKENS.get(anatomy.device.type, MAX_TOKENS["cpu"]) // longest)
    ranked = np.argsort(task.cuts, kind="stable")
    for examples in (ranked[start : start + at_once] for start in range(0, n, at_once)):
        buffer, cuts = _prompts(task, examples, n_steps)
        buffer, cuts = buffer.to(anatomy.device), cuts.to(anatomy.device)
        wanted = torch.from_numpy(task.expected(n_steps)[examples]).to(anatomy.device)
        every = torch.arange(len(examples), device=anatomy.device)
        for step in range(n_steps):
            ends = cuts + step
            ids = buffer[:, : int(ends.max())]
            taken = AnswerAttention(answer_positions(ids, ends, wanted[:, step]), ends - 1)
            streams = Streams(anatomy, order, ends - 1)
            with contextlib.ExitStack() as stack:
                if layers:
                    stack.enter_context(recording(anatomy, layers, taken.take, ends - 1))
                stack.enter_context(hooked(streams.hooks()[-1:]))
                run(anatomy, ids)
            logits = logits_of(anatomy, streams.last())
            buffer[every, ends] = logits.argmax(dim=1)
            result.right[step, examples] = _hits(logits, wanted[:, step])
            for place, head in enumerate(asked.heads):
                result.attention[step, place, examples] = taken.of(head)
            if advance:
                advance(len(examples))
    return result


def _prompts(task: CopyTask, examples: np.ndarray, n_steps: int) -> tuple[Tensor, Tensor]:
    """Prompts, and room for what comes; what is in the room beforehand is never seen."""
    cuts = task.cuts[examples]
    buffer = np.zeros((len(examples), int(cuts.max()) + n_steps), dtype=np.int64)
    for row, example in enumerate(examples):
        buffer[row, : task.cuts[example]] = task.ids[example][: task.cuts[example]]
    return torch.from_numpy(buffer), torch.from_numpy(cuts)


def _hits(logits: Tensor, wanted: Tensor) -> Float[np.ndarray, " batch"]:
    finite = torch.isfinite(logits).all(dim=1)
    found: np.ndarray = (logits.argmax(dim=1) == wanted).double().masked_fill(~finite, torch.nan).cpu().numpy()
    return found
