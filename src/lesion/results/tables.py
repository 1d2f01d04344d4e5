"""Tables as Parquet and arrays as safetensors, read back only if they are what the manifest recorded."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import safetensors
from safetensors import numpy as safetensors_numpy

from lesion.errors import RunFolderError
from lesion.results.atomic import file_digest, write_bytes
from lesion.results.layout import checked_name


def table_path(run: Path, name: str) -> Path:
    """Where a run keeps the table `name`."""
    return run / "tables" / f"{checked_name(name)}.parquet"


def arrays_path(run: Path, name: str) -> Path:
    """Where a run keeps the arrays `name`."""
    return run / "arrays" / f"{checked_name(name)}.safetensors"


def write_table(run: Path, name: str, table: pd.DataFrame) -> dict[str, Any]:
    """Writes a table atomically; returns what the manifest records of it."""
    path = table_path(run, name)
    write_bytes(path, table.to_parquet(None, index=False))  # not to the path: pyarrow takes only paths that are text
    return {"rows": len(table), "columns": [str(column) for column in table.columns], "sha256": file_digest(path)}


def read_table(run: Path, name: str, record: Mapping[str, Any] | None) -> pd.DataFrame:
    """Reads a table that the manifest knows by `record`.

    Raises:
        RunFolderError: it is not recorded, missing, unreadable, or not the file that was recorded.
    """
    path = table_path(run, name)
    _verify(path, record)
    try:
        return pd.read_parquet(io.BytesIO(path.read_bytes()))
    except (OSError, pa.ArrowException) as error:
        raise RunFolderError(f"{path} cannot be read ({error}); run the command again with --overwrite") from error


def write_arrays(
    run: Path, name: str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None
) -> dict[str, Any]:
    """Writes arrays atomically; returns what the manifest records of them."""
    path = arrays_path(run, name)
    contiguous = {key: np.asarray(array, order="C") for key, array in arrays.items()}
    write_bytes(path, safetensors_numpy.save(contiguous, metadata=dict(metadata) if metadata else None))
    shapes = {key: [str(array.dtype), *array.shape] for key, array in contiguous.items()}
    return {"arrays": shapes, "sha256": file_digest(path)}


def arrays_record(run: Path, name: str) -> dict[str, Any]:
    """What the manifest records of arrays that are there already; they are not read into memory."""
    path = arrays_path(run, name)
    with safetensors.safe_open(path, framework="np") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (it is no dict)
        shapes = {key: [part.get_dtype().lower(), *part.get_shape()] for key, part in slices.items()}
    return {"arrays": shapes, "sha256": file_digest(path)}


def read_arrays(run: Path, name: str, record: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """Reads arrays that the manifest knows by `record`; raises as `read_table` does."""
    path = arrays_path(run, name)
    _verify(path, record)
    try:
        arrays: dict[str, np.ndarray] = safetensors_numpy.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}); run the command again with --overwrite") from error
    return arrays


def damaged(run: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """The recorded tables and arrays of a run that are missing or were changed since."""
    paths = [(table_path(run, name), record) for name, record in manifest["tables"].items()]
    paths += [(arrays_path(run, name), record) for name, record in manifest["arrays"].items()]
    return [path for path, record in paths if not _is_intact(path, record)]


def _is_intact(path: Path, record: Mapping[str, Any]) -> bool:
    return path.is_file() and file_digest(path) == record.get("sha256")


def _verify(path: Path, record: Mapping[str, Any] | None) -> None:
    if record is None:
        raise RunFolderError(f"{path} is not recorded in run.json; finish the run by giving its command again")
    if not path.is_file():
        raise RunFolderError(f"{path} is missing, though run.json records it; give the run's command again")
    if not _is_intact(path, record):
        raise RunFolderError(f"{path} is not the file that run.json records (edited or damaged); run with --overwrite")
