"""Text as a model reads it: tokenised once into a memory-mapped store."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lesion.data.building import Plan, stored_tokens
from lesion.data.documents import OnBadRow
from lesion.data.encoding import Bos, Objective, Tokenizer, build_encoder, tokenizer_fingerprint, tokenizer_name
from lesion.data.masking import build_masking
from lesion.data.sources import parse_domains
from lesion.data.store import cache_folder
from lesion.data.text import TextData
from lesion.errors import InputError


def load_text(
    specs: str | Sequence[str],
    tokenizer: Tokenizer,
    *,
    context: int,
    tokens: int | None = None,
    bos: Bos = "auto",
    pack: bool = False,
    on_bad_row: OnBadRow = "fail",
    objective: Objective = "causal",
    seed: int = 0,
    vocabulary_size: int | None = None,
    cache: Path | None = None,
) -> TextData:
    """Reads and tokenises text once; the same call again opens what was stored, after checking its hash.

    Args:
        specs: one DATA or several `name=DATA`: `stdlib[:code|:prose]`, a file, folder or glob with an optional
            `#COLUMN`, `hf:ID[:CONFIG][@SPLIT][#COLUMN]`.
        tokenizer: a `transformers` tokenizer.
        context: most tokens in a sequence, special ones included; a document is cut there.
        tokens: how many tokens in all, split evenly over the domains; the last document of each is taken whole.
            None takes everything.
        bos: `auto` puts the tokenizer's BOS in front where it has one and does not add it itself, `always` insists
            on it, `never` takes it away.
        pack: join documents into sequences of exactly `context` tokens instead.
        on_bad_row: stop at a row that cannot be used, or skip and count it.
        objective: `masked` keeps the tokenizer's own first and last tokens and asks about hidden ones.
        seed: of the masking.
        vocabulary_size: how many ids the model knows; a larger one is an error.
        cache: folder for the store; default `LESION_CACHE`, else `~/.cache/lesion`.

    Raises:
        InputError: data or options that cannot be used; the message names the file, line or row.
    """
    domains = parse_domains(specs)
    if seed < 0:
        raise InputError(f"seed {seed} is negative; give 0 or more")
    if tokens is not None and tokens < len(domains):
        raise InputError(f"{tokens} tokens cannot be split over {len(domains)} domains; ask for more")
    encoder = build_encoder(tokenizer, objective=objective, context=context, bos=bos, pack=pack)
    masking = None
    if objective == "masked":
        masking = build_masking(tokenizer, seed=seed, vocabulary_size=vocabulary_size)
    plan = Plan(
        specs=[(domain.name, domain.spec) for domain in domains],
        tokenizer=tokenizer_name(tokenizer),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        prefix=list(encoder.prefix),
        suffix=list(encoder.suffix),
        objective=objective,
        context=context,
        tokens=tokens,
        bos=bos,
        pack=pack,
        on_bad_row=on_bad_row,
    )
    stored = stored_tokens(domains, encoder, plan, vocabulary_size, cache_folder(cache) / "tokens")
    pad_id = tokenizer.pad_token_id
    if pad_id is None or (vocabulary_size is not None and pad_id >= vocabulary_size):
        pad_id = 0  # an id the model knows: it is never looked at
    return TextData(
        domains=tuple(domain.name for domain in domains),
        domain_of=stored.domain_of,
        lengths=np.diff(stored.offsets),
        objective=objective,
        context=context,
        fingerprint=masking.fingerprint(stored.fingerprint) if masking else stored.fingerprint,
        description={**stored.description, "seed": seed},
        pad_id=int(pad_id),
        _ids=stored.ids,
        _offsets=stored.offsets,
        _masking=masking,
    )
