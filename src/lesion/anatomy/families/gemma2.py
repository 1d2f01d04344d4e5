"""Gemma 2: what attention and MLP give is normed before it is added; soft-caps on attention and logits.

`attn_out` and `mlp_out` are what enters the residual stream: the outputs of those norms. The soft-cap on attention
exists in eager attention only; every second layer has a sliding window.
"""

from dataclasses import replace

from lesion.anatomy.families import gemma

FAMILY = replace(
    gemma.FAMILY,
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM",),
    attn_out="post_attention_layernorm",
    mlp_out="post_feedforward_layernorm",
    attention="eager",
    tiny={
        "gemma2": {
            **gemma.FAMILY.tiny["gemma"],
            "num_key_value_heads": 2,
            "query_pre_attn_scalar": 24,
            "sliding_window": 8,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 6.0,
        }
    },
)
