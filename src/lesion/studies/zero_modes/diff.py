"""Zero modes between two checkpoints, found in their files (paper `zero-modes`, section 2)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from lesion.anatomy.wording import some
from lesion.checkpoints.adapters import Merged, open_tuned
from lesion.checkpoints.align import align
from lesion.checkpoints.compare import Comparison, Options, TensorRow, compare
from lesion.checkpoints.components import COMPONENTS, PROJECTIONS
from lesion.checkpoints.masks import FILE, Masks
from lesion.checkpoints.opened import Checkpoint, open_checkpoint, refuse_the_same
from lesion.errors import InputError
from lesion.results import RunFolder, run_name
from lesion.studies.setting import Outcome
from lesion.studies.zero_modes.looking import parse_look, plan
from lesion.studies.zero_modes.pictures import ARRAYS, look_at, seeds
from lesion.studies.zero_modes.running import complete, described, open_run

STUDY = "zero-modes diff"


def diff(
    base: str,
    tuned: str,
    *,
    options: Options | None = None,
    look: Sequence[str] | None = None,
    verify: bool = False,
    allow_pickle: bool = False,
    out: Path | str | None = None,
    name_folder: bool = False,
    overwrite: bool = False,
    command: str = "lesion.zero_modes.diff(...)",
    on_tensor: Callable[[TensorRow], None] | None = None,
    on_look: Callable[[str], None] | None = None,
) -> Outcome:
    """Compares two checkpoints bit by bit, file against file; no model is built.

    Args:
        base, tuned: a folder, `zoo:NAME` or a hub id each.
        options: what to round to first, whether to work out magnitudes, how many distances to sample.
        look: matrices whose spectra, pictures and neurons are worked out from TUNED's weights and the masks, so that
            it needs `out`: `auto` (attention, gate and down, or both matrices of other MLPs, of blocks 0, 1 and the
            last), `none`, `all`, LAYER/COMPONENT such as `1/k`, or scopes. None is `auto` with a run folder, and
            `none` without.
        verify: take the checkpoints' fingerprints of every byte, not of samples.
        allow_pickle: read `pytorch_model.bin` where there is no safetensors file.
        out: run folder, which also gets the masks; None keeps the tables in memory and makes no masks.
        name_folder: make the run folder inside `out`, named after the study, TUNED and a hash of the arguments.
        on_tensor: told each row once it is known.
        on_look: told LAYER/COMPONENT of each matrix before it is looked at.

    Returns:
        Tables `zero_modes` (a row a tensor), `zero_modes_summary` (a row a layer and component, and one for all
        projection matrices), `zero_modes_components` (a row a component, over all blocks), `zero_modes_ulps` (how far
        the sampled weights moved) and `zero_modes_uncompared` (tensors without a counterpart, and why); and those of
        `lesion.studies.zero_modes.pictures.COLUMNS`, of the matrices that were looked at.

    Raises:
        LesionError: anything that a user can mend, in one line.
    """
    options, looks = options or Options(), parse_look(["auto"] if look is None else look)
    before = open_checkpoint(base, allow_pickle=allow_pickle, verify=verify)
    after = open_tuned(tuned, before, allow_pickle=allow_pickle, verify=verify)
    refuse_the_same(before, after)
    align(before, after)  # two architectures are refused before anything is written
    notes = list(after.notes) if isinstance(after, Merged) else []
    if out is None:
        if look is not None and looks:
            raise InputError(f"look={list(look)} needs a run folder, which holds the masks: pass out=…")
        found = compare(before, after, options=options, on_tensor=on_tensor)
        return Outcome(_tables(found), None, [*notes, *_warnings(found)])
    arguments = {**asdict(options), "look": list(looks), "verify": verify}
    planned = plan(looks, after, before)
    path = Path(out) / run_name("zero-modes-diff", after.folder.name, {**arguments, **_prints(before, after)})
    path = path if name_folder else Path(out)
    _refuse_inside(path, before, after)
    with _folder(path, before, after, arguments, command, overwrite, allow_pickle) as folder:
        if folder.is_complete:
            return complete(folder)
        found = compare(before, after, masks=folder.path / FILE, options=options, on_tensor=on_tensor)
        folder.keep_arrays(FILE.stem)
        looked = look_at(after, Masks.load(folder.path), planned, cast=options.cast, seed=options.seed, on_part=on_look)
        tables, warnings = {**_tables(found), **looked.tables}, [*notes, *_warnings(found), *looked.warnings]
        for name, table in tables.items():
            folder.write_table(name, table)
        if looked.images:
            folder.write_arrays(ARRAYS, looked.images)
        aligned = {"prefix": found.prefix, "on": found.prefixed} if found.prefix else None
        folder.finish("complete", warnings=warnings, names_aligned=aligned, looked_at=looked.looked_at)
        return Outcome(tables, folder.path, folder.manifest["warnings"])


def _refuse_inside(out: Path, *checkpoints: Checkpoint) -> None:
    for checkpoint in checkpoints:
        if out.resolve().is_relative_to(checkpoint.folder.resolve()):
            raise InputError(f"{out} is in the folder of the checkpoint {checkpoint.name}; pass another --out")


def _prints(base: Checkpoint, tuned: Checkpoint) -> dict[str, str]:
    return {"base": base.fingerprint, "tuned": tuned.fingerprint}


def _folder(
    path: Path,
    base: Checkpoint,
    tuned: Checkpoint,
    arguments: dict[str, Any],
    command: str,
    overwrite: bool,
    allow_pickle: bool,
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
        fields={"base": described(base), "tuned": described(tuned), "allow_pickle": allow_pickle},
        check=unchanged,
        seeds=seeds(arguments["seed"]) if arguments["look"] else [arguments["seed"]],
        overwrite=overwrite,
    )


UNCOMPARED = ("tensor", "shape_base", "shape_tuned", "reason")
COUNTS = ("n_weights", "n_zero_modes", "n_both_zero", "n_signed_zero", "n_nan")


def _tables(found: Comparison) -> dict[str, pd.DataFrame]:
    rows = pd.DataFrame([asdict(row) for row in found.rows]).astype({"layer": "Int64"})
    uncompared = pd.DataFrame([asdict(row) for row in found.uncompared], columns=list(UNCOMPARED))
    tables = {
        "zero_modes": rows,
        "zero_modes_summary": summary(rows),
        "zero_modes_components": by_component(rows),
        "zero_modes_uncompared": uncompared,
    }
    if found.ulps:
        ulps = pd.DataFrame([asdict(row) for row in found.ulps])
        tables["zero_modes_ulps"] = ulps.astype({"layer": "Int64", "ulps_from": "uint64", "ulps_to": "uint64"})
    return tables


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Sums by layer and component; the last row, without either, is of all projection matrices inside blocks."""
    by_place = rows.groupby(["layer", "component"], dropna=False, sort=True)
    sums = [{"layer": layer, "component": component, **_sums(part)} for (layer, component), part in by_place]
    total = {"layer": None, "component": "projections", **_sums(_projections(rows))}
    return pd.DataFrame([*sums, total]).astype({"layer": "Int64"})


def by_component(rows: pd.DataFrame) -> pd.DataFrame:
    """Sums over all blocks, a row a component, in the order of a block."""
    inside = rows[rows["layer"].notna()]
    found = [(name, inside[inside["component"] == name]) for name in COMPONENTS]
    records = [{"component": name, **_sums(part)} for name, part in found if len(part)]
    return pd.DataFrame(records, columns=["component", *_sums(rows)])


def _projections(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["layer"].notna() & rows["component"].isin(PROJECTIONS)]


def _sums(rows: pd.DataFrame) -> dict[str, float | int]:
    """Several tensors as one.

    Sizes of zero modes are taken over their own matrix's mean before they are averaged: matrices differ in scale.
    """
    counts = {name: int(rows[name].sum()) for name in COUNTS}
    squares = rows["rms"] ** 2 * rows["n_weights"]
    changed = (rows["n_weights"] - rows["n_zero_modes"]).where(rows["n_ulps"] > 0)
    return {
        **counts,
        "fraction": _ratio(counts["n_zero_modes"], counts["n_weights"]),
        "fraction_both_zero": _ratio(counts["n_both_zero"] - counts["n_signed_zero"], counts["n_zero_modes"]),
        "mean_abs_zero_modes_over_matrix": _weighted(rows["mean_abs_zero_modes_over_matrix"], rows["n_zero_modes"]),
        "share_of_squares": _weighted(rows["share_of_squares"], squares),
        "share_one_ulp": _weighted(rows["share_one_ulp"], changed),
    }


def _ratio(amount: float | int, of: float | int) -> float:
    return amount / of if of else math.nan


def _weighted(values: pd.Series, weights: pd.Series) -> float:
    """A mean over the tensors that have a value and weigh something; NaN where there are none."""
    known = values.notna() & (weights > 0)
    return _ratio(float((values * weights)[known].sum()), float(weights[known].sum()))


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
        n_left = len(found.uncompared)
        have = "1 tensor has" if n_left == 1 else f"{n_left} tensors have"
        lines.append(f"{have} no counterpart; the table zero_modes_uncompared says why")
    n_moved = sum(row.n_weights - row.n_zero_modes for row in found.rows)
    if not n_moved:
        lines.append(
            "every weight that was compared is the same on both sides: are these two copies of one checkpoint?"
        )
    if nan := sum(row.n_nan for row in found.rows):
        lines.append(f"{nan} weights are NaN on one side or both")
    if unknown := [row.tensor for row in found.rows if row.n_nan and math.isnan(row.mean_abs)]:
        lines.append(
            f"{some(unknown)}: NaN in TUNED, so how large the zero modes are is not known there, "
            "and means over tensors leave these out"
        )
    return lines


def _same_type(row: TensorRow) -> bool:
    return row.dtype_base == row.dtype_tuned
