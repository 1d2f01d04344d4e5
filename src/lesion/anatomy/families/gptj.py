"""GPT-J: rotary positions on a part of each head; attention and MLP read the same normed input."""

from lesion.anatomy.family import Family

FAMILY = Family(
    model_type="gptj",
    architectures=("GPTJForCausalLM",),
    objective="causal",
    blocks="transformer.h",
    z="attn.out_proj",
    attn_out="attn.out_proj",
    mlp_pre="mlp.fc_in",
    mlp_post="mlp.fc_out",
    mlp_out="mlp.fc_out",
    unembed="lm_head",
    query="attn.q_proj",
    key="attn.k_proj",
    parallel=lambda config: True,
    returns_tuple=True,
    attention="eager",
    unused=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)$",),
    tiny={
        "gptj": {
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_inner": 80,
            "rotary_dim": 4,
            "n_positions": 64,
            "vocab_size": 97,
        }
    },
)
