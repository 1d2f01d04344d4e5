"""Qwen 3 with a mixture of experts in every block."""

from dataclasses import replace

from lesion.anatomy.families import mixtral
from lesion.anatomy.family import Config

_SIZES = {key: value for key, value in mixtral.FAMILY.tiny["mixtral"].items() if key != "num_local_experts"}


def _refuse(config: Config) -> str | None:
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        return "some of its layers have experts and some have not (mlp_only_layers, decoder_sparse_step)"
    return None


FAMILY = replace(
    mixtral.FAMILY,
    model_type="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    refuse=_refuse,
    tiny={"qwen3_moe": {**_SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 80}},
)
