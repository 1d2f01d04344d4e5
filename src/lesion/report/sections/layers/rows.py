"""The rows of the table `layers`, as the text and the figures ask for them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lesion.errors import RunFolderError
from lesion.report.numbers import Measure, count
from lesion.results import RunView

INTERVENTIONS = {
    "drop": "drop the block",
    "swap": "swap with the next block",
    "drop_attn": "drop the attention",
    "drop_mlp": "drop the MLP",
}
NOUNS = {"causal": "token", "masked": "masked token", "image": "image"}


@dataclass(frozen=True)
class Rows:
    """The table and the manifest of one run.

    Attributes:
        table: one row per intervention and layer.
        manifest: the run's `run.json`.
    """

    table: pd.DataFrame
    manifest: dict[str, Any]

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return int(self.manifest["model"]["n_layers"])

    @property
    def noun(self) -> str:
        """What one position is: a token, a masked token or an image."""
        return NOUNS[self.manifest["model"]["objective"]]

    @property
    def per(self) -> str:
        """`a token` or `an image`, behind a unit."""
        return f"an {self.noun}" if self.noun == "image" else f"a {self.noun}"

    @property
    def amount(self) -> str:
        """How much counts: `12,345 tokens of 10 documents`, or `360 images`; tokens are those with a target."""
        positions = count(int(self.table["n_tokens"].max()), self.noun)
        documents = count(int(self.table["n_documents"].max()), "document")
        return positions if self.noun == "image" else f"{positions} of {documents}"

    @property
    def standard_error(self) -> str:
        """What the standard errors are."""
        return "one standard error" if self.noun == "image" else "one standard error, clustered by document"

    @property
    def has_loss(self) -> bool:
        """Whether there are targets; images may come without labels."""
        return bool(self.table["loss_nats"].notna().any())

    @property
    def has_errors(self) -> bool:
        """Whether there are standard errors; a single document gives none."""
        return bool(self.table["kl_nats_sem"].notna().any())

    def of(self, intervention: str) -> pd.DataFrame:
        """Its rows in the order of layers; empty where the run left it out."""
        chosen = self.table[self.table["intervention"] == intervention]
        return chosen.sort_values("layer", ignore_index=True)

    def measures(self, intervention: str, column: str) -> dict[int, Measure]:
        """`column` with its standard error at each layer where it is a number."""
        rows = self.of(intervention)
        found = zip(rows["layer"], floats(rows, column), floats(rows, f"{column}_sem"), strict=True)
        return {int(layer): Measure(float(value), float(sem)) for layer, value, sem in found if np.isfinite(value)}

    def clean(self, column: str) -> Measure:
        """A column of the whole model, the same in every row; its standard error where the table has one."""
        sem = f"{column}_sem"
        error = float(floats(self.table, sem)[0]) if sem in self.table else float("nan")
        return Measure(float(floats(self.table, column)[0]), error)


def floats(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column as float64, null as NaN."""
    return np.asarray(pd.to_numeric(table[column]), dtype=np.float64)


def read(run: RunView) -> tuple[Rows, pd.DataFrame | None]:
    """The pooled rows, and those by domain where there is more than one domain.

    Raises:
        RunFolderError: the run has no rows yet.
    """
    if "layers" not in run.tables or run.table("layers").empty:
        status = run.manifest["status"]
        raise RunFolderError(
            f"{run.path} has no results to report yet (status {status}); give its command again to finish it"
        )
    rows = Rows(run.table("layers"), run.manifest)
    by_domain = run.table("layers_by_domain") if "layers_by_domain" in run.tables else None
    if by_domain is not None and by_domain["domain"].nunique() < 2:
        by_domain = None
    return rows, by_domain
