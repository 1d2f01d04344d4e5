"""Falcon: rotary positions or ALiBi, one, few or all heads for keys; attention and MLP side by side or in turn.

Where they are side by side the block adds attention's output to the MLP's in place, after `mlp_out` has passed.
"""

from lesion.anatomy.family import Config, Family

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_hidden_size": 80,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}


def _refuse(config: Config) -> str | None:
    """Combinations that transformers builds and cannot run, or runs without parts that it has built."""
    norms = config.num_ln_in_parallel_attn
    if config.new_decoder_architecture and not config.parallel_attn:
        return "new_decoder_architecture without parallel_attn is not a model that can be run"
    if config.new_decoder_architecture and norms not in (None, 1, 2):
        return f"num_ln_in_parallel_attn is {norms}; it is 1 or 2"
    if not config.new_decoder_architecture and norms == 2 and config.parallel_attn:
        return "num_ln_in_parallel_attn = 2 needs new_decoder_architecture"
    return None


FAMILY = Family(
    model_type="falcon",
    architectures=("FalconForCausalLM",),
    objective="causal",
    blocks="transformer.h",
    z="self_attention.dense",
    attn_out="self_attention.dense",
    mlp_pre="mlp.dense_h_to_4h",
    mlp_post="mlp.dense_4h_to_h",
    mlp_out="mlp.dense_4h_to_h",
    unembed="lm_head",
    overwritten=("mlp_out",),
    qkv="self_attention.query_key_value",
    parallel=lambda config: config.new_decoder_architecture or config.parallel_attn,
    returns_tuple=True,
    refuse=_refuse,
    tiny={
        "falcon-7b": _SIZES,
        "falcon-40b": {**_SIZES, "new_decoder_architecture": True, "num_kv_heads": 2},
        "falcon-11b": {**_SIZES, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        "falcon-rw": {**_SIZES, "alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
    },
)
