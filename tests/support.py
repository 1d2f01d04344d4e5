"""What several tests share: tiny models of every family, and documents that are already token ids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoConfig

from lesion.anatomy import known_families
from lesion.data import Batch

TINY = {name: (family, sizes) for family in known_families().values() for name, sizes in family.tiny.items()}


def tiny_model(name: str, seed: int = 0, **sizes: object) -> nn.Module:
    """A tiny random model whose every part matters: nothing is left at 0 or 1, and the logits are not flat."""
    family, defaults = TINY[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family.model_type, **{**defaults, **sizes})
    config._attn_implementation = family.attention
    model = getattr(transformers, family.architectures[0])(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(
                    torch.randn_like(parameter) * 0.2 + (1.0 if "norm" in key.lower() or ".ln_" in key else 0.0)
                )
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.25)
    return model.eval()


def token_documents(vocabulary: int, lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(5, vocabulary, size=length) for length in lengths]


class Documents:
    """Documents in memory, as `lesion.data.TextData` gives them; a masked model's targets are every fourth id."""

    def __init__(self, documents: Sequence[np.ndarray], *, objective: str = "causal", n_domains: int = 1) -> None:
        self.documents = list(documents)
        self.objective = objective
        self.lengths = np.array([len(document) for document in documents])
        self.domains = tuple(f"domain{index}" for index in range(n_domains))
        self.domain_of = np.arange(len(documents)) % n_domains

    def inputs(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids as the model sees them, and targets (-100 where none)."""
        ids = self.documents[index]
        if self.objective == "causal":
            return ids, np.append(ids[1:], -100)
        chosen = np.arange(len(ids)) % 4 == 2
        return np.where(chosen, 4, ids), np.where(chosen, ids, -100)

    def batch(self, indices: Sequence[int]) -> Batch:
        longest = max(len(self.documents[index]) for index in indices)
        ids = torch.zeros((len(indices), longest), dtype=torch.long) + 1
        targets = torch.full((len(indices), longest), -100)
        mask = torch.zeros((len(indices), longest), dtype=torch.long)
        for row, index in enumerate(indices):
            given, wanted = self.inputs(index)
            ids[row, : len(given)] = torch.from_numpy(given)
            targets[row, : len(wanted)] = torch.from_numpy(wanted)
            mask[row, : len(given)] = 1
        return Batch(
            ids=ids,
            pixels=None,
            mask=None if bool(mask.all()) else mask,
            keep=targets != -100,
            targets=targets,
            documents=torch.tensor(list(indices)),
            domains=torch.from_numpy(self.domain_of[list(indices)]),
        )


class Pictures:
    """Random images of one channel in memory; the label is the index."""

    objective = "image"
    domains = ("pictures",)

    def __init__(self, count: int, size: int = 16) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn((count, 1, size, size), generator=generator)
        self.lengths = np.ones(count, dtype=int)

    def batch(self, indices: Sequence[int]) -> Batch:
        chosen = torch.tensor(list(indices))
        return Batch(
            ids=None,
            pixels=self.pixels[chosen],
            mask=None,
            keep=torch.ones((len(chosen), 1), dtype=torch.bool),
            targets=chosen.unsqueeze(1),
            documents=chosen,
            domains=torch.zeros_like(chosen),
        )


def save_tiny_folder(folder: Path, sentences: Sequence[str]) -> None:
    """Writes a tiny LLaMA of 320 ids and its tokenizer as a Hugging Face folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    tiny_model("llama", vocab_size=320).save_pretrained(folder)
