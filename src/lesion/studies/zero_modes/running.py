"""What studies of checkpoints' files share: how their runs are recorded and found complete, and names that differ."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lesion.checkpoints.masks import Masks, mask_file
from lesion.checkpoints.opened import Checkpoint
from lesion.errors import InputError
from lesion.results import RunFolder, commit, file_digest, versions
from lesion.studies.setting import Outcome


def described(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as a manifest names it."""
    return {
        "name": checkpoint.name,
        "fingerprint": checkpoint.fingerprint,
        "model_type": checkpoint.model_type,
    }


def open_run(
    path: Path,
    *,
    study: str,
    command: str,
    arguments: Mapping[str, Any],
    reads: Mapping[str, Any],
    fields: Mapping[str, Any],
    check: Callable[[], None],
    seeds: Sequence[int] = (),
    overwrite: bool = False,
) -> RunFolder:
    """The folder of a run that looks at files only: new, or that of an earlier start of the same run.

    Args:
        arguments: everything asked that changes numbers.
        reads: fingerprints of what is read; with the study and its arguments they are the run's identity.
        fields: what else `run.json` says.
        check: raises once a file that is read is not the one that was opened.

    Raises:
        RunFolderError: the folder belongs to another run, is locked, or cannot be written.
    """
    identity = {"study": study, "arguments": dict(arguments), **reads, "lesion": versions()["lesion"]}
    manifest = {
        "study": study,
        "command": command,
        "arguments": dict(arguments),
        "versions": versions(),
        "commit": commit(),
        "device": "cpu",
        "seeds": list(seeds),
        **fields,
    }
    return RunFolder.open(path, identity=identity, manifest=manifest, overwrite=overwrite, check=check)


def complete(folder: RunFolder) -> Outcome:
    """What a run gave that had been complete already."""
    tables = {name: folder.read_table(name) for name in folder.manifest["tables"]}
    return Outcome(tables, folder.path, folder.manifest.get("warnings", []), resumed_complete=True)


def described_masks(path: str | Path, masks: Masks) -> dict[str, str]:
    """The masks as a manifest names them."""
    return {**{key: value for key, value in masks.metadata.items() if key != "shapes"}, "path": str(path)} | {
        "sha256": file_digest(mask_file(path))
    }


def own_names(places: Sequence[str | Path], given: Sequence[str | None]) -> list[str]:
    """A name for each place: the one given, or as much of the end of its path as tells it from the others.

    Raises:
        InputError: two have one name, which was given to one of them.
    """
    parts = [Path(os.path.abspath(place)).parts[1:] or ("root",) for place in places]  # noqa: PTH100  (links keep theirs)
    names = []
    for index, (name, own) in enumerate(zip(given, parts, strict=True)):
        others = [other for at, other in enumerate(parts) if at != index and given[at] is None]
        n_parts = next((n for n in range(1, len(own)) if all(own[-n:] != other[-n:] for other in others)), len(own))
        names.append(name or "/".join(own[-n_parts:]))
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two are called {name!r}; give each a name of its own, as NAME=PATH")
    return names
