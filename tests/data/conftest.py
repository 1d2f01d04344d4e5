"""Word tokenizers small enough that the expected ids can be written by hand."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["[UNK]", "<s>", "</s>", "[PAD]", "a", "b", "c", "d", "e", "f"]
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


def backend(words):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@pytest.fixture
def no_bos():
    """a=4 ... f=9; no BOS token at all."""
    return PreTrainedTokenizerFast(tokenizer_object=backend(WORDS), unk_token="[UNK]", pad_token="[PAD]")


@pytest.fixture
def silent_bos():
    """As `no_bos`, with <s>=1 for BOS, which it does not add (as GPT-2's)."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend(WORDS), unk_token="[UNK]", bos_token="<s>", model_max_length=4
    )


@pytest.fixture
def adds_bos():
    """As `silent_bos`, but it adds <s>=1 itself (as LLaMA's)."""
    tokenizer = backend(WORDS)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", bos_token="<s>")


@pytest.fixture
def adds_both():
    """Adds <s>=1 in front and </s>=2 behind."""
    tokenizer = backend(WORDS)
    special = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", bos_token="<s>", eos_token="</s>")


@pytest.fixture
def bert():
    """[PAD]=0, [UNK]=1, [CLS]=2, [SEP]=3, [MASK]=4, a=5 ... z=30."""
    tokenizer = backend(BERT_WORDS)
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")
