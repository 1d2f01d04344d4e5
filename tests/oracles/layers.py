"""What `lesion layers` must answer, worked out the slow way: an independent oracle for the layer sweep.

Plain transformers and NumPy in float64, nothing of `lesion`: one document at a time, batch of one, no padding, one full
forward of an edited *copy of the model* for each intervention, all logits at once. The edits use no hooks on purpose:
a dropped block is a monkey-patched `forward`, swapped blocks change places in the `ModuleList` (safe here: nothing is
repeated, and there is no cache), a dropped attention or MLP has weight and bias of its output projection set to zero.
"""

import copy
import itertools
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

Ids = NDArray[np.int64]
Reals = NDArray[np.float64]
Objective = Literal["causal", "masked"]

INTERVENTIONS = ("drop", "swap", "drop_attn", "drop_mlp")
NOT_SCORED = -100
COLUMNS = (
    *("intervention", "layer", "relative_depth", "n_tokens", "n_documents"),
    *("loss_nats", "loss_nats_sem", "loss_clean_nats", "loss_change_nats", "loss_change_nats_sem"),
    *("kl_nats", "kl_nats_sem", "agreement", "agreement_sem", "top1", "top1_sem", "top1_clean"),
    *("entropy_bits", "entropy_bits_sem", "entropy_clean_bits", "entropy_change_bits", "entropy_change_bits_sem"),
)
MEASURED = ("loss_nats", "loss_change_nats", "kl_nats", "agreement", "top1", "entropy_bits", "entropy_change_bits")
CLEAN = ("loss_clean_nats", "top1_clean", "entropy_clean_bits")


@dataclass(frozen=True)
class Family:
    """Where a family keeps its blocks, and in a block what has to be zero for attention or MLP to write nothing.

    Attributes:
        attention_out: The last projection of attention; a norm behind it makes zeros of zeros.
        mlp_out: The same of the MLP, or all its experts.
        in_tuple: Whether blocks return the hidden state in a tuple.
    """

    blocks: Callable[[PreTrainedModel], nn.ModuleList]
    attention_out: str
    mlp_out: str
    in_tuple: bool = False


_LLAMA = Family(lambda m: m.model.layers, "self_attn.o_proj", "mlp.down_proj")
_EXPERTS = Family(lambda m: m.model.layers, "self_attn.o_proj", "mlp.experts")
_TUPLES = Family(lambda m: m.transformer.h, "self_attention.dense", "mlp.dense_4h_to_h", in_tuple=True)


FAMILIES = {
    "gpt2": Family(lambda m: m.transformer.h, "attn.c_proj", "mlp.c_proj"),
    "gpt_neox": Family(lambda m: m.gpt_neox.layers, "attention.dense", "mlp.dense_4h_to_h"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _LLAMA),
    **dict.fromkeys(("mixtral", "qwen3_moe"), _EXPERTS),
    **dict.fromkeys(("bloom", "falcon"), _TUPLES),
    "gptj": Family(lambda m: m.transformer.h, "attn.out_proj", "mlp.fc_out", in_tuple=True),
    "vit": Family(lambda m: m.vit.layers, "attention.o_proj", "mlp.fc2"),
    "deit": Family(lambda m: m.deit.layers, "attention.o_proj", "mlp.fc2"),
    "phi": Family(lambda m: m.model.layers, "self_attn.dense", "mlp.fc2"),
    "opt": Family(lambda m: m.model.decoder.layers, "self_attn.out_proj", "fc2"),
    "bert": Family(lambda m: m.bert.encoder.layer, "attention.output.dense", "output.dense"),
    "roberta": Family(lambda m: m.roberta.encoder.layer, "attention.output.dense", "output.dense"),
}


def family_of(model: PreTrainedModel) -> Family:
    """Return the entry of the model's family.

    Raises:
        ValueError: If the oracle does not know the family.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise ValueError(f"the oracle knows {sorted(FAMILIES)}, not {kind!r}")
    return FAMILIES[kind]


def _pass_through(_block: nn.Module, hidden_states: Tensor, *_args: object, **_kwargs: object) -> Tensor:
    return hidden_states


def _pass_through_in_tuple(_block: nn.Module, hidden_states: Tensor, *_args: object, **_kwargs: object) -> object:
    return hidden_states, None


def swap_layer_types(model: PreTrainedModel, layer: int) -> None:
    """Where each layer has its own kind of mask, it goes with the block."""
    types_of = getattr(model.config, "layer_types", None)
    if types_of is not None:
        model.config.layer_types = [*types_of[:layer], types_of[layer + 1], types_of[layer], *types_of[layer + 2 :]]


def edited_copy(model: PreTrainedModel, intervention: str, layer: int) -> PreTrainedModel:
    """Return a deep copy of `model` with one intervention made at one layer."""
    family = family_of(model)
    edited = copy.deepcopy(model)
    blocks = family.blocks(edited)
    if intervention == "drop":
        passing = _pass_through_in_tuple if family.in_tuple else _pass_through
        blocks[layer].forward = types.MethodType(passing, blocks[layer])
    elif intervention == "swap":
        first, second = blocks[layer], blocks[layer + 1]
        blocks[layer], blocks[layer + 1] = second, first
        swap_layer_types(edited, layer)
    elif intervention in ("drop_attn", "drop_mlp"):
        name = family.attention_out if intervention == "drop_attn" else family.mlp_out
        for parameter in blocks[layer].get_submodule(name).parameters():
            parameter.data.zero_()
    else:
        raise ValueError(f"intervention {intervention!r} is not one of {INTERVENTIONS}")
    return edited


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, ids: Ids) -> Reals:
    """Log-probabilities (nats) of one document, shape (token, vocabulary), normalised in float64."""
    logits = model(input_ids=torch.as_tensor(ids)[None], use_cache=False).logits[0].double().numpy()
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def scored_positions(ids: Ids, targets: Ids | None, objective: Objective) -> tuple[Ids, Ids]:
    """Positions whose prediction is scored, and what should be predicted there."""
    if objective == "causal":
        return np.arange(len(ids) - 1), ids[1:]
    assert targets is not None
    positions = np.flatnonzero(targets != NOT_SCORED)
    return positions, targets[positions]


def entropy_bits(log_p: Reals) -> Reals:
    """Entropy in bits of each row."""
    return -(np.exp(log_p) * log_p).sum(axis=-1) / np.log(2.0)


def token_measures(clean: Reals, other: Reals, target: Ids) -> dict[str, Reals]:
    """Every measure at every scored position.

    Args:
        clean: Clean log-probabilities in nats, (position, vocabulary).
        other: The intervened model's, same shape.
        target: The right token, (position,).
    """
    row = np.arange(len(target))
    loss, loss_clean = -other[row, target], -clean[row, target]
    entropy, entropy_clean = entropy_bits(other), entropy_bits(clean)
    best, best_clean = other.argmax(axis=-1), clean.argmax(axis=-1)
    return {
        "loss_nats": loss,
        "loss_clean_nats": loss_clean,
        "loss_change_nats": loss - loss_clean,
        "kl_nats": (np.exp(clean) * (clean - other)).sum(axis=-1),
        "agreement": (best == best_clean).astype(np.float64),
        "top1": (best == target).astype(np.float64),
        "top1_clean": (best_clean == target).astype(np.float64),
        "entropy_bits": entropy,
        "entropy_clean_bits": entropy_clean,
        "entropy_change_bits": entropy - entropy_clean,
    }


def ratio_mean_and_sem(sums: Reals, counts: Reals) -> tuple[float, float]:
    """Token-weighted mean m = ΣS_d / Σn_d and its standard error clustered by document.

    sqrt(G/(G-1) · Σ_d (S_d - m·n_d)²) / Σ_d n_d, with G documents; NaN with one document.
    """
    total, n_documents = counts.sum(), len(counts)
    mean = sums.sum() / total
    if n_documents < 2:
        return float(mean), float("nan")
    spread = ((sums - mean * counts) ** 2).sum()
    return float(mean), float(np.sqrt(n_documents / (n_documents - 1) * spread) / total)


def summarise(per_document: Sequence[dict[str, Reals]]) -> dict[str, float | int]:
    """Means and standard errors over documents, each given as its tokens' measures."""
    counts = np.array([len(measures["loss_nats"]) for measures in per_document], dtype=np.float64)
    row: dict[str, float | int] = {"n_tokens": int(counts.sum()), "n_documents": len(counts)}
    for name in (*MEASURED, *CLEAN):
        sums = np.array([measures[name].sum() for measures in per_document])
        mean, sem = ratio_mean_and_sem(sums, counts)
        row[name] = mean
        if name in MEASURED:
            row[f"{name}_sem"] = sem
    return row


def _check(documents: Sequence[Ids], targets: Sequence[Ids] | None, objective: Objective) -> None:
    if objective not in ("causal", "masked"):
        raise ValueError(f"objective is 'causal' or 'masked', not {objective!r}")
    if (objective == "masked") != (targets is not None):
        raise ValueError(f"targets are for the masked objective, and needed there; objective is {objective!r}")
    if targets is not None and [len(t) for t in targets] != [len(d) for d in documents]:
        raise ValueError("targets and documents differ in number or length")


def _cells(n_layers: int, interventions: Iterable[str], layers: Iterable[int] | None) -> list[tuple[str, int]]:
    wanted = list(range(n_layers)) if layers is None else list(layers)
    if any(not 0 <= layer < n_layers for layer in wanted):
        raise ValueError(f"layers {wanted}: the model has layers 0..{n_layers - 1}")
    pairs = itertools.product(interventions, wanted)
    return [(kind, layer) for kind, layer in pairs if not (kind == "swap" and layer == n_layers - 1)]


def layers_oracle(
    model: PreTrainedModel,
    documents: Sequence[Ids],
    *,
    objective: Objective,
    interventions: Iterable[str] = INTERVENTIONS,
    layers: Iterable[int] | None = None,
    targets: Sequence[Ids] | None = None,
) -> pd.DataFrame:
    """One row per intervention and layer, as `tables/layers.parquet` defines them.

    Documents without a scored position count neither as tokens nor as documents. `swap` has no row for the last layer,
    also where `layers` names it. The forward runs in the model's own dtype: pass `model.double()` for an oracle free
    of float32 noise.

    Args:
        model: One of `FAMILIES`; it is put in eval mode in the copies only, and never changed.
        documents: Token ids, one array a document (for masked models already corrupted).
        objective: `causal` scores every position that has a next token, `masked` those with a target.
        interventions: Some of `INTERVENTIONS`.
        layers: Layers to intervene at; all by default.
        targets: For `masked`: the right ids, -100 where a position is not scored.

    Raises:
        ValueError: If an argument makes no sense, or nothing is scored.
    """
    _check(documents, targets, objective)
    model = copy.deepcopy(model).eval()
    n_layers = len(family_of(model).blocks(model))
    scored = [
        scored_positions(ids, None if targets is None else targets[i], objective) for i, ids in enumerate(documents)
    ]
    used = [(ids, *where) for ids, where in zip(documents, scored, strict=True) if len(where[0])]
    if not used:
        raise ValueError("no position of any document is scored")
    clean = [log_probabilities(model, ids)[positions] for ids, positions, _ in used]
    rows = []
    for intervention, layer in _cells(n_layers, interventions, layers):
        edited = edited_copy(model, intervention, layer)
        measures = [
            token_measures(clean[i], log_probabilities(edited, ids)[positions], target)
            for i, (ids, positions, target) in enumerate(used)
        ]
        depth = layer / (n_layers - 1) if n_layers > 1 else 0.0
        rows.append({"intervention": intervention, "layer": layer, "relative_depth": depth} | summarise(measures))
    return pd.DataFrame(rows, columns=list(COLUMNS))
