"""The manifest `run.json`: read with its schema checked, written in one canonical form."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lesion.errors import RunFolderError
from lesion.results.atomic import write_bytes
from lesion.results.canonical import canonical_json, normalised

SCHEMA = 1
STATUSES = ("running", "complete", "partial", "failed")


def read(path: Path) -> dict[str, Any]:
    """The manifest at `path`.

    Raises:
        RunFolderError: it is damaged, or was written under another schema.
    """
    advice = "pass --overwrite to start again, or another --out"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged ({error}); {advice}") from error
    if not isinstance(found, dict) or "schema" not in found:
        raise RunFolderError(f"{path} is damaged (not a lesion manifest); {advice}")
    if found["schema"] != SCHEMA:
        raise RunFolderError(f"{path} has schema {found['schema']!r}, this lesion reads {SCHEMA}; {advice}")
    missing = [key for key in ("identity", "status", "tables", "arrays") if key not in found]
    wrong = [key for key in ("identity", "tables", "arrays") if not isinstance(found.get(key), dict)]
    if missing or wrong or found["status"] not in STATUSES:
        raise RunFolderError(f"{path} is damaged (fields: {', '.join(missing or wrong or ['status'])}); {advice}")
    return found


def write(path: Path, manifest: Mapping[str, object]) -> None:
    """Writes the manifest atomically."""
    write_bytes(path, (canonical_json(manifest, indent=2) + "\n").encode("utf-8", "backslashreplace"))


def fresh(identity: Mapping[str, object], fields: Mapping[str, object]) -> dict[str, Any]:
    """A new manifest: `fields` of the caller, and those that the run folder keeps itself."""
    own = {
        "schema": SCHEMA,
        "identity": identity,
        "status": "running",
        "started": now(),
        "finished": None,
        "plan": None,
        "tables": {},
        "arrays": {},
        "shards": {},
    }
    return normalised({**fields, **own})


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
