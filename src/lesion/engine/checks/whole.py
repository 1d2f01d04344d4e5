"""The model is itself: the same twice, the same as transformers loads it, alone and padded."""

import copy
from dataclasses import replace

import torch
import transformers
from torch import nn

from lesion.anatomy import Anatomy
from lesion.anatomy.wording import quiet_transformers
from lesion.engine.checks.comparing import (
    difference,
    exact_but_for_experts,
    logits,
    refuse_images,
    rounding,
)
from lesion.engine.checks.finding import Measured, NotApplicable, check
from lesion.engine.samples import Samples
from lesion.errors import ModelError


@check("same bits twice")
def same_bits_twice(anatomy: Anatomy, samples: Samples) -> Measured:
    """The same batch gives the same logits, bit for bit."""
    first, second = (logits(anatomy, samples.both) for _ in range(2))
    return Measured(difference(second, first), "=", 0.0, "the same batch, run twice")


@check("plain transformers")
def plain_transformers(anatomy: Anatomy, samples: Samples) -> Measured:
    """A model as transformers loads it, from the same weights, gives the same logits.

    It has its default attention implementation and none of the hooks, adapters and settings of the model in memory.
    """
    if anatomy.packed is not None:
        raise NotApplicable(f"packed weights ({anatomy.packed}) cannot be put into a second model")
    plain = _plain_copy(anatomy)
    ours, theirs = (one.config._attn_implementation for one in (anatomy, replace(anatomy, model=plain)))
    found = max(
        difference(logits(anatomy, batch), logits(replace(anatomy, model=plain), batch))
        for batch in (samples.long, samples.short)
    )
    if ours == theirs:
        return Measured(found, "=", 0.0, f"a second {type(plain).__name__} on the same weights, {ours} attention")
    return Measured(found, "<=", rounding(anatomy), f"with {theirs} attention; ours runs with {ours}")


@check("later tokens")
def later_tokens(anatomy: Anatomy, samples: Samples) -> Measured:
    """In a causal model no position sees a later one: other tokens there change no bit before them.

    Experts run tokens in groups, whose sizes change with the tokens: there it is rounding.
    """
    if anatomy.objective != "causal" or samples.long.ids is None:
        raise NotApplicable(f"a {anatomy.objective} model looks at both sides")
    ids = samples.long.ids
    middle = ids.shape[1] // 2
    changed = ids.clone()
    changed[:, middle:] = (changed[:, middle:] + 1) % anatomy.n_token_ids
    first, second = (logits(anatomy, replace(samples.long, ids=some)) for some in (ids, changed))
    found = difference(second[:middle], first[:middle])
    detail = f"tokens {middle} to {ids.shape[1] - 1} exchanged, logits of 0 to {middle - 1}"
    return exact_but_for_experts(anatomy, found, detail)


@check("padding")
def padding(anatomy: Anatomy, samples: Samples) -> Measured:
    """A document padded in a batch has the logits that it has alone."""
    refuse_images(samples)
    together = logits(anatomy, samples.both)
    alone = torch.cat([logits(anatomy, samples.long), logits(anatomy, samples.short)])
    lengths = " and ".join(str(int(length)) for length in samples.both.keep.sum(1))
    return Measured(difference(together, alone), "<=", rounding(anatomy), f"{lengths} tokens in one batch, and alone")


@check("content of padding")
def content_of_padding(anatomy: Anatomy, samples: Samples) -> Measured:
    """What stands in the padding changes no bit of what is kept (with experts: rounding)."""
    refuse_images(samples)
    ids = samples.both.ids
    assert ids is not None
    other = torch.where(samples.both.keep, ids, (samples.padding + 1) % anatomy.n_token_ids)
    first, second = (logits(anatomy, replace(samples.both, ids=some)) for some in (ids, other))
    return exact_but_for_experts(anatomy, difference(second, first), "another id in the padding")


def _plain_copy(anatomy: Anatomy) -> nn.Module:
    """A second model, loaded by transformers' own `from_pretrained` from the first one's tensors, which it shares.

    Raises:
        ModelError: the first one has tensors that its class does not, or lacks some.
    """
    config = copy.deepcopy(anatomy.config)
    config._attn_implementation = None  # the default
    name = type(anatomy.model).__name__
    with quiet_transformers():
        plain, info = getattr(transformers, name).from_pretrained(
            None,
            config=config,
            state_dict=anatomy.model.state_dict(),
            dtype=anatomy.dtype,
            device_map={"": anatomy.device},
            output_loading_info=True,
        )
    if odd := sorted({key for keys in ("missing_keys", "unexpected_keys") for key in info[keys]}):
        raise ModelError(f"its tensors are not those of a plain {name}: {len(odd)} of them, {odd[0]} first")
    copied: nn.Module = plain.eval()
    return copied
