"""BLOOM: ALiBi in place of positions; q, k and v in one matrix; the residual is added inside attention and MLP."""

from lesion.anatomy.family import Config, Family

TRAINED_ON = 2048
"""Tokens that every released BLOOM was trained on; ALiBi has no longest sequence of its own."""


def _refuse(config: Config) -> str | None:
    if config.apply_residual_connection_post_layernorm:
        return "its norms replace the residual stream (apply_residual_connection_post_layernorm)"
    if config.slow_but_exact and config.pretraining_tp > 1:
        return "its projections are applied in slices that no hook sees (slow_but_exact); set slow_but_exact to false"
    return None


FAMILY = Family(
    model_type="bloom",
    architectures=("BloomForCausalLM",),
    objective="causal",
    blocks="transformer.h",
    z="self_attention.dense",
    attn_out="self_attention.dense",
    mlp_pre="mlp.dense_h_to_4h",
    mlp_post="mlp.dense_4h_to_h",
    mlp_out="mlp.dense_4h_to_h",
    unembed="lm_head",
    qkv="self_attention.query_key_value",
    longest=lambda config: int(getattr(config, "seq_length", TRAINED_ON)),
    returns_tuple=True,
    attention="eager",
    refuse=_refuse,
    tiny={"bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 97, "seq_length": 64}},
)
