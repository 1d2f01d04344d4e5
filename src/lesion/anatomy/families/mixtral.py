"""Mixtral: Mistral's attention; the MLP of a block is several experts, of which each token is sent to a few.

Its neurons have no sites: transformers keeps the experts' weights in one tensor and sends tokens through them in a
loop, so that no module sees `mlp_pre` or `mlp_post`. What the MLP as a whole adds is `mlp_out`, as everywhere.
"""

from dataclasses import replace

from lesion.anatomy.families import llama

FAMILY = replace(
    llama.FAMILY,
    model_type="mixtral",
    architectures=("MixtralForCausalLM",),
    mlp_pre=None,
    mlp_post=None,
    mlp_out="mlp",
    experts="mlp.experts",
    tiny={
        "mixtral": {**llama.FAMILY.tiny["llama"], "num_local_experts": 4, "num_experts_per_tok": 2},
    },
)
