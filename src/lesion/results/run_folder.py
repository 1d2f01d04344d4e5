"""A run folder as the one process that fills it sees it: locked, resumable, committed file by file."""

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import pandas as pd

from lesion.errors import RunFolderError
from lesion.results import canonical, layout
from lesion.results import manifest as manifests
from lesion.results import tables as files
from lesion.results.atomic import write_bytes
from lesion.results.lock import FolderLock
from lesion.results.manifest import SCHEMA
from lesion.results.shards import ShardStore

__all__ = ["SCHEMA", "RunFolder", "Status"]

Status = Literal["running", "complete", "partial", "failed"]
INTERRUPT = "KeyboardInterrupt: "
logger = logging.getLogger(__name__)


class RunFolder:
    """The folder of one run, held under a lock.

    Attributes:
        path: the folder.
        manifest: what `run.json` holds now; change it with `update`.
    """

    def __init__(
        self, path: Path, lock: FolderLock, manifest: dict[str, Any], check: Callable[[], None] | None
    ) -> None:
        """Use `RunFolder.open`."""
        self.path = path
        self.manifest = manifest
        self._lock = lock
        self._check = check

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        identity: Mapping[str, object],
        manifest: Mapping[str, object],
        overwrite: bool = False,
        check: Callable[[], None] | None = None,
    ) -> "RunFolder":
        """Opens a new run folder, or the one of an earlier start of the same run.

        Args:
            path: the folder; made where it does not exist.
            identity: everything that determines the numbers (study, arguments, fingerprints, version), as JSON.
            manifest: the other fields of `run.json`; a resumed run keeps those it has and takes these over them.
            overwrite: empties the folder of an earlier run first.
            check: raises if what the run reads has changed under it; called before a shard is committed, and before
                the run ends as complete.

        Raises:
            RunFolderError: the folder is a file, foreign, locked, read-only, damaged, or of another run.
        """
        folder = Path(path)
        layout.preflight(folder)
        lock = FolderLock(folder)
        try:
            layout.sweep(folder)
            run = cls(folder, lock, _opened(folder, identity, manifest, overwrite), check)
            run._say(lock.notes)
            return run
        except OSError as error:
            lock.release()
            raise RunFolderError(f"cannot use {folder}: {error.strerror or error}; pass another --out") from error
        except KeyboardInterrupt:
            with suppress(RunFolderError):
                _interrupted(folder / layout.MANIFEST)
            lock.release()
            raise
        except BaseException:
            lock.release()
            raise

    @property
    def is_complete(self) -> bool:
        """Whether the run ended complete; `open` reopens one whose tables or arrays were since lost or changed."""
        return bool(self.manifest["status"] == "complete")

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Writes `tables/<name>.parquet` (without the index) and records its rows, columns and digest."""
        self._record("tables", name, files.write_table(self.path, name, table))

    def read_table(self, name: str) -> pd.DataFrame:
        """Reads a recorded table back; raises `RunFolderError` where it is not what was written."""
        return files.read_table(self.path, name, self.manifest["tables"].get(name))

    def write_arrays(
        self, name: str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Writes `arrays/<name>.safetensors` and records shapes and digest."""
        self._record("arrays", name, files.write_arrays(self.path, name, arrays, metadata))

    def keep_arrays(self, name: str) -> None:
        """Records `arrays/<name>.safetensors`, which was written there piece by piece."""
        self._record("arrays", name, files.arrays_record(self.path, name))

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Reads recorded arrays back; raises `RunFolderError` where they are not what was written."""
        return files.read_arrays(self.path, name, self.manifest["arrays"].get(name))

    def log(self, line: str) -> None:
        """Appends one line, with the time, to `log.txt`; line breaks and control characters are escaped."""
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        descriptor = os.open(self.path / layout.LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, f"{manifests.now()} {shown}\n".encode("utf-8", "backslashreplace"))
        finally:
            os.close(descriptor)

    def write_text(self, name: str, text: str) -> None:
        """Writes one of the run's own text files at the top of the folder, such as `report.html`, atomically."""
        if name not in layout.FILES - {layout.MANIFEST, layout.LOCK, layout.HOLDER}:
            raise ValueError(f"not a text file of a run folder: {name!r}")
        write_bytes(self.path / name, text.encode("utf-8"))

    def shard_store(self, plan: str) -> ShardStore:
        """The shards of `plan` (a digest), which is recorded.

        Shards of any other plan count as missing, and so do those of a run with another identity: plans of two
        models on the same text are equal.
        """
        self.update(plan=plan)
        owner = canonical.digest({"identity": self.manifest["identity"], "plan": plan})
        return ShardStore(self.path / "shards", owner, check=self._check)

    def update(self, **fields: object) -> None:
        """Sets fields of the manifest and commits it."""
        self.manifest = canonical.normalised({**self.manifest, **fields})
        manifests.write(self.path / layout.MANIFEST, self.manifest)

    def finish(self, status: Status, **fields: object) -> None:
        """Ends the run (`running` reopens it); the shards go once a run is complete.

        `warnings` among the fields come behind those that the folder has of its own.
        """
        if status not in manifests.STATUSES:
            raise ValueError(f"no such status: {status!r}; one of {', '.join(manifests.STATUSES)}")
        if status == "complete" and self._check:
            self._check()
        if self._lock.notes:
            given: Any = fields.get("warnings", [])
            fields["warnings"] = list(dict.fromkeys([*self._lock.notes, *given]))
        finished = None if status == "running" else manifests.now()
        self.update(**{**fields, "status": status, "finished": finished})
        if status == "complete":
            ShardStore(self.path / "shards", "").clear()

    def release(self) -> None:
        """Gives up the lock; done by the context manager."""
        self._lock.release()

    def __enter__(self) -> "RunFolder":
        """The folder itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Releases the lock; a run that an exception ended is marked so: partial when interrupted, else failed."""
        try:
            if error is not None and self.manifest["status"] == "running":
                status: Status = "failed" if isinstance(error, Exception) else "partial"
                with suppress(RunFolderError):  # a full disk must not hide the error that ended the run
                    self.finish(status, reason=f"{type(error).__name__}: {error}"[:500])
        finally:
            self.release()

    def _say(self, notes: list[str]) -> None:
        for note in notes:
            logger.warning("%s", note)
            self.log(note)

    def _record(self, kind: str, name: str, record: dict[str, Any]) -> None:
        self.update(**{kind: {**self.manifest[kind], name: record}})


def _opened(
    folder: Path, identity: Mapping[str, object], fields: Mapping[str, object], overwrite: bool
) -> dict[str, Any]:
    path = folder / layout.MANIFEST
    new = manifests.fresh(identity, fields)
    if overwrite:
        layout.empty(folder)
    if overwrite or not path.exists():
        manifests.write(path, new)
        return new
    old = manifests.read(path)
    _same_run(folder, old, new)
    if old["status"] == "complete" and not files.damaged(folder, old):
        return old
    kept: dict[str, Any] = {key: old[key] for key in ("started", "plan", "tables", "arrays", "shards") if key in old}
    resumed: dict[str, Any] = {**old, **new, **kept, "resumed": old.get("resumed", 0) + 1}
    resumed.pop("reason", None)
    manifests.write(path, resumed)
    return resumed


def _interrupted(path: Path) -> None:
    """Marks a run that was stopped while its folder was opened; call it only under the lock."""
    if path.exists() and (found := manifests.read(path))["status"] == "running":
        manifests.write(path, {**found, "status": "partial", "finished": manifests.now(), "reason": INTERRUPT})


def _same_run(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    lines = canonical.differences(old["identity"], new["identity"])
    if lines:
        lines += canonical.differences(_behind(old), _behind(new))
        name = _field(old, "model", "name")
        raise RunFolderError(
            f"{folder} belongs to another run{f' of {name}' if name else ''} ({'; '.join(lines)}); "
            "pass --overwrite to replace it, or another --out"
        )


def _behind(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a changed fingerprint may come from; not part of the identity, because newer libraries describe it anew."""
    fields = {"configuration": ("model", "configuration"), "tokenizer": ("data", "tokenizer_fingerprint")}
    found = {key: _field(manifest, *path) for key, path in fields.items()}
    return {key: value for key, value in found.items() if value is not None}


def _field(manifest: Mapping[str, Any], group: str, name: str) -> Any:
    held = manifest.get(group)
    return held.get(name) if isinstance(held, dict) else None
