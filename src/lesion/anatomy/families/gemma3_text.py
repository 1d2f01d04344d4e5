"""Gemma 3, text only: Gemma 2's blocks without soft-caps, norms on queries and keys, rotary positions by layer type."""

from dataclasses import replace

from lesion.anatomy.families import gemma, gemma2

FAMILY = replace(
    gemma2.FAMILY,
    model_type="gemma3_text",
    architectures=("Gemma3ForCausalLM",),
    attention="sdpa",
    tiny={
        "gemma3": {
            **gemma.FAMILY.tiny["gemma"],
            "query_pre_attn_scalar": 24,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        "gemma3-capped": {
            **gemma.FAMILY.tiny["gemma"],
            "sliding_window": 8,
            "sliding_window_pattern": 2,
            "final_logit_softcapping": 6.0,
        },
    },
)
