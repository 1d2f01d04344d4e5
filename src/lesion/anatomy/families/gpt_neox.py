"""GPT-NeoX and Pythia: rotary positions; attention and MLP of a block may read the same input."""

from lesion.anatomy.family import Family

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}

FAMILY = Family(
    model_type="gpt_neox",
    architectures=("GPTNeoXForCausalLM",),
    objective="causal",
    blocks="gpt_neox.layers",
    z="attention.dense",
    attn_out="attention.dense",
    mlp_pre="mlp.dense_h_to_4h",
    mlp_post="mlp.dense_4h_to_h",
    mlp_out="mlp.dense_4h_to_h",
    unembed="lm_head",
    qkv="attention.query_key_value",
    parallel=lambda config: config.use_parallel_residual,
    tiny={"gpt_neox": _SIZES, "gpt_neox-sequential": {**_SIZES, "use_parallel_residual": False}},
)
