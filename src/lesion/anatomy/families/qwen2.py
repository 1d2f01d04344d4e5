"""Qwen 2 and 2.5: LLaMA's blocks with biases on queries, keys and values; some layers may have a sliding window."""

from dataclasses import replace

from lesion.anatomy.families import llama

_SIZES = {key: value for key, value in llama.FAMILY.tiny["llama"].items() if key != "head_dim"}

FAMILY = replace(
    llama.FAMILY,
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM",),
    tiny={
        "qwen2": _SIZES,
        "qwen2-window": {**_SIZES, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    },
)
