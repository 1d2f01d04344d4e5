"""The grammar of DATA: what a user writes, and the source of documents that it means."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lesion.data.documents import Source, expanded, shown_name
from lesion.data.files import Files, is_glob, match
from lesion.data.hub import HubText, parse_hub_spec
from lesion.data.stdlib import StandardLibrary
from lesion.errors import InputError

NAMED = re.compile(r"(?P<name>[\w.:+-]+)=(?P<data>.*)", re.DOTALL)
STDLIB = {
    "stdlib": StandardLibrary(("code", "prose")),
    "stdlib:code": StandardLibrary(("code",)),
    "stdlib:prose": StandardLibrary(("prose",)),
}


@dataclass(frozen=True)
class Domain:
    """One named domain: what was written for it, and where its documents come from."""

    name: str
    spec: str
    source: Source


def parse_domains(specs: str | Sequence[str]) -> tuple[Domain, ...]:
    """Turns DATA, or several `name=DATA`, into domains.

    Raises:
        InputError: nothing given, two domains of one name, or a DATA that means nothing here.
    """
    written = [specs] if isinstance(specs, str) else list(specs)
    if not written:
        raise InputError("no data given; --data takes stdlib, a path, a glob, or hf:ID")
    domains = tuple(_parse_domain(spec) for spec in written)
    for index, domain in enumerate(domains):
        if domain.name in {earlier.name for earlier in domains[:index]}:
            raise InputError(f"two domains are named '{domain.name}'; give them names of their own: name={domain.spec}")
    return domains


def split_name(spec: str) -> tuple[str | None, str]:
    """Takes `name=DATA` apart; a path that exists is never taken apart, whatever its name."""
    named = NAMED.fullmatch(spec)
    if named is None or spec.startswith("hf:") or _leads_somewhere(spec) or _leads_somewhere(_split_column(spec)[0]):
        return None, spec
    return named["name"], named["data"]


def _parse_domain(spec: str) -> Domain:
    name, data = split_name(spec)
    if not data.strip():
        raise InputError(f"'{spec}' names no data; --data takes stdlib, a path, a glob, or hf:ID")
    if data in STDLIB:
        return Domain(name or data, data, STDLIB[data])
    if data.startswith("stdlib:"):
        raise InputError(f"'{data}': stdlib has the parts stdlib:code and stdlib:prose")
    if data.startswith("hf:"):
        return Domain(name or parse_hub_spec(data).id.rpartition("/")[2], data, HubText(data))
    path, column = (data, None) if _leads_somewhere(data) else _split_column(data)
    source = Files(path, column)
    return Domain(name or _default_name(path, source), data, source)


def _split_column(data: str) -> tuple[str, str | None]:
    path, separator, column = data.rpartition("#")
    return (path, column) if separator and path and column else (data, None)


def _leads_somewhere(spec: str) -> bool:
    if "\0" in spec:
        raise InputError(f"{spec!r} holds a NUL character and cannot be a path")
    try:
        return expanded(spec).exists() or (is_glob(spec) and bool(match(spec)[1]))
    except OSError as error:  # for instance a name that is too long, or a folder that may not be read
        raise InputError(f"'{spec[:200]}' cannot be looked up: {error.strerror}") from error


def _default_name(path: str, source: Files) -> str:
    named = expanded(path)
    if named.is_file():
        return shown_name(Path(named.stem))
    return shown_name((named if named.is_dir() else source.base).resolve()) or "data"
