"""What is changed: activations and the order of blocks, as data that sweeps and context managers share."""

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
    swap,
)

__all__ = [
    "KINDS",
    "ActivationEdit",
    "Intervention",
    "combine",
    "drop",
    "drop_attn",
    "drop_mlp",
    "in_eval_mode",
    "parse",
    "swap",
]
