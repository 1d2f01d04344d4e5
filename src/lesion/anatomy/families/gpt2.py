"""GPT-2: learned positions, pre-norm, q, k and v in one Conv1D."""

from lesion.anatomy.family import Family

FAMILY = Family(
    model_type="gpt2",
    architectures=("GPT2LMHeadModel",),
    objective="causal",
    blocks="transformer.h",
    z="attn.c_proj",
    attn_out="attn.c_proj",
    mlp_pre="mlp.c_fc",
    mlp_post="mlp.c_proj",
    mlp_out="mlp.c_proj",
    unembed="lm_head",
    qkv="attn.c_attn",
    positions="transformer.wpe",
    refuse=lambda config: "it has cross-attention" if config.add_cross_attention else None,
    unused=(r"(transformer\.)?h\.\d+\.attn\.masked_bias$",),
    tiny={"gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 97, "n_inner": 80}},
)
