"""Gemma 1: LLaMA's blocks, an embedding scaled by the square root of its width, norms that multiply by 1 + weight."""

from dataclasses import replace

from lesion.anatomy.families import llama
from lesion.anatomy.family import Config


def refuse_bidirectional(config: Config) -> str | None:
    """Embedding models made from Gemma look at both sides, and predict no next token."""
    if getattr(config, "use_bidirectional_attention", None):
        return "its attention looks at both sides (use_bidirectional_attention), so it predicts no next token"
    return None


FAMILY = replace(
    llama.FAMILY,
    model_type="gemma",
    architectures=("GemmaForCausalLM",),
    refuse=refuse_bidirectional,
    tiny={"gemma": {**llama.FAMILY.tiny["llama"], "num_key_value_heads": 1}},
)
