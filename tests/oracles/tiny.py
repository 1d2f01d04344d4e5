"""Tiny random models of every family, for tests: seeded, and with no parameter left at a value that hides an error.

Biases and norm weights are random (not 0 and 1), and weights are large enough that the logits are far from uniform and
attention is far from an average, so that every intervention moves the loss.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

Ids = NDArray[np.int64]

VOCABULARY = 97
POSITIONS = 64
BOS, PAD, EOS, MASK, FIRST_WORD = 0, 1, 2, 4, 5
"""Special ids; words are FIRST_WORD..VOCABULARY-1. RoBERTa gives PAD in the ids a padding position: never use it."""

SPECIAL = {"bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOS}
COMMON = SPECIAL | {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "hidden_size": 32}
HEADS = {"num_hidden_layers": 4, "num_attention_heads": 4}
WINDOWS = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
}
"""Layers of two kinds; the first two are of one, so that equal weights make them equal blocks."""
GATED = COMMON | HEADS | {"intermediate_size": 88, "num_key_value_heads": 2}
WIDE = COMMON | HEADS | {"intermediate_size": 128}


def _randomise(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Draw every parameter anew: vectors around their usual 0 or 1, embeddings sd 0.3, matrices sd 1.5/sqrt(d_in)."""
    seen: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            if parameter in seen:
                continue  # an unembedding tied to the embedding, which came first
            seen.add(parameter)
            noise = torch.randn(parameter.shape, generator=generator)
            if isinstance(module, nn.Embedding):
                parameter.data = 0.3 * noise
            elif parameter.ndim == 1:
                is_norm_weight = kind == "weight" and "norm" in (name + type(module).__name__).lower()
                parameter.data = float(is_norm_weight) + 0.3 * noise
            else:
                d_in = parameter.shape[0] if type(module).__name__ == "Conv1D" else parameter.shape[-1]
                parameter.data = noise * (1.5 / math.sqrt(d_in))
    model.tie_weights()


def _build(
    model_class: type[PreTrainedModel], config: Callable[[], PreTrainedConfig], seed: int, attention: str = "sdpa"
) -> PreTrainedModel:
    with torch.random.fork_rng():
        model = model_class._from_config(config(), attn_implementation=attention, dtype=torch.float32)
    _randomise(model, torch.Generator().manual_seed(seed))
    return model.eval()


def _gpt2() -> PreTrainedConfig:
    return GPT2Config(**SPECIAL, vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=32, n_layer=4, n_head=4)


def _gpt_neox(*, parallel: bool) -> PreTrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return GPTNeoXConfig(**WIDE, use_parallel_residual=parallel, rope_parameters=rope)


def _llama() -> PreTrainedConfig:
    return LlamaConfig(**GATED, head_dim=16)


def _mistral() -> PreTrainedConfig:
    return MistralConfig(**GATED, head_dim=8, sliding_window=8)


def _opt(*, norm_before: bool, projection: int) -> PreTrainedConfig:
    sizes = COMMON | HEADS | {"ffn_dim": 128}
    return OPTConfig(**sizes, do_layer_norm_before=norm_before, word_embed_proj_dim=projection)


def _bert() -> PreTrainedConfig:
    return BertConfig(**WIDE)


def _roberta() -> PreTrainedConfig:
    """Positions start at PAD + 1, so two more rows hold the same length; one token type, as in the real ones."""
    return RobertaConfig(**WIDE | {"max_position_embeddings": POSITIONS + PAD + 1, "type_vocab_size": 1})


def _phi() -> PreTrainedConfig:
    return PhiConfig(**WIDE, qk_layernorm=True)


def _qwen2() -> PreTrainedConfig:
    return Qwen2Config(**GATED, **WINDOWS, use_sliding_window=True)


def _qwen3() -> PreTrainedConfig:
    return Qwen3Config(**GATED, **WINDOWS, use_sliding_window=True, head_dim=16)


def _gemma() -> PreTrainedConfig:
    return GemmaConfig(**GATED, head_dim=16)


def _gemma2() -> PreTrainedConfig:
    caps = {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0}
    return Gemma2Config(**GATED, **WINDOWS, **caps, head_dim=16, query_pre_attn_scalar=24)


def _gemma3() -> PreTrainedConfig:
    return Gemma3TextConfig(**GATED, **WINDOWS, head_dim=16, query_pre_attn_scalar=24)


def _bloom() -> PreTrainedConfig:
    return BloomConfig(**SPECIAL, vocab_size=VOCABULARY, hidden_size=32, n_layer=4, n_head=4)


def _gptj() -> PreTrainedConfig:
    sizes = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": POSITIONS, "rotary_dim": 4}
    return GPTJConfig(**SPECIAL, vocab_size=VOCABULARY, **sizes)


def _falcon(**kind: object) -> PreTrainedConfig:
    return FalconConfig(**COMMON | HEADS | {"ffn_hidden_size": 88}, **kind)


def _mixtral() -> PreTrainedConfig:
    return MixtralConfig(**GATED, num_local_experts=4, num_experts_per_tok=2)


def _qwen3_moe() -> PreTrainedConfig:
    return Qwen3MoeConfig(**GATED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48)


TINY: dict[str, Callable[[int], PreTrainedModel]] = {
    "gpt2": partial(_build, GPT2LMHeadModel, _gpt2),
    "gpt_neox": partial(_build, GPTNeoXForCausalLM, partial(_gpt_neox, parallel=True)),
    "gpt_neox_sequential": partial(_build, GPTNeoXForCausalLM, partial(_gpt_neox, parallel=False)),
    "llama": partial(_build, LlamaForCausalLM, _llama),
    "mistral": partial(_build, MistralForCausalLM, _mistral),
    "opt": partial(_build, OPTForCausalLM, partial(_opt, norm_before=True, projection=32)),
    "opt_350m": partial(_build, OPTForCausalLM, partial(_opt, norm_before=False, projection=16)),
    "bert": partial(_build, BertForMaskedLM, _bert),
    "roberta": partial(_build, RobertaForMaskedLM, _roberta),
    "phi": partial(_build, PhiForCausalLM, _phi),
    "qwen2": partial(_build, Qwen2ForCausalLM, _qwen2),
    "qwen3": partial(_build, Qwen3ForCausalLM, _qwen3),
    "qwen3_moe": partial(_build, Qwen3MoeForCausalLM, _qwen3_moe),
    "gemma": partial(_build, GemmaForCausalLM, _gemma),
    "gemma2": partial(_build, Gemma2ForCausalLM, _gemma2, attention="eager"),
    "gemma3": partial(_build, Gemma3ForCausalLM, _gemma3),
    "bloom": partial(_build, BloomForCausalLM, _bloom, attention="eager"),
    "gptj": partial(_build, GPTJForCausalLM, _gptj, attention="eager"),
    "falcon_7b": partial(_build, FalconForCausalLM, _falcon),
    "falcon_40b": partial(_build, FalconForCausalLM, partial(_falcon, new_decoder_architecture=True, num_kv_heads=2)),
    "falcon_rw": partial(
        _build, FalconForCausalLM, partial(_falcon, alibi=True, parallel_attn=False, multi_query=False, bias=True)
    ),
    "mixtral": partial(_build, MixtralForCausalLM, _mixtral),
}
"""`TINY[name](seed)`: the same model for the same seed, in eval mode, float32; `EAGER` ones with eager attention."""

EAGER = frozenset({"gemma2", "bloom", "gptj"})
"""Gemma 2's soft-cap is lost elsewhere; the others know nothing else."""

MASKED = frozenset({"bert", "roberta"})
"""Names in TINY whose objective is masked; the others are causal."""


def random_documents(seed: int, lengths: Sequence[int]) -> list[Ids]:
    """Documents of random words, one of each length; no special ids."""
    rng = np.random.default_rng(seed)
    return [rng.integers(FIRST_WORD, VOCABULARY, size=length) for length in lengths]


def mask_some(seed: int, documents: Sequence[Ids], share: float = 0.15) -> tuple[list[Ids], list[Ids]]:
    """Corrupted documents (MASK at a random share, at least one position each) and targets (-100 elsewhere)."""
    rng = np.random.default_rng(seed)
    corrupted, targets = [], []
    for ids in documents:
        chosen = rng.choice(len(ids), size=max(1, round(share * len(ids))), replace=False)
        hidden, wanted = ids.copy(), np.full(len(ids), -100)
        hidden[chosen], wanted[chosen] = MASK, ids[chosen]
        corrupted.append(hidden)
        targets.append(wanted)
    return corrupted, targets
