"""What is changed: activations, weights and the order of blocks, as data that sweeps and context managers share."""

from lesion.interventions.hooks import in_eval_mode
from lesion.interventions.intervention import (
    KINDS,
    ActivationEdit,
    Intervention,
    combine,
    drop,
    drop_attn,
    drop_mlp,
    parse,
    set_weights,
    swap,
)
from lesion.interventions.rewriting import Rewriting, structure_of
from lesion.interventions.weights import OUTSIDE, WeightEdit

__all__ = [
    "KINDS",
    "OUTSIDE",
    "ActivationEdit",
    "Intervention",
    "Rewriting",
    "WeightEdit",
    "combine",
    "drop",
    "drop_attn",
    "drop_mlp",
    "in_eval_mode",
    "parse",
    "set_weights",
    "structure_of",
    "swap",
]
