"""What training starts from: a model, new or stored, and data read as it reads."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from jaxtyping import Int
from transformers import AutoTokenizer, set_seed

from lesion.anatomy import Model, adopt, load
from lesion.anatomy.anatomy import Anatomy, refuse_packed
from lesion.anatomy.source import PATTERNS, ZOO, resolve
from lesion.anatomy.wording import first_line, quiet_transformers
from lesion.data import ImageData, TextData, load_images, load_text
from lesion.data.documents import expanded
from lesion.data.pictures import DIGITS
from lesion.data.sources import split_name
from lesion.data.vocabulary import train_tokenizer
from lesion.errors import InputError, ModelError
from lesion.studies.setting import Reading, left_out, open_data
from lesion.studies.training.configurations import Architecture, architecture

Data = TextData | ImageData
Specs = str | Sequence[str]


@dataclass(frozen=True)
class Start:
    """What training starts from.

    Attributes:
        model: in float32, on the CPU.
        beside: tokenizer or image processor, stored with every model; None where there is none.
        data: text in full contexts, or labelled images.
        warnings: what a reader of the run must know, a line each.
    """

    model: Model
    beside: Any
    data: Data
    warnings: tuple[str, ...]


def from_nothing(
    config: str, data: Specs, tokenizer: str | Path | None, vocabulary: int | None, reading: Reading, seed: int
) -> Start:
    """A small architecture with random weights; the same seed gives the same ones.

    Raises:
        InputError: options or data that do not fit the architecture.
    """
    kind = architecture(config)
    if kind.reads_images:
        return _picture_model(config, kind, data, tokenizer, vocabulary, reading, seed)
    context, size = reading.context or kind.context, vocabulary or kind.vocabulary
    words = _tokenizer(data, tokenizer, vocabulary, size, max(context, kind.context), reading)
    text = load_text(
        data,
        words,
        context=context,
        tokens=reading.tokens,
        bos=reading.bos,
        pack=True,
        on_bad_row=reading.on_bad_row,
        seed=seed,
    )
    notes = left_out(text)
    if tokenizer is None and len(words) < size:
        notes.append(f"the data give only {len(words)} ids of the {size} that were asked for: there is too little text")
    set_seed(seed)
    model = kind.build(len(words), max(context, kind.context), words)
    return Start(adopt(model, words, name=config), words, text, tuple(notes))


def from_model(name: str, data: Specs, reading: Reading, seed: int, *, allow_pickle: bool = False) -> Start:
    """A stored model, widened to float32 exactly.

    Raises:
        ModelError: it cannot be loaded, is packed, or has no room in memory.
        InputError: it is a masked model, or the data do not fit it.
    """
    found = load(name, device="cpu", dtype="float32", allow_pickle=allow_pickle)
    anatomy = found.anatomy
    refuse_packed(anatomy, "training")
    if found.streamed is not None:
        raise ModelError(f"{name} does not fit into memory; training takes 16 bytes a weight, and activations")
    if anatomy.objective == "masked":
        raise InputError(f"{name} is a masked model; causal models and image classifiers can be trained")
    is_text = anatomy.objective == "causal"
    read = open_data(data, found, replace(reading, pack=is_text), seed=seed)
    if isinstance(read, ImageData):
        _refuse_without_labels(read)
    notes = [*left_out(read), *_without_positions(anatomy)]
    return Start(found, found.tokenizer if is_text else found.image_processor, read, tuple(notes))


def _tokenizer(
    data: Specs, given: str | Path | None, vocabulary: int | None, size: int, context: int, reading: Reading
) -> Any:
    if given is None:
        return train_tokenizer(data, size, context=context, on_bad_row=reading.on_bad_row)
    if vocabulary is not None:
        raise InputError(f"--vocabulary {vocabulary} is of a tokenizer trained on the data; --tokenizer has its own")
    folder = _tokenizer_folder(str(given))
    with quiet_transformers():
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise InputError(f"--tokenizer {given} cannot be loaded: {first_line(error)}") from None


def _tokenizer_folder(name: str) -> Path:
    """As `resolve`, but without the weights of a model on the hub."""
    if name.startswith((ZOO, ".", "/", "~")) or name.count("/") > 1 or Path(name).exists():
        return resolve(name)
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=PATTERNS))
    except (OSError, ValueError) as error:  # the hub's own errors are of these kinds
        raise InputError(f"--tokenizer {name} cannot be fetched from the hub: {type(error).__name__}") from None


def _picture_model(
    config: str,
    kind: Architecture,
    data: Specs,
    tokenizer: str | Path | None,
    vocabulary: int | None,
    reading: Reading,
    seed: int,
) -> Start:
    plain = Reading(tokens=reading.tokens, pack=reading.pack)
    given = [name for name, value in asdict(reading).items() if value != getattr(plain, name)]
    given += [name for name, value in (("tokenizer", tokenizer), ("vocabulary", vocabulary)) if value is not None]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"{options}: for text only; {config} reads images")
    specs = [data] if isinstance(data, str) else list(data)
    if len(specs) != 1 or specs == ["stdlib"]:
        raise InputError(f"{config} reads images, from one source; give --data digits, a folder of images, or hf:ID")
    images = load_images(
        specs[0],
        size=kind.context,
        channels=1,
        n_images=reading.tokens,
        seed=seed,
        id2label=_folders(specs[0]),
    )
    _refuse_without_labels(images)
    names = dict(zip(images.description["labels"], images.description["classes"], strict=True))
    set_seed(seed)
    model = kind.build(images.largest_label + 1, kind.context, names)
    return Start(adopt(model, None, name=config), None, images, tuple(left_out(images)))


def _folders(spec: str) -> dict[int, str] | None:
    """Names of the classes, where they are folders: 0, 1, … in sorted order."""
    data = split_name(spec)[1]
    if data in DIGITS or data.startswith("hf:") or not expanded(data).is_dir():
        return None
    folders = sorted(path for path in expanded(data).iterdir() if path.is_dir() and not path.name.startswith("."))
    return {label: path.name for label, path in enumerate(folders)} or None


def _refuse_without_labels(images: ImageData) -> None:
    if images.largest_label < 0:
        raise InputError("these images have no labels to train on; give a folder with a folder a class, or digits")


def _without_positions(anatomy: Anatomy) -> list[str]:
    """Keeps a table of positions that is zero as it is: a model without positions would otherwise learn some."""
    path = anatomy.family.positions
    if path is None:
        return []
    tables = [one for name, one in anatomy.model.named_parameters() if name in (path, f"{path}.weight")]
    if not tables or bool(torch.count_nonzero(tables[0])):
        return []
    tables[0].requires_grad_(False)
    return ["the table of positions is all zeros and stays so: the model has no positions"]


def split(
    domain_of: Int[np.ndarray, "document"], domains: Sequence[str], share: float, *, gap: int
) -> tuple[list[int], list[int], list[str]]:
    """Numbers of the sequences (or images) to train on and of those held out, the last ones of each domain.

    Args:
        domain_of: index of each sequence's domain in `domains`.
        share: part of each domain that is held out, rounded to whole sequences.
        gap: sequences between the two parts that belong to neither, because a document goes on from one to the next.

    Returns:
        Both, rising, and a line for each domain that is missing from one of them.

    Raises:
        InputError: there is nothing to train on, or nothing to hold out though something was asked for.
    """
    trained, held_out, notes = [], [], []
    for domain, name in enumerate(domains):
        own = np.flatnonzero(domain_of == domain)
        n_held_out = round(share * own.size)
        trained.append(own[: max(0, own.size - n_held_out - (gap if n_held_out else 0))])
        held_out.append(own[own.size - n_held_out :])
        if own.size and not trained[-1].size:
            notes.append(f"{name}: its {own.size} sequences leave none to train on")
        if share and own.size and not n_held_out:
            notes.append(f"{name}: of its {own.size} sequences none is held out")
    ours, theirs = (np.concatenate(parts).tolist() for parts in (trained, held_out))
    if share and not theirs:
        raise InputError(f"--held-out {share} of {domain_of.size} sequences is none; give more data, or --held-out 0")
    if not ours:
        raise InputError(f"{domain_of.size} sequences leave none to train on; give more data or a smaller --held-out")
    return ours, theirs, notes
