"""A tokenizer trained on the data that a model will be trained on."""

from collections.abc import Iterator, Sequence
from typing import Any

from lesion.data.documents import BadRows, OnBadRow
from lesion.data.encoding import Tokenizer
from lesion.data.sources import parse_domains
from lesion.errors import InputError

BEGIN, PAD = "<|begin|>", "<|pad|>"
SMALLEST = 258
"""All bytes, and the two special tokens."""


def train_tokenizer(
    specs: str | Sequence[str],
    size: int,
    *,
    context: int,
    characters: int = 20_000_000,
    on_bad_row: OnBadRow = "fail",
) -> Tokenizer:
    """A byte-level BPE of `size` ids, so that any text can be encoded; the same data give the same ids.

    `<|begin|>` (id 0) is the BOS, which the tokenizer does not add by itself, and `<|pad|>` (id 1) fills batches.

    Args:
        specs: DATA, one or several, as for `load_text`.
        size: ids in all.
        context: longest sequence that the tokenizer's folder names.
        characters: how much text is looked at, split evenly over the domains.

    Raises:
        InputError: too few ids, or data that cannot be read.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if size < SMALLEST:
        raise InputError(f"--vocabulary {size} is too small: all bytes and two special tokens are {SMALLEST} ids")
    backend: Any = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BEGIN, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(specs, characters, on_bad_row), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BEGIN, pad_token=PAD, model_max_length=context)


def _texts(specs: str | Sequence[str], characters: int, on_bad_row: OnBadRow) -> Iterator[str]:
    domains = parse_domains(specs)
    for domain in domains:
        left = characters // len(domains)
        for document in domain.source.documents(BadRows(on_bad_row)):
            yield document.text[:left]
            left -= len(document.text)
            if left <= 0:
                break
