"""The second road: what an edit of activations does, done to the weights."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lesion.anatomy import Anatomy, refuse_packed
from lesion.engine.checks.comparing import difference, edited, logits, named_blocks, refuse_missing_site
from lesion.engine.checks.finding import Measured, NotApplicable, check
from lesion.engine.samples import Samples
from lesion.errors import ModelError
from lesion.interventions import ActivationEdit
from lesion.interventions.hooks import Operator

NEURONS = 16
"""Neurons that are taken away together: one alone may do nothing on two documents."""


@check("head = columns of W_O")
def head_is_columns(anatomy: Anatomy, samples: Samples) -> Measured:
    """Zeroing a head's z is zeroing its columns of the output projection: products with 0 either way, no rounding."""

    def strongest(columns: Tensor) -> Tensor:
        head = int(columns.float().square().sum(1).view(anatomy.n_heads, -1).sum(1).argmax())
        return torch.arange(head * anatomy.d_head, (head + 1) * anatomy.d_head, device=columns.device)

    return _columns(anatomy, samples, "z", strongest, "the head with the largest weights")


@check("neurons = columns of W_out")
def neurons_are_columns(anatomy: Anatomy, samples: Samples) -> Measured:
    """Zeroing MLP neurons is zeroing their columns of the down projection."""

    def strongest(columns: Tensor) -> Tensor:
        return columns.float().square().sum(1).topk(min(NEURONS, anatomy.d_mlp)).indices

    return _columns(anatomy, samples, "mlp_post", strongest, f"the {NEURONS} neurons with the largest weights")


def _columns(anatomy: Anatomy, samples: Samples, site: str, choose: Callable[[Tensor], Tensor], what: str) -> Measured:
    refuse_missing_site(anatomy, site)
    try:
        refuse_packed(anatomy, "this check")
    except ModelError as reason:
        raise NotApplicable(str(reason)) from None
    chosen, found, moved = sorted({0, anatomy.n_layers - 1}), [], []
    whole = logits(anatomy, samples.short)
    for layer in chosen:
        module = anatomy.site(layer, site)[0]
        units = choose(_weight_columns(module))
        with edited(anatomy, [ActivationEdit(layer, site, _without(units))]):
            by_activation = logits(anatomy, samples.short)
        with _columns_zeroed(module, units):
            by_weights = logits(anatomy, samples.short)
        found.append(difference(by_activation, by_weights))
        moved.append(difference(by_activation, whole))
    return Measured(
        max(found), "=", 0.0, f"{what} of {named_blocks(chosen)}; without them logits move by {max(moved):.2g}"
    )


def _without(units: Tensor) -> Operator:
    return lambda tensor: tensor.index_fill(-1, units, 0)


def _weight_columns(module: nn.Module) -> Tensor:
    """The weight with a row for each input: `nn.Linear` stores (out, in), GPT-2's Conv1D (in, out)."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.data.T if isinstance(module, nn.Linear) else weight.data


@contextlib.contextmanager
def _columns_zeroed(module: nn.Module, units: Tensor) -> Iterator[None]:
    columns = _weight_columns(module)
    before = columns[units].clone()
    try:
        columns[units] = 0
        yield
    finally:
        columns[units] = before
