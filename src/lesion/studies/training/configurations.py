"""Small architectures to train: those of paper `zero-modes` (App. A) and smaller ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from lesion.errors import InputError


@dataclass(frozen=True)
class Architecture:
    """What can be trained from nothing.

    Attributes:
        says: one line for users.
        context: longest sequence; for images height and width.
        vocabulary: ids of a tokenizer trained on the data, unless another number is asked for; 0 for images.
        build: makes it from outputs (ids, or classes), positions (or height and width), and its tokenizer (or the
            names of its classes).
    """

    says: str
    context: int
    vocabulary: int
    build: Callable[[int, int, Any], PreTrainedModel]

    @property
    def reads_images(self) -> bool:
        return not self.vocabulary


def _llama(layers: int, width: int, mlp: int, *, tied: bool) -> Callable[[int, int, Any], PreTrainedModel]:
    def build(vocabulary: int, context: int, tokenizer: Any) -> PreTrainedModel:
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=mlp,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=context,
                tie_word_embeddings=tied,
                **_specials(tokenizer),
            )
        )

    return build


def _opt(*, positions: bool) -> Callable[[int, int, Any], PreTrainedModel]:
    def build(vocabulary: int, context: int, tokenizer: Any) -> PreTrainedModel:
        model = OPTForCausalLM(
            OPTConfig(
                vocab_size=vocabulary,
                hidden_size=128,
                word_embed_proj_dim=128,
                ffn_dim=2048,
                num_hidden_layers=4,
                num_attention_heads=4,
                max_position_embeddings=context,
                dropout=0.0,
                attention_dropout=0.0,
                activation_function="relu",
                **_specials(tokenizer),
            )
        )
        if not positions:
            table = model.model.decoder.embed_positions.weight
            nn.init.zeros_(table)
            table.requires_grad_(False)
        return model

    return build


def _vit(classes: int, size: int, names: Any) -> PreTrainedModel:
    named = {label: names.get(label, str(label)) for label in range(classes)}
    return ViTForImageClassification(
        ViTConfig(
            image_size=size,
            patch_size=2,
            num_channels=1,
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            id2label=named,
            label2id={name: label for label, name in named.items()},
        )
    )


def _specials(tokenizer: Any) -> dict[str, int | None]:
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


ARCHITECTURES = {
    "llama-1l": Architecture(
        "LLaMA, 1 layer, d_model 512, 4 heads (paper size)", 1024, 32_000, _llama(1, 512, 2048, tied=False)
    ),
    "llama-2l": Architecture(
        "LLaMA, 2 layers, d_model 512, 4 heads (paper size)", 1024, 32_000, _llama(2, 512, 2048, tied=False)
    ),
    "llama-tiny": Architecture(
        "LLaMA, 4 layers, d_model 128, 4 heads, tied embedding", 256, 2048, _llama(4, 128, 384, tied=True)
    ),
    "opt-tiny": Architecture(
        "OPT, 4 layers, d_model 128, 2048 ReLU neurons each, learned positions", 256, 512, _opt(positions=True)
    ),
    "opt-tiny-nopos": Architecture(
        "the same without positions: their table is zero and stays so", 256, 512, _opt(positions=False)
    ),
    "vit-digits": Architecture("ViT, 4 layers, d_model 96, patches of 2 x 2, grey pictures of 8 x 8", 8, 0, _vit),
}


def architecture(name: str) -> Architecture:
    """The architecture of a name.

    Raises:
        InputError: there is none.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"--config {name!r} is not known; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
