"""OPT: learned positions (two rows unused), ReLU; 350m is post-norm and projects in and out of its embedding."""

from lesion.anatomy.family import Family

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 80,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}

FAMILY = Family(
    model_type="opt",
    architectures=("OPTForCausalLM",),
    objective="causal",
    blocks="model.decoder.layers",
    z="self_attn.out_proj",
    attn_out="self_attn.out_proj",
    mlp_pre="fc1",
    mlp_post="fc2",
    mlp_out="fc2",
    unembed="lm_head",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    positions="model.decoder.embed_positions",
    position_offset=lambda config: 2,
    post_norm=lambda config: not config.do_layer_norm_before,
    tiny={
        "opt": {**_SIZES, "word_embed_proj_dim": 32},
        "opt-350m": {**_SIZES, "do_layer_norm_before": False, "word_embed_proj_dim": 16},
    },
)
