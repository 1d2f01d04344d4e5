"""Reads every domain once and writes its tokens to the store, or opens what an equal call has written."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from lesion.data.documents import BadRows, Document, OnBadRow
from lesion.data.encoding import Encoder, Tokenizer, tokenizer_name
from lesion.data.hub import HubText
from lesion.data.sources import Domain
from lesion.data.store import FORMAT, META, StoredTokens, new_store, open_store
from lesion.errors import InputError

DOCUMENTS_AT_ONCE = 64


@dataclass(frozen=True)
class Plan:
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
        """Name of the store: SHA-256 over the plan and what the sources say they are."""
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


def stored_tokens(
    domains: tuple[Domain, ...], encoder: Encoder, plan: Plan, vocabulary_size: int | None, store: Path
) -> StoredTokens:
    """The tokens of the domains: as stored under the plan and the sources' identities, else read and stored now.

    Datasets of the hub are read at the commit that they are at now. Where the hub does not say, what was stored last
    is taken, and a note says so.

    Raises:
        InputError: data that cannot be read or holds no document, ids that the model does not know, a cache that
            cannot be written.
    """
    identities = [domain.source.identity() for domain in domains]
    key = plan.key(identities)
    name, revisions = key, {}
    if any(isinstance(domain.source, HubText) for domain in domains):
        try:
            revisions = _revisions(domains)
        except InputError as error:
            if (latest := _latest(store, key)) is None:
                raise
            return _checked(_noted(latest, str(error)), encoder, vocabulary_size)
        if not revisions and (latest := _latest(store, key)) is not None:
            return _checked(_noted(latest, "HF_HUB_OFFLINE is set"), encoder, vocabulary_size)
        name = f"{key}-{hashlib.sha256(json.dumps(revisions, sort_keys=True).encode()).hexdigest()[:12]}"
    found = open_store(store / name)
    if found is None:
        _write(domains, identities, encoder, plan, vocabulary_size, store / name, revisions)
        found = open_store(store / name)
    if found is None:
        raise InputError(f"the token cache {store / name} was damaged while it was written; check the disk")
    return _checked(found, encoder, vocabulary_size)


def _revisions(domains: tuple[Domain, ...]) -> dict[str, str]:
    """The commits of the domains that come from the hub; empty where it must not be asked."""
    sources = {domain.name: domain.source for domain in domains if isinstance(domain.source, HubText)}
    found = {name: source.revision() for name, source in sources.items()}
    return {name: revision for name, revision in found.items() if revision is not None}


def _latest(store: Path, key: str) -> StoredTokens | None:
    """What was stored last under a key, whatever commit it was of."""
    metas = sorted(store.glob(f"{key}*/{META}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return next((found for path in metas if (found := open_store(path.parent)) is not None), None)


def _noted(stored: StoredTokens, reason: str) -> StoredTokens:
    commits = ", ".join(f"{name} at {commit[:12]}" for name, commit in stored.description.get("revisions", {}).items())
    note = f"the hub was not asked, what was read before is used{f' ({commits})' if commits else ''}: {reason}"
    return replace(stored, description={**stored.description, "notes": [note]})


def _checked(stored: StoredTokens, encoder: Encoder, vocabulary_size: int | None) -> StoredTokens:
    check_ids(stored.largest_id, encoder.tokenizer, vocabulary_size)
    return stored


def _write(
    domains: tuple[Domain, ...],
    identities: list[object],
    encoder: Encoder,
    plan: Plan,
    vocabulary_size: int | None,
    folder: Path,
    revisions: dict[str, str],
) -> None:
    """Reads every domain and makes a store of it."""
    largest_id = max({*encoder.tokenizer.get_vocab().values(), *encoder.special})
    dtype = np.dtype("<u2" if largest_id < 1 << 16 else "<u4")
    with new_store(folder, dtype) as writer:
        counts = {}
        for index, domain in enumerate(domains):
            counts[domain.name] = _Counts()
            for ids in _sequences(domain, encoder, plan, _share(plan.tokens, index, len(domains)), counts[domain.name]):
                writer.append(ids, index)
                check_ids(writer.largest_id, encoder.tokenizer, vocabulary_size)
        if [domain.source.identity() for domain in domains] != identities:
            raise InputError("files changed while they were read; run the command again when nothing writes to them")
        description = {
            **asdict(plan),
            "n_cut": sum(count.n_cut for count in counts.values()),
            "domains": {name: asdict(count) for name, count in counts.items()},
            **({"revisions": revisions} if revisions else {}),
        }
        writer.finish([domain.name for domain in domains], description)


def check_ids(largest_id: int, tokenizer: Tokenizer, vocabulary_size: int | None) -> None:
    """Refuses ids that the model has no embedding for.

    Raises:
        InputError: `largest_id` is not below `vocabulary_size`.
    """
    if vocabulary_size is not None and largest_id >= vocabulary_size:
        raise InputError(
            f"the data holds token id {largest_id}, but the model knows only {vocabulary_size} ids; the tokenizer "
            f"{tokenizer_name(tokenizer)} has {len(tokenizer)}: is it this model's?"
        )


def _share(tokens: int | None, index: int, n_domains: int) -> int | None:
    """What one domain gets of the budget; the first ones get what does not divide."""
    return None if tokens is None else tokens // n_domains + (index < tokens % n_domains)


def _sequences(
    domain: Domain, encoder: Encoder, plan: Plan, budget: int | None, counts: _Counts
) -> Iterator[list[int]]:
    """The sequences of one domain until they hold the budget, counted on the way."""
    bad_rows = BadRows(plan.on_bad_row)
    if plan.pack and budget is not None:
        budget = math.ceil(budget / plan.context) * plan.context
    sequences = _encoded(domain.source.documents(bad_rows), encoder, budget, counts)
    for ids in _packed(sequences, plan.context, budget, counts) if plan.pack else sequences:
        counts.n_documents += 1
        counts.n_tokens += len(ids)
        yield ids
    counts.n_bad_rows = bad_rows.count
    if counts.n_documents == 0:
        found = f"{counts.n_skipped_empty} blank or shorter than two tokens, {counts.n_bad_rows} bad"
        if plan.pack:
            found += f", {counts.n_tokens_dropped} tokens that do not fill a sequence of {plan.context}"
        raise InputError(f"'{domain.spec}' holds no document to run on; found {found}; give --data that holds text")


def _encoded(
    documents: Iterator[Document], encoder: Encoder, budget: int | None, counts: _Counts
) -> Iterator[list[int]]:
    """Token ids of the documents that have any to predict, the last one whole."""
    produced = 0
    while budget is None or produced < budget:
        chunk = list(_needed(documents, encoder, None if budget is None else budget - produced))
        if not chunk:
            return
        texts = [document.text for document in chunk if document.text.strip()]
        counts.n_skipped_empty += len(chunk) - len(texts)
        for encoded in encoder.encode(texts) if texts else []:
            if budget is not None and produced >= budget:
                return
            if not encoded.usable:
                counts.n_skipped_empty += 1
                continue
            counts.n_cut += encoded.cut
            produced += len(encoded.ids)
            yield encoded.ids


def _needed(documents: Iterator[Document], encoder: Encoder, room: int | None) -> Iterator[Document]:
    """The next documents to encode at once: only such as the budget is sure to need, and at least one."""
    for document in itertools.islice(documents, DOCUMENTS_AT_ONCE):
        yield document
        if room is not None:
            room -= encoder.longest(document.text)
            if room <= 0:
                return


def _packed(documents: Iterator[list[int]], context: int, budget: int | None, counts: _Counts) -> Iterator[list[int]]:
    """Documents joined into sequences of exactly `context` tokens; what is left over is dropped and counted."""
    buffer: list[int] = []
    produced = 0
    for ids in documents:
        buffer += ids
        whole = len(buffer) // context * context
        if budget is not None:
            whole = min(whole, budget - produced)
        for start in range(0, whole, context):
            yield buffer[start : start + context]
        produced += whole
        del buffer[:whole]
    counts.n_tokens_dropped = len(buffer)
