"""From text to token ids: which special tokens stand where, and where a long document is cut."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lesion.errors import InputError

Tokenizer = Any  # a transformers PreTrainedTokenizerBase; transformers is not imported for its name
Bos = Literal["auto", "always", "never"]
Objective = Literal["causal", "masked"]
PROBE = "a b c"
CHARACTERS_PER_TOKEN = 16  # read at first of a document that will be cut; more where that turns out to be too few


@dataclass(frozen=True)
class Encoded:
    """Token ids of one document.

    Attributes:
        ids: with special tokens, at most `context` of them (packing: all).
        cut: whether text was left out.
        usable: whether there is anything to predict.
    """

    ids: list[int]
    cut: bool
    usable: bool


@dataclass(frozen=True)
class Encoder:
    """Turns texts into sequences: `prefix`, text, `suffix`, cut at `context` tokens.

    A causal sequence loses its end, suffix included; a masked one keeps its suffix and loses text before it.
    """

    tokenizer: Tokenizer
    objective: Objective
    context: int
    pack: bool
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    special: frozenset[int]

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encodes each text by itself."""
        return [self._assemble(body) for body in self._bodies(list(texts))]

    def longest(self, text: str) -> int:
        """A bound on the tokens that a text gives: a token covers at least a byte in nearly every tokenizer."""
        tokens = len(self.prefix) + len(text.encode("utf-8")) + len(self.suffix)
        return tokens if self.pack else min(self.context, tokens)

    def _bodies(self, texts: list[str]) -> list[list[int]]:
        if self.pack:
            return tokenize(self.tokenizer, texts)
        # Only the start of a long text is needed. Twice as many tokens as are kept must come of what is read, so that
        # the place where reading stopped has no effect on them.
        room = CHARACTERS_PER_TOKEN * self.context
        bodies = tokenize(self.tokenizer, [text[:room] for text in texts])
        while short := [i for i, ids in enumerate(bodies) if len(texts[i]) > room and len(ids) < 2 * self.context]:
            room *= 8
            for i, ids in zip(short, tokenize(self.tokenizer, [texts[i][:room] for i in short]), strict=True):
                bodies[i] = ids
        return bodies

    def _assemble(self, body: list[int]) -> Encoded:
        if self.objective == "masked":
            room = self.context - len(self.prefix) - len(self.suffix)
            ids = [*self.prefix, *body[:room], *self.suffix]
            return Encoded(ids, len(body) > room, any(i not in self.special for i in body[:room]))
        ids = [*self.prefix, *body, *self.suffix]
        if self.pack:
            return Encoded(ids, False, bool(body))
        cut = len(self.prefix) + len(body) > self.context
        return Encoded(ids[: self.context], cut, bool(body) and len(ids) >= 2)


def build_encoder(tokenizer: Tokenizer, *, objective: Objective, context: int, bos: Bos, pack: bool) -> Encoder:
    """Asks the tokenizer which special tokens it adds, and adds or strips its BOS as told.

    Raises:
        InputError: options that exclude each other, no BOS where one is asked for, too small a context.
    """
    prefix, suffix = special_tokens(tokenizer)
    if objective == "masked":
        if pack:
            raise InputError("packing is for causal models: a masked model's sequence has its own first and last token")
        if bos != "auto":
            raise InputError(f"bos='{bos}' is for causal models; a masked model keeps its tokenizer's special tokens")
    else:
        prefix = _with_bos(prefix, tokenizer, bos)
    needed = len(prefix) + 1 + (len(suffix) if objective == "masked" else 0)
    if context < max(2, needed):
        raise InputError(f"context {context} leaves no room for text; this tokenizer needs at least {max(2, needed)}")
    special = frozenset(int(i) for i in tokenizer.all_special_ids)
    return Encoder(tokenizer, objective, context, pack, prefix, suffix, special)


def _with_bos(prefix: tuple[int, ...], tokenizer: Tokenizer, bos: Bos) -> tuple[int, ...]:
    bos_id = tokenizer.bos_token_id
    if bos_id is None:
        if bos == "always":
            raise InputError(
                f"bos='always', but the tokenizer {tokenizer_name(tokenizer)} has no BOS token; use 'auto'"
            )
        return prefix
    if bos == "never":
        return tuple(i for i in prefix if i != bos_id)
    return prefix if bos_id in prefix else (bos_id, *prefix)


def special_tokens(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer itself puts before and after a text, found by trying.

    Raises:
        InputError: it changes the text between them.
    """
    bare = tokenize(tokenizer, [PROBE])[0]
    full = tokenize(tokenizer, [PROBE], add_special_tokens=True)[0]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    raise InputError(f"the tokenizer {tokenizer_name(tokenizer)} encodes a text otherwise when it adds special tokens")


def tokenize(tokenizer: Tokenizer, texts: list[str], add_special_tokens: bool = False) -> list[list[int]]:
    """Token ids of each text, not cut; `verbose=False` silences the warning about long sequences."""
    encoded = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def tokenizer_name(tokenizer: Tokenizer) -> str:
    """Where the tokenizer was loaded from, else the name of its class."""
    return str(tokenizer.name_or_path or type(tokenizer).__name__)


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 over everything that decides the ids: vocabulary, merges, normaliser, special tokens."""
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        for changed_by_use in ("truncation", "padding"):
            content.pop(changed_by_use, None)
    else:
        content = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), repr(tokenizer.init_kwargs)]
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    return hashlib.sha256(json.dumps([content, special], sort_keys=True).encode("utf-8")).hexdigest()
