"""How a model is trained, and what is kept of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from lesion.errors import InputError
from lesion.studies.training.storing import DTYPES

CHOICES = {"--schedule": ("cosine", "constant"), "--hold": (None, "bf16", "fp16"), "--compute": ("float32", "bfloat16")}
STEPS = {"store_every": 0, "count_every": 0, "evaluate_every": 0, "log_every": 1, "save_every": 1}
"""Numbers of steps in `Keeping`, and the least that each may be."""


@dataclass(frozen=True)
class Recipe:
    """How weights are moved.

    Attributes:
        steps: updates; None goes over the data `epochs` times.
        epochs: passes over the data where `steps` is None.
        batch_size: sequences (or images) a step.
        learning_rate: the greatest.
        schedule: `cosine` falls to 0 at the last step, `constant` stays; both after `warmup` steps of rising.
        warmup: steps.
        weight_decay: of matrices; biases and norms have none.
        clip: greatest norm of the gradient; 0 does not clip.
        hold: `bf16` or `fp16`: the type that parameters live in; the update is worked out in float32 and rounded.
            None keeps float32 master weights.
        compute: of the forward and backward pass; bfloat16 is autocast over float32 weights.
    """

    steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 8
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 50
    weight_decay: float = 0.05
    clip: float = 1.0
    hold: Literal["bf16", "fp16"] | None = None
    compute: Literal["float32", "bfloat16"] = "float32"

    def check(self) -> None:
        """Raises InputError where a number makes no sense."""
        positive: Mapping[str, float] = {
            "--batch-size": self.batch_size,
            "--learning-rate": self.learning_rate,
            "--epochs": self.epochs,
            **({} if self.steps is None else {"--steps": self.steps}),
        }
        for option, value in positive.items():
            if not value > 0:
                raise InputError(f"{option} {value} trains nothing; give a positive number")
        not_negative = {"--warmup": self.warmup, "--weight-decay": self.weight_decay, "--clip": self.clip}
        for option, value in not_negative.items():
            if not value >= 0:
                raise InputError(f"{option} {value} is no number from 0 on; give 0 or more")
        for (option, known), chosen in zip(CHOICES.items(), (self.schedule, self.hold, self.compute), strict=True):
            if chosen not in known:
                raise InputError(f"{option} {chosen!r} is not known; give {' or '.join(filter(None, known))}")

    def arguments(self) -> dict[str, Any]:
        """As plain arguments for a manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Keeping:
    """What is written down, and how often; steps of 0 are never.

    Attributes:
        store: types that models are stored in, names of `DTYPES`.
        store_every: steps between stored models; the start and the end are stored always.
        count_every: steps between counts of zero modes against the start.
        evaluate_every: steps between evaluations on what was held out; the end is evaluated always.
        log_every: steps over which the loss is averaged in the table.
        save_every: steps that a killed run loses at most.
        held_out: part of the data that is not trained on: the last sequences (or images) of each domain.
    """

    store: tuple[str, ...] = ("bf16",)
    store_every: int = 0
    count_every: int = 0
    evaluate_every: int = 0
    log_every: int = 10
    save_every: int = 500
    held_out: float = 0.02

    def check(self) -> None:
        """Raises InputError where something makes no sense."""
        unknown = [name for name in self.store if name not in DTYPES]
        if unknown or not self.store or len(set(self.store)) != len(self.store):
            raise InputError(f"--store {','.join(self.store)!r}: give one or more of {', '.join(DTYPES)}, each once")
        if not 0 <= self.held_out < 1:
            raise InputError(f"--held-out {self.held_out} is not a part of the data; give 0 or more, and less than 1")
        for name, least in STEPS.items():
            if getattr(self, name) < least:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} {getattr(self, name)} is no number of steps; give {least} or more")

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return {name: DTYPES[name] for name in self.store}

    def arguments(self) -> dict[str, Any]:
        """As plain arguments for a manifest."""
        return {**asdict(self), "store": list(self.store)}
