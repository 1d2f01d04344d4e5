"""Mistral: LLaMA's blocks with a sliding window in the attention mask."""

from dataclasses import replace

from lesion.anatomy.families import llama

_SIZES = {key: value for key, value in llama.FAMILY.tiny["llama"].items() if key != "head_dim"}

FAMILY = replace(
    llama.FAMILY,
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    tiny={"mistral": {**_SIZES, "sliding_window": 8}},
)
