"""How zero modes come about over a series of checkpoints (paper `zero-modes`, §2, Figs 13 and 14)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import pandas as pd

from lesion.checkpoints import dynamics as following
from lesion.checkpoints.adapters import Merged, open_tuned
from lesion.checkpoints.masks import FILE
from lesion.checkpoints.opened import Checkpoint, open_checkpoint
from lesion.results import run_name
from lesion.studies.setting import Outcome
from lesion.studies.zero_modes.running import complete, described, open_run, own_names
from lesion.studies.zero_modes.sums import ratio, with_sums

STUDY = "zero-modes dynamics"
NEVER_CHANGED = FILE.with_name("never_changed.safetensors")
"""Where the masks of weights that never changed are in a run folder."""
AMOUNTS = ("n_weights", "n_zero_modes", "n_never_changed", "n_came_back")
UNCOMPARED = ("checkpoint", "name", "tensor", "shape", "shape_last", "reason")


def dynamics(
    checkpoints: Sequence[str],
    *,
    cast: Literal["bf16"] | None = None,
    verify: bool = False,
    allow_pickle: bool = False,
    out: Path | str | None = None,
    name_folder: bool = False,
    overwrite: bool = False,
    command: str = "lesion.zero_modes.dynamics(...)",
    on_tensor: Callable[[str], None] | None = None,
) -> Outcome:
    """Compares each checkpoint of a series with the first, and follows which weights moved on the way.

    Args:
        checkpoints: folders, `zoo:NAME` or hub ids, in order; the first is the start, at least two follow.
        cast: `bf16` rounds all to bfloat16 first, which makes zero modes that the files do not have.
        verify: take the checkpoints' fingerprints of every byte, not of samples.
        allow_pickle: read `pytorch_model.bin` where there is no safetensors file.
        out: run folder, which also gets the masks; None keeps the tables in memory and makes no masks.
        name_folder: make the run folder inside `out`, named after the study, the last checkpoint and a hash.
        on_tensor: told each tensor's name once it is counted.

    Returns:
        Tables `zero_modes_dynamics` (a row a later checkpoint and tensor, and their sums) and
        `zero_modes_dynamics_uncompared` (tensors that are not in all checkpoints).

    Raises:
        LesionError: anything that a user can mend, in one line.
    """
    opened: list[Checkpoint] = []
    for name in checkpoints:
        opened.append(
            open_tuned(name, opened[0], allow_pickle=allow_pickle, verify=verify)
            if opened
            else open_checkpoint(name, allow_pickle=allow_pickle, verify=verify)
        )
    notes = [f"{one.name}: {note}" for one in opened if isinstance(one, Merged) for note in one.notes]
    following.refuse_no_series(opened)
    names = own_names([one.folder if Path(one.name).exists() else one.name for one in opened], [None] * len(opened))
    if out is None:
        found = following.dynamics(opened, cast=cast, on_tensor=on_tensor)
        return Outcome(_tables(found, names), None, [*notes, *_warnings(found, names, cast)])

    def unchanged() -> None:
        for one in opened:
            one.refuse_changed()

    arguments = {"cast": cast, "verify": verify}
    reads = {"checkpoints": [one.fingerprint for one in opened]}
    folder_name = run_name("zero-modes-dynamics", names[-1], {**arguments, **reads})
    with open_run(
        Path(out) / folder_name if name_folder else Path(out),
        study=STUDY,
        command=command,
        arguments=arguments,
        reads=reads,
        fields=_fields(opened, names),
        check=unchanged,
        overwrite=overwrite,
    ) as folder:
        if folder.is_complete:
            return complete(folder)
        masks, never_changed = folder.path / FILE, folder.path / NEVER_CHANGED
        found = following.dynamics(
            opened, cast=cast, zero_modes=masks, never_changed=never_changed, on_tensor=on_tensor
        )
        folder.keep_arrays(FILE.stem)
        folder.keep_arrays(NEVER_CHANGED.stem)
        tables = _tables(found, names)
        for name, table in tables.items():
            folder.write_table(name, table)
        folder.finish("complete", warnings=[*notes, *_warnings(found, names, cast)])
        return Outcome(tables, folder.path, folder.manifest["warnings"])


def note(n_later: int) -> str:
    """What is to be said wherever shares of a series are shown."""
    return (
        f"{n_later} checkpoints after the start: weights that moved and came back between two of them count as never "
        "changed, so these shares depend on how far apart the checkpoints lie"
    )


def _fields(opened: Sequence[Checkpoint], names: Sequence[str]) -> dict[str, object]:
    return {
        "base": described(opened[0]),
        "tuned": described(opened[-1]),
        "checkpoints": [{**described(one), "called": name} for one, name in zip(opened, names, strict=True)],
        "n_checkpoints": len(opened) - 1,
        "note": note(len(opened) - 1),
    }


def _tables(found: following.Dynamics, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    rows = pd.DataFrame([asdict(row) for row in found.rows]).sort_values("checkpoint", kind="stable")
    rows.insert(1, "name", [names[number] for number in rows["checkpoint"]])
    table = with_sums(rows, by=["checkpoint", "name"], amounts=AMOUNTS, layers=True)
    columns = list(table.columns[: table.columns.get_loc("n_weights")])
    table = pd.concat(
        [
            table[[*columns, "n_weights", "n_zero_modes"]],
            ratio(table["n_zero_modes"], table["n_weights"]).rename("fraction"),
            table["n_never_changed"],
            ratio(table["n_never_changed"], table["n_weights"]).rename("fraction_never_changed"),
            table["n_came_back"],
            ratio(table["n_came_back"], table["n_weights"]).rename("fraction_came_back"),
            ratio(table["n_came_back"], table["n_zero_modes"]).rename("share_came_back"),
        ],
        axis=1,
    )
    absent = [{**asdict(row), "name": names[row.checkpoint]} for row in found.absent]
    return {
        "zero_modes_dynamics": table,
        "zero_modes_dynamics_uncompared": pd.DataFrame(absent, columns=list(UNCOMPARED)),
    }


def _warnings(found: following.Dynamics, names: Sequence[str], cast: str | None) -> list[str]:
    lines = [
        f"{names[0]} has tensors stored as {first}, {names[number]} as {own}: they were compared as {kind}"
        for number, first, own, kind in found.mixed
    ]
    if cast:
        lines.append(f"all were rounded to {cast} first, which makes zero modes that the files do not have")
    for prefix in dict.fromkeys(prefix for _, prefix in found.prefixes):
        where = ", ".join(names[number] for number, own in found.prefixes if own == prefix)
        lines.append(f"names in {where} differ from the last checkpoint's by {prefix!r}, which was left out")
    if found.absent:
        lines.append(
            f"{len({row.tensor for row in found.absent})} tensors are not in all checkpoints with one shape; "
            "the table zero_modes_dynamics_uncompared names them"
        )
    if without := {row.tensor for row in found.rows if row.n_weights and not row.n_zero_modes}:
        lines.append(f"{len(without)} tensors have no zero modes at a checkpoint: their share_came_back is NaN there")
    return lines
