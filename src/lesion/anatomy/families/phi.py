"""Phi 1, 1.5 and 2: attention and MLP read the same normed input; rotary positions on a part of each head."""

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
    model_type="phi",
    architectures=("PhiForCausalLM",),
    objective="causal",
    blocks="model.layers",
    z="self_attn.dense",
    attn_out="self_attn.dense",
    mlp_pre="mlp.fc1",
    mlp_post="mlp.fc2",
    mlp_out="mlp.fc2",
    unembed="lm_head",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    parallel=lambda config: True,
    tiny={"phi": {**_SIZES, "num_key_value_heads": 2}, "phi-normed": {**_SIZES, "qk_layernorm": True}},
)
