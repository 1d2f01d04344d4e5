"""JSON in one canonical form, digests of it, and what a difference between two such values is."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

_DIGEST = re.compile(r'"[0-9a-f]{64}"')


def canonical_json(value: object, *, indent: int | None = None) -> str:
    """JSON with sorted keys; numpy scalars become numbers and paths strings.

    Raises:
        TypeError: if something in `value` is neither JSON nor one of these.
        ValueError: if it holds NaN or an infinity, which JSON does not have.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators, default=_plain
    )


def digest(value: object) -> str:
    """The SHA-256, in hex, of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def normalised(value: Mapping[str, object]) -> dict[str, Any]:
    """`value` as it comes back from a file: tuples are lists, keys are strings."""
    result: dict[str, Any] = json.loads(canonical_json(value))
    return result


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """One line `key: old → new` for every leaf that differs, with dotted keys."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = sorted(before.keys() | after.keys())
    absent = "(absent)"
    shown = [(key, before.get(key, absent), after.get(key, absent)) for key in keys]
    return [f"{key}: {_short(a)} → {_short(b)}" for key, a, b in shown if a != b]


def run_name(study: str, model: str, arguments: Mapping[str, object]) -> str:
    """The folder name of a run: `<study>-<model>-<8 hex digits of the digest of its arguments>`.

    The model's name is reduced to what is behind its last slash, to letters, digits, `.`, `_` and `-`, and to its last
    60 characters: what tells models of one name apart must be among the arguments.
    """
    last = re.split(r"[/\\]+", model.rstrip("/\\"))[-1]
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", last).strip("-.")[-60:].strip("-.")
    return f"{study}-{plain or 'model'}-{digest(arguments)[:8]}"


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"not JSON: {type(value).__name__} {value!r:.80}")


def _leaves(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, canonical_json(value)


def _short(text: str) -> str:
    if _DIGEST.fullmatch(text):
        return f"{text[1:13]}…"
    return text if len(text) <= 60 else text[:57] + "…"
