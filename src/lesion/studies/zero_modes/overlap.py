"""How far zero modes of several fine-tunings are the same weights, beside what chance would make them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesion.anatomy.files import states
from lesion.anatomy.wording import some
from lesion.checkpoints import overlap as counting
from lesion.checkpoints.masks import FILE, Masks, mask_file
from lesion.checkpoints.opened import Checkpoint, open_checkpoint
from lesion.errors import InputError, LesionError, ModelError
from lesion.results import RunView, file_digest, run_name
from lesion.studies.setting import Outcome
from lesion.studies.zero_modes.running import complete, described, open_run, own_names
from lesion.studies.zero_modes.sums import ratio, with_sums

STUDY = "zero-modes overlap"
PAIR_AMOUNTS = (
    "n_weights",
    "n_a",
    "n_b",
    "n_both",
    "n_either",
    "n_both_by_chance",
    "variance",
    "n_both_by_chance_in_exponents",
    "variance_in_exponents",
)
TOGETHER_AMOUNTS = (
    "n_weights",
    "n_in_all",
    "n_in_any",
    "n_in_all_by_chance",
    "n_in_any_by_chance",
    "n_in_all_by_chance_in_exponents",
)
UNCOMPARED = ("a", "b", "tensor", "shape_a", "shape_b", "reason")


@dataclass(frozen=True)
class _Given:
    """A mask file as it was given."""

    name: str
    file: Path
    run: Path | None
    masks: Masks

    @property
    def base(self) -> str | None:
        """Fingerprint of the checkpoint that the zero modes were found against."""
        return self.masks.metadata.get("base")


@dataclass(frozen=True)
class _Weights:
    """The weights whose exponents are the bins, or why there are none, and what is to be said of them."""

    checkpoint: Checkpoint | None
    cast: str | None
    notes: tuple[str, ...]


def overlap(
    masks: Sequence[str | Path],
    *,
    weights: str | None = None,
    allow_pickle: bool = False,
    out: Path | str | None = None,
    name_folder: bool = False,
    overwrite: bool = False,
    command: str = "lesion.zero_modes.overlap(...)",
    on_tensor: Callable[[str], None] | None = None,
) -> Outcome:
    """Compares masks of zero modes pair by pair, and all together.

    Args:
        masks: run folders or files of masks, at least two; `name=PATH` gives one a name.
        weights: the checkpoint whose exponents of |w| zero modes are compared within; by default the base that the
            first run folder names, if it is still the same.
        allow_pickle: read the weights from `pytorch_model.bin` where there is no safetensors file.
        out: run folder; None keeps the tables in memory.
        name_folder: make the run folder inside `out`, named after the study, the first masks and a hash of all.
        on_tensor: told each tensor's name once it is counted.

    Returns:
        Tables `zero_modes_overlap` (a row a pair and tensor, and their sums), `zero_modes_overlap_all` (the same of
        all masks together, where there are three or more) and `zero_modes_overlap_uncompared`.

    Raises:
        LesionError: anything that a user can mend, in one line.
    """
    given = _opened(masks)
    job = _Job(given, states([one.file for one in given]), _weights(given, weights, allow_pickle))
    counting.refuse_unlike({one.name: one.masks for one in given}, job.weights.checkpoint)
    if out is None:
        return Outcome(*job.done(on_tensor))
    sha256 = [file_digest(one.file) for one in given]
    bins = job.weights.checkpoint
    reads = {
        "masks": {
            f"{number} {one.name}": digest for number, (one, digest) in enumerate(zip(given, sha256, strict=True))
        },
        "weights": bins.fingerprint if bins else None,
    }
    arguments = {"names": [one.name for one in given], "cast": job.weights.cast}
    fields = {
        "masks": [_described(one, digest) for one, digest in zip(given, sha256, strict=True)],
        "weights": described(bins) if bins else None,
        "n_masks": len(given),
    }
    path = Path(out) / run_name("zero-modes-overlap", given[0].name, reads) if name_folder else Path(out)
    with open_run(
        path,
        study=STUDY,
        command=command,
        arguments=arguments,
        reads=reads,
        fields=fields,
        check=job.unchanged,
        overwrite=overwrite,
    ) as folder:
        if folder.is_complete:
            return complete(folder)
        tables, _, warnings = job.done(on_tensor)
        for name, table in tables.items():
            folder.write_table(name, table)
        folder.finish("complete", warnings=warnings)
        return Outcome(tables, folder.path, folder.manifest["warnings"])


@dataclass(frozen=True)
class _Job:
    """What is to be counted, and the files as they were when they were opened."""

    given: Sequence[_Given]
    states: Sequence[tuple[int, int, int]]
    weights: _Weights

    def unchanged(self) -> None:
        if states([one.file for one in self.given]) != self.states:
            raise ModelError("a file of masks was changed while it was read; run the command again")
        if self.weights.checkpoint is not None:
            self.weights.checkpoint.refuse_changed()

    def done(self, on_tensor: Callable[[str], None] | None) -> tuple[dict[str, pd.DataFrame], None, list[str]]:
        """Tables and warnings, in the places in which an outcome without a folder has them."""
        masks = {one.name: one.masks for one in self.given}
        found = counting.overlap(masks, weights=self.weights.checkpoint, cast=self.weights.cast, on_tensor=on_tensor)
        self.unchanged()
        tables = _tables(found)
        return tables, None, _warnings(self.given, self.weights, found, tables["zero_modes_overlap"])


def _opened(texts: Sequence[str | Path]) -> list[_Given]:
    names, paths = zip(*(_taken_apart(text) for text in texts), strict=True) if texts else ((), ())
    if len(paths) < 2:
        raise InputError(f"an overlap is of two or more masks; {len(paths)} given")
    found = []
    for path, given in zip(paths, names, strict=True):
        masks = Masks.load(path)
        file = mask_file(path)
        is_of_run = file.parent.name == FILE.parent.name and (file.parents[1] / "run.json").is_file()
        found.append(_Given(given or "", file, file.parents[1] if is_of_run else None, masks))
    for (path, one), (other_path, other) in combinations(zip(paths, found, strict=True), 2):
        if one.file.samefile(other.file):
            raise InputError(f"{path} and {other_path} are the same file of masks; give each once")
    ends = [one.run if one.run and one.file.name == FILE.name else one.file.with_suffix("") for one in found]
    return [_Given(name, one.file, one.run, one.masks) for name, one in zip(own_names(ends, names), found, strict=True)]


def _taken_apart(text: str | Path) -> tuple[str | None, Path]:
    """Takes `name=PATH` apart; a path that exists is never taken apart, whatever its name."""
    name, equals, path = str(text).partition("=")
    if isinstance(text, Path) or not equals or not name or not path or "/" in name or Path(text).exists():
        return None, Path(text)
    return name, Path(path)


def _weights(given: Sequence[_Given], asked: str | None, allow_pickle: bool) -> _Weights:
    casts = {one.masks.metadata.get("cast", "none") for one in given}
    cast = "bf16" if casts == {"bf16"} else None
    notes = []
    if len(casts) > 1:
        notes.append(
            "some masks were made of rounded weights (--cast) and some were not; they are compared as they are"
        )
    bases = {one.base for one in given}
    if asked is not None:
        whole = any(base is not None and base.startswith("whole:") for base in bases)
        checkpoint = open_checkpoint(asked, allow_pickle=allow_pickle, verify=whole)
        if bases != {checkpoint.fingerprint}:
            notes.append(f"{asked} is not the base of all masks; exponents are those of its weights")
        return _Weights(checkpoint, cast, tuple(notes))
    try:
        checkpoint = _recorded_base(given, allow_pickle)
    except LesionError as error:
        notes.append(f"nothing is compared within exponents (those columns are NaN): {error}; pass --weights BASE")
        return _Weights(None, cast, tuple(notes))
    return _Weights(checkpoint, cast, tuple(notes))


def _recorded_base(given: Sequence[_Given], allow_pickle: bool) -> Checkpoint:
    """The base of the first run folder, if it is still what it was.

    Raises:
        LesionError: no run folder, none that names a base, or a base that is gone or another.
    """
    run = next((one.run for one in given if one.run), None)
    if run is None:
        raise InputError("files of masks do not say where their base is")
    base = RunView.open(run).manifest.get("base")
    if not isinstance(base, dict) or not {"name", "fingerprint"} <= base.keys():
        raise InputError(f"{run} names no base")
    checkpoint = open_checkpoint(
        base["name"], allow_pickle=allow_pickle, verify=base["fingerprint"].startswith("whole:")
    )
    if checkpoint.fingerprint != base["fingerprint"]:
        raise ModelError(f"{base['name']} is not the checkpoint any more that {run} was made with")
    return checkpoint


def _described(one: _Given, sha256: str) -> dict[str, Any]:
    kept = {key: one.masks.metadata.get(key) for key in ("base", "tuned", "cast", "derived")}
    return {"name": one.name, "path": str(one.file), "sha256": sha256, **kept}


def _tables(found: counting.Overlap) -> dict[str, pd.DataFrame]:
    uncompared = pd.DataFrame([asdict(row) for row in found.uncompared], columns=list(UNCOMPARED))
    tables = {"zero_modes_overlap": _pairs(found.pairs)}
    if found.together:
        tables["zero_modes_overlap_all"] = _together(found.together)
    return {**tables, "zero_modes_overlap_uncompared": uncompared}


def _pairs(rows: Sequence[counting.PairRow]) -> pd.DataFrame:
    by_tensor = pd.DataFrame([asdict(row) for row in rows])
    table = with_sums(by_tensor, by=["a", "b"], amounts=PAIR_AMOUNTS, everything=True)
    chance, in_exponents = table["n_both_by_chance"], table["n_both_by_chance_in_exponents"]
    measures = {
        "jaccard": ratio(table["n_both"], table["n_either"]),
        "share_of_a": ratio(table["n_both"], table["n_a"]),
        "share_of_b": ratio(table["n_both"], table["n_b"]),
        "n_both_by_chance": chance,
        "n_both_by_chance_sd": np.sqrt(table["variance"]),
        "jaccard_by_chance": ratio(chance, table["n_a"] + table["n_b"] - chance),
        "over_chance": ratio(table["n_both"], chance),
        "n_both_by_chance_in_exponents": in_exponents,
        "n_both_by_chance_in_exponents_sd": np.sqrt(table["variance_in_exponents"]),
        "over_chance_in_exponents": ratio(table["n_both"], in_exponents),
    }
    counts = ["a", "b", "tensor", "layer", "component", "n_weights", "n_a", "n_b", "n_both", "n_either"]
    return pd.concat([table[counts], pd.DataFrame(measures)], axis=1)


def _together(rows: Sequence[counting.TogetherRow]) -> pd.DataFrame:
    by_tensor = pd.DataFrame([asdict(row) for row in rows])
    table = with_sums(by_tensor, by=[], amounts=TOGETHER_AMOUNTS, everything=True)
    table.insert(3, "n_masks", rows[0].n_masks)
    table["over_chance"] = ratio(table["n_in_all"], table["n_in_all_by_chance"])
    table["over_chance_in_exponents"] = ratio(table["n_in_all"], table["n_in_all_by_chance_in_exponents"])
    return table


def _warnings(given: Sequence[_Given], bins: _Weights, found: counting.Overlap, table: pd.DataFrame) -> list[str]:
    lines = list(bins.notes)
    bases: dict[str, list[str]] = {}
    for one in given:
        if one.base is not None:
            bases.setdefault(one.base, []).append(one.name)
        if derived := one.masks.metadata.get("derived"):
            lines.append(f"{one.name} holds not the zero modes of a pair but a set made of them: {derived}")
    if len(bases) > 1:
        groups = "; ".join(", ".join(names) for names in bases.values())
        lines.append(f"zero modes of pairs with different bases ({groups}): they need not be the same weights")
    if found.uncompared:
        lines.append(
            f"{len({row.tensor for row in found.uncompared})} tensors are not in all masks with one shape; "
            "the table zero_modes_overlap_uncompared names them"
        )
    if found.without_weights:
        lines.append(
            f"{len(found.without_weights)} tensors are not among the weights ({some(found.without_weights)}): "
            "they, and sums over them, are not compared within exponents"
        )
    return lines + _empty(table)


def _empty(table: pd.DataFrame) -> list[str]:
    """Which masks have tensors without zero modes, whose ratios are NaN."""
    without: dict[str, set[str]] = {}
    for row in table[table["tensor"].notna()].to_dict("records"):
        for side in ("a", "b"):
            if not row[f"n_{side}"]:
                without.setdefault(row[side], set()).add(row["tensor"])
    return [
        f"{name} has no zero modes in {len(names)} tensors ({some(sorted(names))}): ratios over them are NaN"
        for name, names in without.items()
    ]
