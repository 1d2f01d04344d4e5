"""Interventions: lanes of a sweep and context managers are the same, and leave nothing behind."""

import contextlib

import torch
from torch import Tensor, nn

from lesion.anatomy import Anatomy
from lesion.data import Batch
from lesion.engine.checks.comparing import (
    difference,
    logits,
    named_blocks,
    rounding,
    some_layers,
    tail_logits,
    tail_rounding,
)
from lesion.engine.checks.finding import Measured, check
from lesion.engine.lanes import Walk, lay_out
from lesion.engine.samples import Samples
from lesion.engine.skeleton import Skeleton
from lesion.errors import ModelError
from lesion.interventions import KINDS, ActivationEdit, Intervention, drop


@check("lane = context manager")
def lane_is_context_manager(anatomy: Anatomy, samples: Samples) -> Measured:
    """An intervention as a lane of a sweep, and as a context manager on the whole model."""
    interventions = _interventions(anatomy)
    found = []
    for intervention, lane in zip(interventions, _lanes(anatomy, samples.short, stack_tokens=1)[1:], strict=True):
        with intervention.on(anatomy.model):
            found.append(difference(lane, logits(anatomy, samples.short)))
    names = f"{len(interventions)} interventions: {', '.join(KINDS)} in {named_blocks(some_layers(anatomy))}"
    return Measured(max(found), "<=", tail_rounding(anatomy), names)


@check("stacked lanes")
def stacked_lanes(anatomy: Anatomy, samples: Samples) -> Measured:
    """Lanes that share a call of a block do not touch each other."""
    together = _lanes(anatomy, samples.short, stack_tokens=1_000_000)
    alone = _lanes(anatomy, samples.short, stack_tokens=1)
    found = max(difference(a, b) for a, b in zip(together, alone, strict=True))
    return Measured(found, "<=", rounding(anatomy), f"{len(alone)} lanes in one call, and in a call each")


@check("after an exception")
def after_an_exception(anatomy: Anatomy, samples: Samples) -> Measured:
    """Hooks and replaced forwards are gone after an error inside a model, and the logits are what they were."""

    class Planned(Exception):
        pass

    def fail(tensor: Tensor) -> Tensor:
        raise Planned

    model, batch = anatomy.model, samples.short
    whole, before = logits(anatomy, batch), _attached(model)
    edit = Intervention("fail", edits=(ActivationEdit(anatomy.n_layers - 1, "mlp_out", fail),))
    with contextlib.suppress(Planned), edit.on(model):
        logits(anatomy, batch)
    with contextlib.suppress(Planned), drop(0).on(model):
        raise Planned
    after = _attached(model)
    left = len(set(after) ^ set(before))
    if not left and not torch.equal(logits(anatomy, batch), whole):
        raise ModelError("the logits are no longer what they were before an intervention failed")
    return Measured(float(left), "=", 0.0, f"hooks and replaced forwards left behind ({len(before)} were there before)")


def _attached(model: nn.Module) -> list[tuple[int, str, int]]:
    """What is attached to the modules of a model: hooks, and forwards that are not their class's."""
    found = []
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            found += [(id(module), "hook", id(hook)) for hook in hooks.values()]
        if (forward := vars(module).get("forward")) is not None:
            found.append((id(module), "forward", id(forward)))
    return found


def _interventions(anatomy: Anatomy) -> list[Intervention]:
    last = anatomy.n_layers - 1
    chosen = [(kind, layer) for kind in KINDS for layer in some_layers(anatomy) if kind != "swap" or layer != last]
    return [KINDS[kind](layer) for kind, layer in chosen]


def _lanes(anatomy: Anatomy, batch: Batch, *, stack_tokens: int) -> list[Tensor]:
    """Logits of the clean lane and of the lane of each intervention."""
    lanes = lay_out(_interventions(anatomy), anatomy.n_layers)
    skeleton = Skeleton(anatomy)
    stream, calls = skeleton.enter(batch)
    group = list(range(1, len(lanes)))
    streams = Walk(anatomy, lanes, stack_tokens, lambda index, step: None).run(stream, calls, group)
    return [tail_logits(skeleton, streams[index], batch) for index in range(len(lanes))]
