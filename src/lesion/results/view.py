"""A run folder as its readers see it: reports, queries, joins. Nothing here writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesion.errors import RunFolderError
from lesion.results import manifest as manifests
from lesion.results import tables as files
from lesion.results.layout import MANIFEST


@dataclass(frozen=True)
class RunView:
    """A run, read-only.

    Attributes:
        path: the run folder.
        manifest: its `run.json`.
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> "RunView":
        """Opens a run folder.

        Raises:
            RunFolderError: there is no run, or its manifest is damaged or of another schema.
        """
        folder = Path(path)
        try:
            found = (folder / MANIFEST).is_file()
        except OSError as error:
            raise RunFolderError(f"cannot open {folder}: {error.strerror or error}; pass a run folder") from error
        if not found:
            raise RunFolderError(f"{folder} is not a lesion run folder: it has no {MANIFEST}; pass the --out of a run")
        return cls(folder, manifests.read(folder / MANIFEST))

    @property
    def tables(self) -> list[str]:
        """Names of the recorded tables, sorted."""
        return sorted(self.manifest["tables"])

    def table(self, name: str) -> pd.DataFrame:
        """The table `name`; raises `RunFolderError` where it is missing or not what was recorded."""
        return files.read_table(self.path, name, self.manifest["tables"].get(name))

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays `name`; raises `RunFolderError` where they are missing or not what was recorded."""
        return files.read_arrays(self.path, name, self.manifest["arrays"].get(name))
