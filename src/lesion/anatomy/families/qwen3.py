"""Qwen 3: LLaMA's blocks with a norm on each head's query and key, and heads as wide as the configuration says."""

from dataclasses import replace

from lesion.anatomy.families import llama

_SIZES = llama.FAMILY.tiny["llama"]

FAMILY = replace(
    llama.FAMILY,
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM",),
    tiny={
        "qwen3": _SIZES,
        "qwen3-window": {**_SIZES, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    },
)
