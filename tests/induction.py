"""A model of GPT-2's shapes made by hand: a previous-token head, an induction head, and a head that is neither.

The residual stream has four parts: which token stands here, at which position, which token stood before, and what to
say next. MLPs are zero.

* Block 0, head 0 (previous token) copies the token before into the third part.
* Block 1, head 1 (induction) looks for positions whose third part is the token that stands here, and says their token.
* Block 1, head 0 (a decoy) attends `DISTANCE` positions back, whatever stands there, and says nothing: on a stretch of
  ten tokens that is repeated it has the induction score of a perfect head.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS, POSITIONS, HEADS = 40, 96, 2
"""Ids (0 is the BOS), positions, and heads of a block."""
WIDTH = WORDS + POSITIONS + WORDS + WORDS
WIDTH += WIDTH % HEADS
TOKEN, PLACE, BEFORE, NEXT = 0, WORDS, WORDS + POSITIONS, WORDS + POSITIONS + WORDS
"""Where the four parts begin."""
DISTANCE = 9
SHARP = 30.0
"""What a match adds to a score, at least: attention elsewhere is e^-30 of it."""
PREVIOUS, INDUCTION, DECOY = (0, 0), (1, 1), (1, 0)


def tokenizer() -> PreTrainedTokenizerFast:
    """One word a token: `<s>` is the BOS, and the words are `a1` … `a39`."""
    vocabulary = {"<s>": 0, **{f"a{number}": number for number in range(1, WORDS)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="a1"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def model() -> GPT2LMHeadModel:
    """In eval mode, float32."""
    config = GPT2Config(
        vocab_size=WORDS,
        n_positions=POSITIONS,
        n_embd=WIDTH,
        n_layer=2,
        n_head=HEADS,
        n_inner=4,
        tie_word_embeddings=False,
    )
    config._attn_implementation = "sdpa"
    made = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
        made.transformer.wte.weight[:, TOKEN : TOKEN + WORDS] = torch.eye(WORDS)
        made.transformer.wpe.weight[:, PLACE : PLACE + POSITIONS] = torch.eye(POSITIONS)
        made.lm_head.weight[:, NEXT : NEXT + WORDS] = torch.eye(WORDS)
        back = torch.diag(torch.ones(POSITIONS - 1), -1)
        _head(made, PREVIOUS, (PLACE, back), (PLACE, torch.eye(POSITIONS)), (TOKEN, BEFORE))
        _head(made, INDUCTION, (TOKEN, torch.eye(WORDS)), (BEFORE, torch.eye(WORDS)), (TOKEN, NEXT))
        far = torch.diag(torch.ones(POSITIONS - DISTANCE), -DISTANCE)
        _head(made, DECOY, (PLACE, far), (PLACE, torch.eye(POSITIONS)), None)
    return made


def _head(
    made: GPT2LMHeadModel,
    head: tuple[int, int],
    query: tuple[int, Tensor],
    key: tuple[int, Tensor],
    moves: tuple[int, int] | None,
) -> None:
    """Sets one head: query and key are a part of the stream and a map from it; `moves` copies words to another part."""
    layer, index = head
    attention, d_head = made.transformer.h[layer].attn, WIDTH // HEADS
    start = index * d_head
    for place, (part, map_) in enumerate((query, key)):
        columns = place * WIDTH + start
        attention.c_attn.weight[part : part + map_.shape[0], columns : columns + map_.shape[1]] = SHARP * map_
    if moves is None:
        return
    columns = 2 * WIDTH + start
    attention.c_attn.weight[moves[0] : moves[0] + WORDS, columns : columns + WORDS] = torch.eye(WORDS)
    attention.c_proj.weight[start : start + WORDS, moves[1] : moves[1] + WORDS] = torch.eye(WORDS)


def save(folder: Path) -> Path:
    """As `save_pretrained` leaves it."""
    tokenizer().save_pretrained(folder)
    model().save_pretrained(folder)
    return folder
