"""Text as a model reads it: tokenised once into a memory-mapped store, then served in batches."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Integer

from lesion.data.batches import NO_TARGET, Batch
from lesion.data.documents import BadRows, Document, OnBadRow
from lesion.data.encoding import (
    Bos,
    Encoder,
    Objective,
    Tokenizer,
    build_encoder,
    tokenizer_fingerprint,
    tokenizer_name,
)
from lesion.data.masking import Masking, build_masking
from lesion.data.sources import Domain, parse_domains
from lesion.data.store import FORMAT, StoredTokens, TokenWriter, cache_folder, new_store, open_store
from lesion.errors import InputError

DOCUMENTS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class TextData:
    """Tokenised documents, each one sequence.

    Attributes:
        domains: names of the domains.
        domain_of: index of each document's domain.
        lengths: tokens of each document, special ones included.
        objective: `causal` (predict the next token) or `masked` (predict what was hidden).
        context: most tokens in a sequence.
        fingerprint: SHA-256 over the token ids, the documents' bounds and the domains.
        description: what was read and how, for the run's manifest; JSON can hold it.
        pad_id: what fills a batch on the right.
    """

    domains: tuple[str, ...]
    domain_of: Int[np.ndarray, "document"]
    lengths: Int[np.ndarray, "document"]
    objective: Objective
    context: int
    fingerprint: str
    description: dict[str, Any]
    pad_id: int
    _ids: Integer[np.ndarray, "id"]
    _offsets: Int[np.ndarray, "boundary"]
    _masking: Masking | None

    @property
    def n_documents(self) -> int:
        """How many documents (packed: sequences)."""
        return int(self.lengths.size)

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents together, special ones included."""
        return int(self._offsets[-1])

    def document(self, index: int) -> Int[np.ndarray, "token"]:
        """Token ids of one document, as they were before any masking.

        Raises:
            InputError: there is no such document.
        """
        if not 0 <= index < self.n_documents:
            raise InputError(f"there is no document {index}; the data has {self.n_documents}, counted from 0")
        return self._ids[self._offsets[index] : self._offsets[index + 1]].astype(np.int64)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Documents as one batch, in the order given, padded on the right to the longest.

        Causal: the target of position t is the token at t + 1, and every position that has one counts.
        Masked: the chosen positions count; `ids` hold what the model sees, `targets` what stood there.

        Raises:
            InputError: no indices, or one that is out of range.
        """
        if len(indices) == 0:
            raise InputError("a batch needs at least one document")
        rows = [self.document(int(index)) for index in indices]
        lengths = torch.tensor([row.size for row in rows])
        shape = (len(rows), int(lengths.max()))
        ids = torch.full(shape, self.pad_id)
        targets = torch.full(shape, NO_TARGET)
        for row, (index, original) in enumerate(zip(indices, rows, strict=True)):
            seen = original
            if self._masking is None:
                targets[row, : original.size - 1] = torch.from_numpy(original[1:])
            else:
                seen, chosen = self._masking.corrupt(original, int(index))
                targets[row, chosen] = torch.from_numpy(original[chosen])
            ids[row, : original.size] = torch.from_numpy(seen)
        mask = (torch.arange(shape[1]) < lengths[:, None]).to(torch.int64)
        return Batch(
            ids=ids,
            pixels=None,
            mask=None if bool(mask.all()) else mask,
            keep=targets != NO_TARGET,
            targets=targets,
            documents=torch.tensor([int(index) for index in indices]),
            domains=torch.from_numpy(self.domain_of[list(indices)]),
        )


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
    plan = _Plan(
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
    stored = _stored(domains, encoder, plan, vocabulary_size, cache_folder(cache) / "tokens")
    _check_ids(stored.largest_id, tokenizer, vocabulary_size)
    pad_id = tokenizer.pad_token_id
    if pad_id is None or (vocabulary_size is not None and pad_id >= vocabulary_size):
        pad_id = 0  # an id the model knows: it is never looked at
    return TextData(
        domains=tuple(domain.name for domain in domains),
        domain_of=stored.domain_of,
        lengths=np.diff(stored.offsets),
        objective=objective,
        context=context,
        fingerprint=stored.fingerprint,
        description={**stored.description, "seed": seed},
        pad_id=int(pad_id),
        _ids=stored.ids,
        _offsets=stored.offsets,
        _masking=masking,
    )


@dataclass(frozen=True)
class _Plan:
    """What decides the content of a store, besides the sources."""

    specs: list[tuple[str, str]]
    tokenizer: str
    tokenizer_fingerprint: str
    prefix: list[int]
    suffix: list[int]
    objective: str
    context: int
    tokens: int | None
    bos: str
    pack: bool
    on_bad_row: OnBadRow

    def key(self, identities: list[object]) -> str:
        content = {"format": FORMAT, "identities": identities, **asdict(self)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


@dataclass
class _Counts:
    """What became of the documents of one domain."""

    n_documents: int = 0
    n_tokens: int = 0
    n_skipped_empty: int = 0
    n_bad_rows: int = 0
    n_cut: int = 0
    n_tokens_dropped: int = 0


def _stored(
    domains: tuple[Domain, ...], encoder: Encoder, plan: _Plan, vocabulary_size: int | None, store: Path
) -> StoredTokens:
    identities = [domain.source.identity() for domain in domains]
    folder = store / plan.key(identities)
    found = open_store(folder)
    if found is not None:
        return found
    ids = encoder.tokenizer.get_vocab().values()
    dtype = np.dtype("<u2" if max(*ids, *encoder.special, 0) < 1 << 16 else "<u4")
    with new_store(folder, dtype) as writer:
        counts = {}
        for index, domain in enumerate(domains):
            share = None if plan.tokens is None else plan.tokens // len(domains) + (index < plan.tokens % len(domains))
            counts[domain.name] = _write_domain(writer, index, domain, encoder, share, plan.on_bad_row)
            _check_ids(writer.largest_id, encoder.tokenizer, vocabulary_size)
        if [domain.source.identity() for domain in domains] != identities:
            raise InputError("files changed while they were read; run the command again when nothing writes to them")
        description = {
            **asdict(plan),
            "n_cut": sum(count.n_cut for count in counts.values()),
            "domains": {name: asdict(count) for name, count in counts.items()},
        }
        writer.finish([domain.name for domain in domains], description)
    written = open_store(folder)
    if written is None:
        raise InputError(f"the token cache {folder} was damaged while it was written; check the disk, or LESION_CACHE")
    return written


def _write_domain(
    writer: TokenWriter, index: int, domain: Domain, encoder: Encoder, budget: int | None, on_bad_row: OnBadRow
) -> _Counts:
    bad_rows = BadRows(on_bad_row)
    counts = _Counts()
    documents = domain.source.documents(bad_rows)
    buffer: list[int] = []  # packing: what does not fill a sequence yet
    while budget is None or counts.n_tokens < budget:
        room = None if budget is None else budget - counts.n_tokens - len(buffer)
        chunk = list(_needed(documents, encoder, room))
        if not chunk:
            break
        texts = [document.text for document in chunk if document.text.strip()]
        counts.n_skipped_empty += len(chunk) - len(texts)
        for encoded in encoder.encode(texts) if texts else ():
            if not encoded.usable:
                counts.n_skipped_empty += 1
                continue
            counts.n_cut += encoded.cut
            sequences = [encoded.ids]
            if encoder.pack:
                buffer += encoded.ids
                whole = len(buffer) - len(buffer) % encoder.context
                sequences = [buffer[start : start + encoder.context] for start in range(0, whole, encoder.context)]
                del buffer[:whole]
            for ids in sequences:
                if budget is None or counts.n_tokens < budget:
                    writer.append(ids, index)
                    counts.n_documents += 1
                    counts.n_tokens += len(ids)
                else:
                    counts.n_tokens_dropped += len(ids)
    counts.n_bad_rows = bad_rows.count
    counts.n_tokens_dropped += len(buffer)
    if counts.n_documents == 0:
        raise InputError(
            f"'{domain.spec}' holds no document to run on: {counts.n_skipped_empty} were blank or shorter than two "
            f"tokens, {counts.n_bad_rows} could not be read, {counts.n_tokens_dropped} tokens did not fill a sequence"
        )
    return counts


def _needed(documents: Iterator[Document], encoder: Encoder, room: int | None) -> Iterator[Document]:
    """The next documents to encode at once: only such as the budget is sure to need, and at least one."""
    for document in itertools.islice(documents, DOCUMENTS_AT_ONCE):
        yield document
        if room is not None:
            room -= encoder.longest(document.text)
            if room <= 0:
                return


def _check_ids(largest_id: int, tokenizer: Tokenizer, vocabulary_size: int | None) -> None:
    if vocabulary_size is not None and largest_id >= vocabulary_size:
        raise InputError(
            f"the data holds token id {largest_id}, but the model knows only {vocabulary_size} ids; the tokenizer "
            f"{tokenizer_name(tokenizer)} has {len(tokenizer)}: is it this model's?"
        )
