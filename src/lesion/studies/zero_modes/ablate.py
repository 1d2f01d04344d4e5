"""What becomes of a model without its zero modes, beside random and magnitude-matched weights (paper `zero-modes`)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from lesion.anatomy import Anatomy, Loading, Model
from lesion.checkpoints.edited import Value
from lesion.checkpoints.masks import Masks
from lesion.checkpoints.opened import open_checkpoint
from lesion.checkpoints.scopes import expand_scopes
from lesion.checkpoints.selection import KINDS, RANDOM, Kind
from lesion.data import ImageData, TextData
from lesion.engine import Bench, Contrast, Data, Progress, lay_out, make_plan
from lesion.engine.executors import read_choice
from lesion.errors import InputError
from lesion.interventions import Intervention, combine, parse, set_weights, structure_of
from lesion.studies.setting import Outcome, Reading, Study, left_out, open_data, open_model
from lesion.studies.sweeping import Swept, masks_read, run_sweep, timings
from lesion.studies.zero_modes.ablate_results import Row, tables_of, warnings_of
from lesion.studies.zero_modes.running import complete, described_masks

STUDY = "zero-modes ablate"
Target = Literal["auto", "tuned", "base", "other"]
NONE = "none"
"""The kind of the row that is always there: the model as it is."""
DEFAULT_KINDS: tuple[Kind, ...] = ("zero_modes", "random", "random_matched")


def ablate(
    model: "str | Path | nn.Module | Model",
    masks: str | Path,
    data: "str | Sequence[str] | TextData | ImageData" = "stdlib",
    *,
    kinds: Sequence[str] = DEFAULT_KINDS,
    scopes: Sequence[str] = ("all", "layers"),
    seeds: Sequence[int] = (0, 1, 2),
    value: Value = "zero",
    disjoint: bool = False,
    include: Sequence[str] = (),
    target: Target = "auto",
    edits: Sequence[str] = (),
    reading: Reading | None = None,
    loading: Loading | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    tokenizer: Any = None,
    executor: str = "here",
    out: Path | str | None = None,
    name_folder: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "lesion.zero_modes.ablate(...)",
    progress: Progress | None = None,
) -> Outcome:
    """Takes zero modes away, and as many other weights, scope by scope in one sweep, and measures the loss.

    Every kind in every scope is a lane: it shares what it has in common with the model as it is, and each block's
    weights are read once. Losses are means over the positions with a target, with standard errors clustered by
    document; differences between lanes are taken document by document.

    Args:
        model: a folder, hub id or `zoo:NAME`, or a model in memory (with `tokenizer`): the tuned model of the masks,
            its base, or any other of their shapes.
        masks: a run folder of `zero-modes diff`, or a file of masks.
        data: DATA of the command line, one or several, or data already opened.
        kinds: `zero_modes`, `complement` (all other weights of the scope), `keep_only` (the same with the value 0),
            `random` (as many in each matrix) and `random_matched` (as many of each exponent of |w| in each matrix);
            `none`, the model as it is, is measured whether it is named or not.
        scopes: in the grammar of scopes; `layers`, `components` and `heads` stand for all of a kind.
        seeds: of the random kinds, each of which is drawn once for each.
        value: what weights are set to: 0, or the mean of their matrix.
        disjoint: random weights that are no zero modes.
        include: `embed`, `unembed`, `norm`, `bias`: what scopes take beside projection matrices.
        target: what the model is to the masks; `auto` looks at the fingerprints that the masks remember.
        edits: changes of the model under which everything is measured, in the grammar of edits.
        reading, loading, batch_size, seed, executor: as in `lesion.layers`.
        out, name_folder, resume, overwrite: as in `lesion.layers`.

    Returns:
        Tables `zero_mode_ablation` (a row a lane; the first one, kind `none`, is the model as it is),
        `zero_mode_contrasts` (zero modes beside each control, and beside the mean of a control's seeds), and both by
        domain.

    Raises:
        LesionError: anything that a user can mend, in one line.
    """
    read_choice(executor)
    started = time.monotonic()
    loading, reading = loading or Loading(), reading or Reading()
    asked = _Asked(tuple(kinds), tuple(seeds), value, disjoint, tuple(include), tuple(scopes))
    asked.check()
    base = combine([parse(edit) for edit in edits]) if edits else None
    sets = Masks.load(masks)
    opened = open_model(model, tokenizer=tokenizer, loading=loading)
    rows = asked.rows(opened.anatomy, masks)
    documents = open_data(data, opened, reading, seed=seed)
    bench = bench_of(opened, documents, rows, base, batch_size)
    role, notes = _role(opened, sets, target, loading)
    notes = [*notes, *_shared(asked, opened.anatomy), *_on_top(bench, base), *left_out(documents)]
    sweeping: dict[str, Any] = {"base": base, "loading": loading, "executor": executor, "progress": progress}

    def outcome_of(swept: Swept, path: Path | None) -> Outcome:
        tables = tables_of(swept.state, rows, bench, role)
        warnings = [*notes, *warnings_of(swept.state, rows, bench)]
        partial = bool(swept.state.failed or swept.state.incidents)
        return Outcome(tables, path, warnings, partial=partial)

    if out is None:
        return outcome_of(run_sweep(opened, bench, **sweeping), None)
    arguments = {
        **asked.arguments(),
        "target": role,
        "edits": list(edits),
        "batch_size": batch_size,
        "data": documents.description["specs"],
        **({} if documents is data else reading.arguments()),
        "seed": seed,
    }
    beside = {"masks": described_masks(masks, sets), **masks_read(base)}
    study = Study(STUDY, arguments, opened, documents, command, seed, beside)
    path = Path(out) / study.folder_name() if name_folder else Path(out)
    with study.open_folder(path, resume=resume, overwrite=overwrite) as folder:
        if folder.is_complete:
            return complete(folder)
        swept = run_sweep(opened, bench, folder=folder, **sweeping)
        outcome = outcome_of(swept, folder.path)
        for name, table in outcome.tables.items():
            folder.write_table(name, table)
        folder.finish(
            "partial" if outcome.partial else "complete",
            warnings=outcome.warnings,
            plan_shape=bench.plan.shape(),
            weights=swept.weights,
            counts={**folder.manifest["counts"], "n_lanes": len(bench.lanes)},
            timings=timings(documents.n_tokens, time.monotonic() - started, resumed="resumed" in folder.manifest),
        )
        return Outcome(outcome.tables, folder.path, folder.manifest["warnings"], partial=outcome.partial)


@dataclass(frozen=True)
class _Asked:
    """What is taken away, before it is known of which model."""

    kinds: tuple[str, ...]
    seeds: tuple[int, ...]
    value: Value
    disjoint: bool
    include: tuple[str, ...]
    scopes: tuple[str, ...]

    def check(self) -> None:
        """Raises InputError where something is unknown, twice, or would do nothing."""
        if unknown := [kind for kind in self.kinds if kind not in (NONE, *KINDS)]:
            raise InputError(f"--kinds {unknown[0]!r} is not known; give one or more of {', '.join((NONE, *KINDS))}")
        if not self.kinds or len(set(self.kinds)) != len(self.kinds):
            raise InputError(f"--kinds {','.join(self.kinds)!r}: give one or more, each once")
        if not self.scopes:
            raise InputError("--scopes names nothing; give for example all or layers")
        drawn = set(self.kinds) & set(RANDOM)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise InputError("--seeds: give whole numbers from 0 on, each once; random weights are drawn once for each")
        if self.disjoint and not drawn:
            raise InputError("--disjoint is for random and random_matched, which --kinds does not name")

    def arguments(self) -> dict[str, Any]:
        """Everything asked that changes numbers."""
        return {
            "kinds": list(self.kinds),
            "scopes": list(self.scopes),
            "seeds": list(self.seeds),
            "value": self.value,
            "disjoint": self.disjoint,
            "include": sorted(self.include),
        }

    def rows(self, anatomy: Anatomy, masks: str | Path) -> list[Row]:
        """A row for each scope, kind and seed, in that order.

        Raises:
            InterventionError: a scope is not one of this model.
        """
        found = []
        for scope in dict.fromkeys(scope.text for scope in expand_scopes(self.scopes, structure_of(anatomy))):
            for kind in cast("list[Kind]", [kind for kind in self.kinds if kind != NONE]):
                for seed in self.seeds if kind in RANDOM else (None,):
                    value: Value = "zero" if kind == "keep_only" else self.value
                    disjoint = self.disjoint and kind in RANDOM
                    change = set_weights(
                        masks, kind, scope, value=value, seed=seed, disjoint=disjoint, include=self.include
                    )
                    found.append(Row(kind, seed, scope, value, disjoint, change))
        return found


def bench_of(model: Model, data: Data, rows: Sequence[Row], base: Intervention | None, batch_size: int | None) -> Bench:
    """A lane for each row, and a contrast for each comparison of zero modes with a control."""
    anatomy = model.anatomy
    lanes = lay_out([row.change for row in rows], anatomy.n_layers, base=base)
    plan = make_plan(anatomy, [int(n) for n in data.lengths], len(rows), batch_size=batch_size)
    return Bench(anatomy, data, lanes, plan, contrasts=tuple(contrasts_of(rows)))


def contrasts_of(rows: Sequence[Row]) -> list[Contrast]:
    """Zero modes beside each seed of each random kind in their scope, and beside all seeds of a kind."""
    found = []
    for lane, row in enumerate(rows, start=1):
        if row.kind != "zero_modes":
            continue
        for kind in RANDOM:
            others = [at for at, one in enumerate(rows, start=1) if (one.kind, one.scope) == (kind, row.scope)]
            found += [Contrast(lane, (other,)) for other in others]
            if len(others) > 1:
                found.append(Contrast(lane, tuple(others)))
    return found


def _role(model: Model, masks: Masks, target: Target, loading: Loading) -> tuple[str, list[str]]:
    """What the model is to the masks, and what a reader must know of that."""
    known = masks.metadata
    notes = []
    if known.get("cast", "none") != "none":
        notes.append(f"the masks are of weights that were rounded to {known['cast']} first; the files have others")
    if "derived" in known:
        notes.append(f"the masks are not a pair's zero modes but {known['derived']}")
    found = _found_role(model, known, loading)
    if target != "auto":
        if found in ("tuned", "base") and target != found:
            notes.append(f"--target {target}: by its fingerprint {model.name} is the masks' {found} checkpoint")
        return target, notes
    if found == "in memory":
        notes.append("the model is in memory, so that nobody can tell whether the masks are its own: target is other")
    elif found == "other":
        notes.append(f"{model.name} is neither checkpoint of the masks: target is other")
    return (found if found in ("tuned", "base") else "other"), notes


def _found_role(model: Model, known: Mapping[str, str], loading: Loading) -> str:
    """What the fingerprints say: `tuned`, `base`, `other`, or `in memory` where there are none."""
    folder = getattr(model.anatomy.model, "name_or_path", None)
    if model.stored_fingerprint is None or not folder or not Path(folder).is_dir():
        return "in memory"
    found = {
        open_checkpoint(folder, allow_pickle=loading.allow_pickle, verify=whole).fingerprint
        for whole in {known.get(side, "").startswith("whole:") for side in ("tuned", "base")}
    }
    return next((side for side in ("tuned", "base") if known.get(side) in found), "other")


def _on_top(bench: Bench, base: Intervention | None) -> list[str]:
    """One line on rows that set weights of matrices in which `--edit` has set some already."""
    met = frozenset().union(*(bench.overlapping(index) for index in range(len(bench.lanes))))
    if base is None or not met:
        return []
    return [
        f"--edit {base.name} sets weights of {len(met)} matrices in the scopes: what it has set already is set again "
        "there by zero modes, while random weights come on top, so that differences to them favour the controls"
    ]


def _shared(asked: _Asked, anatomy: Anatomy) -> list[str]:
    """One line on heads that share keys and values, where heads are scopes."""
    of_heads = any(scope == "heads" or scope.startswith("head:") for scope in asked.scopes)
    if not of_heads or anatomy.n_kv_heads == anatomy.n_heads:
        return []
    shared = anatomy.n_heads // anatomy.n_kv_heads
    return [
        f"{shared} heads of queries share each head of keys and values, and a head's scope takes those too: "
        "the scopes of heads overlap"
    ]
