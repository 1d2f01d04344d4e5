"""Mistral: LLaMA's blocks with a sliding window in the attention mask."""

from lesion.anatomy.family import Family

FAMILY = Family(
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    objective="causal",
    blocks="model.layers",
    z="self_attn.o_proj",
    attn_out="self_attn.o_proj",
    mlp_pre="mlp.gate_proj",
    mlp_post="mlp.down_proj",
    mlp_out="mlp.down_proj",
    unembed="lm_head",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    tiny={
        "mistral": {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 80,
            "vocab_size": 97,
            "max_position_embeddings": 64,
            "sliding_window": 8,
        }
    },
)
