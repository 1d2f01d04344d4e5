"""Zero modes between two checkpoints, found in their files (paper `zero-modes`, section 2)."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from lesion.checkpoints.compare import Comparison, Options, TensorRow, compare
from lesion.checkpoints.components import PROJECTIONS
from lesion.checkpoints.masks import FILE
from lesion.checkpoints.opened import Checkpoint, open_checkpoint, refuse_the_same
from lesion.results import RunFolder, run_name
from lesion.studies.setting import Outcome
from lesion.studies.zero_modes.running import complete, described, open_run

STUDY = "zero-modes diff"


def diff(
    base: str,
    tuned: str,
    *,
    options: Options | None = None,
    verify: bool = False,
    allow_pickle: bool = False,
    out: Path | str | None = None,
    name_folder: bool = False,
    overwrite: bool = False,
    command: str = "lesion.zero_modes.diff(...)",
    on_tensor: Callable[[TensorRow], None] | None = None,
) -> Outcome:
    """Compares two checkpoints bit by bit, file against file; no model is built.

    Args:
        base, tuned: a folder, `zoo:NAME` or a hub id each.
        options: what to round to first, whether to work out magnitudes, how many distances to sample.
        verify: take the checkpoints' fingerprints of every byte, not of samples.
        allow_pickle: read `pytorch_model.bin` where there is no safetensors file.
        out: run folder, which also gets the masks; None keeps the tables in memory and makes no masks.
        name_folder: make the run folder inside `out`, named after the study, TUNED and a hash of the arguments.
        on_tensor: told each row once it is known.

    Returns:
        Tables `zero_modes` (a row a tensor), `zero_modes_summary` (a row a layer and component, and one for all
        projection matrices) and `zero_modes_uncompared` (tensors without a counterpart, and why).

    Raises:
        LesionError: anything that a user can mend, in one line.
    """
    options = options or Options()
    before, after = (open_checkpoint(name, allow_pickle=allow_pickle, verify=verify) for name in (base, tuned))
    refuse_the_same(before, after)
    if out is None:
        found = compare(before, after, options=options, on_tensor=on_tensor)
        return Outcome(_tables(found), None, _warnings(found))
    arguments = {**asdict(options), "verify": verify}
    path = Path(out) / run_name("zero-modes-diff", after.folder.name, {**arguments, **_prints(before, after)})
    with _folder(path if name_folder else Path(out), before, after, arguments, command, overwrite) as folder:
        if folder.is_complete:
            return complete(folder)
        (folder.path / FILE.parent).mkdir(exist_ok=True)
        found = compare(before, after, masks=folder.path / FILE, options=options, on_tensor=on_tensor)
        folder.keep_arrays(FILE.stem)
        for name, table in _tables(found).items():
            folder.write_table(name, table)
        aligned = {"prefix": found.prefix, "on": found.prefixed} if found.prefix else None
        folder.finish("complete", warnings=_warnings(found), names_aligned=aligned)
        return Outcome(_tables(found), folder.path, folder.manifest["warnings"])


def _prints(base: Checkpoint, tuned: Checkpoint) -> dict[str, str]:
    return {"base": base.fingerprint, "tuned": tuned.fingerprint}


def _folder(
    path: Path, base: Checkpoint, tuned: Checkpoint, arguments: dict[str, Any], command: str, overwrite: bool
) -> RunFolder:
    def unchanged() -> None:
        base.refuse_changed()
        tuned.refuse_changed()

    return open_run(
        path,
        study=STUDY,
        command=command,
        arguments=arguments,
        reads=_prints(base, tuned),
        fields={"base": described(base), "tuned": described(tuned)},
        check=unchanged,
        seeds=[arguments["seed"]],
        overwrite=overwrite,
    )


def _tables(found: Comparison) -> dict[str, pd.DataFrame]:
    rows = pd.DataFrame([asdict(row) for row in found.rows]).astype({"layer": "Int64"})
    uncompared = pd.DataFrame([asdict(row) for row in found.uncompared], columns=list(UNCOMPARED))
    return {"zero_modes": rows, "zero_modes_summary": summary(rows), "zero_modes_uncompared": uncompared}


UNCOMPARED = ("tensor", "shape_base", "shape_tuned", "reason")


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Counts by layer and component; the last row, without either, is of all projection matrices inside blocks."""
    columns = ["n_weights", "n_zero_modes", "n_both_zero"]
    by_place = rows.groupby(["layer", "component"], dropna=False, sort=True)[columns].sum().reset_index()
    projections = rows[rows["layer"].notna() & rows["component"].isin(PROJECTIONS)][columns].sum()
    total = pd.DataFrame([{"layer": None, "component": "projections", **projections}]).astype({"layer": "Int64"})
    table = pd.concat([by_place, total], ignore_index=True)
    table["fraction"] = table["n_zero_modes"] / table["n_weights"].where(table["n_weights"] > 0)
    return table


def _warnings(found: Comparison) -> list[str]:
    lines = []
    mixed = sorted({(row.dtype_base, row.dtype_tuned, row.compared_as) for row in found.rows if not _same_type(row)})
    for base, tuned, kind in mixed:
        lines.append(f"BASE is stored as {base} and TUNED as {tuned}: their tensors were compared as {kind}")
    if found.cast:
        lines.append(
            f"both sides were rounded to {found.cast} first, which makes zero modes that the files do not have"
        )
    if found.prefix:
        lines.append(f"names in {found.prefixed} have {found.prefix!r} in front; it was left out to find counterparts")
    if found.uncompared:
        lines.append(f"{len(found.uncompared)} tensors have no counterpart; the table zero_modes_uncompared names them")
    if nan := sum(row.n_nan for row in found.rows):
        lines.append(f"{nan} weights are NaN on one side or both")
    return lines


def _same_type(row: TensorRow) -> bool:
    return row.dtype_base == row.dtype_tuned
