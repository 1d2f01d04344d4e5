"""How a run was made: the fields of its manifest in words, as pairs of a name and a text."""

from collections.abc import Iterator, Mapping
from typing import Any

LONGEST = 1000
"""Characters of a value that are shown; `run.json` has them all."""
LONGEST_OWN_NAME = 100
NOTHING = "none"
RUN = ("status", "started", "finished", "resumed", "reason", "commit", "device", "dtype", "seeds")
FILES = ("looked_at", "names_aligned")
"""What a run found out about the checkpoints' files that it read."""
PAIR = ("base", "tuned", "masks", "checkpoints")
GROUPS = ("timings", "counts", "weights", "arguments", *PAIR, "model", "models", "data", "versions")
SIZES = (
    ("n_layers", "layers"),
    ("n_heads", "heads"),
    ("d_model", "dimensions"),
    ("vocabulary", "outputs"),
    ("n_parameters", "parameters"),
)
CHECKPOINT = {"fingerprint": "SHA-256 of the files", "model_type": "kind of model, as configured"}
NAMES = {
    "run": {
        "resumed": "times resumed",
        "commit": "commit of lesion",
        "dtype": "number format",
        "seeds": "seed",
    },
    "timings": {"images_per_second": "images a second", "tokens_per_second": "tokens a second"},
    "counts": {
        "n_documents": "documents",
        "n_held_out": "sequences held out",
        "n_images_trained": "images trained on, one seen twice counting twice",
        "n_scored": "positions that count",
        "n_sequences": "sequences to train on",
        "n_tokens": "tokens read",
        "n_tokens_trained": "tokens trained on, one seen twice counting twice",
    },
    "weights": {
        "streamed": "read from disk block by block",
        "bytes_of_blocks": "bytes of all blocks, as stored",
        "bytes_read": "bytes of blocks read by the sweep",
        "bytes_read_checking": "bytes read by the check of the model",
    },
    "arguments": {"edits": "--edit"},
    **{group: dict(CHECKPOINT) for group in PAIR},
    "files": {"looked_at": "matrices looked at", "names_aligned": "names"},
    "model": {
        "attention": "implementation of attention",
        "d_model": "width of the residual stream",
        "d_mlp": "neurons of an MLP",
        "d_z": "width of z, all heads",
        "fingerprint": "SHA-256 of configuration and weights",
        "n_heads": "heads of a layer",
        "n_kv_heads": "key and value heads",
        "n_layers": "layers",
        "n_parameters": "parameters",
        "n_positions": "longest sequence",
        "norm": "place of the norms",
        "parallel": "attention and MLP side by side",
        "vocabulary": "outputs",
    },
    "data": {
        "bos": "BOS",
        "channels": "channels of an image",
        "fingerprint": "SHA-256 of what was read",
        "labels": "labels of the classes",
        "n_bad_rows": "left out, could not be read",
        "n_cut": "cut at the context",
        "n_documents": "documents",
        "n_images": "images",
        "n_labelled": "images with a label",
        "n_skipped_empty": "left out, blank or too short",
        "n_tokens": "tokens",
        "n_tokens_dropped": "tokens left over by packing",
        "on_bad_row": "rows that cannot be read",
        "pack": "packed",
        "prefix": "ids put in front",
        "processor": "image processor",
        "revisions": "commit on the hub",
        "size": "height and width of an image",
        "specs": "read from",
        "suffix": "ids put behind",
        "tokenizer_fingerprint": "SHA-256 of the tokenizer",
        "tokens": "tokens asked for",
    },
}
"""In words, by group; what is not listed is shown with spaces for underscores."""
AS_STORED = ("configuration", "versions", "processor")
"""Names in these belong to others and are shown as they are."""


def made(manifest: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The facts of a run by group; groups that it does not have are left out."""
    yield "run", [(_name("run", key), cut(text(manifest[key]))) for key in RUN if key in manifest]
    files = {key: manifest[key] for key in FILES if manifest.get(key)}
    if files:
        yield "files", [(name, cut(value)) for name, value in _facts("files", files)]
    for group in GROUPS:
        held = manifest.get(group)
        if isinstance(held, list) and any(isinstance(item, Mapping) for item in held):
            yield group, [(name, cut(value)) for name, value in _facts(group, held)]
        if isinstance(held, Mapping):
            inner = {key: value for key, value in held.items() if key != "configuration"}
            yield group, [(name, cut(value)) for name, value in _facts(group, inner)]
            if isinstance(held.get("configuration"), Mapping):
                own = _facts("configuration", held["configuration"])
                yield "configuration of the model, as stored", [(name, cut(value)) for name, value in own]


def about_model(manifest: Mapping[str, Any]) -> str:
    """The model's kind and sizes, and what it ran on, as far as they are known."""
    model = manifest["model"]
    sizes = [(model.get(key), noun) for key, noun in SIZES]
    counted = [f"{value:,} {noun}" for value, noun in sizes if value is not None]
    kind = [str(model[key]) for key in ("family", "objective") if model.get(key)]
    place = [str(manifest[key]) for key in ("device", "dtype") if manifest.get(key)]
    return " · ".join(", ".join(part) for part in (kind, counted, place) if part)


def text(value: object) -> str:
    """A leaf of JSON, or a list of them, as a reader sees it."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(text(item) for item in value) or NOTHING
    return str(value)


def cut(shown: str, most: int = LONGEST) -> str:
    """A text, or its beginning and how long it is."""
    return shown if len(shown) <= most else f"{shown[:most]}… ({len(shown):,} characters)"


def _facts(group: str, value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            outer = (
                prefix if key == "domains" else _joined(prefix, _name(group, str(key)))
            )  # they have names themselves
            yield from _facts(group if key not in AS_STORED else key, item, outer)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value, start=1):
            named = cut(str(item.get("name", index)), LONGEST_OWN_NAME) if isinstance(item, Mapping) else index
            inner = {k: v for k, v in item.items() if k != "name"} if isinstance(item, Mapping) else item
            yield from _facts(group, inner, _joined(prefix, str(named)))
    else:
        yield prefix, "not given" if group == "arguments" and value is None else text(value)


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}: {name}" if prefix else name


def _name(group: str, key: str) -> str:
    if group in AS_STORED:
        return key
    if key in NAMES.get(group, {}):
        return NAMES[group][key]
    return f"--{key.replace('_', '-')}" if group == "arguments" else key.removeprefix("n_").replace("_", " ")
