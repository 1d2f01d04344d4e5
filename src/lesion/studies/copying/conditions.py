"""The conditions under which everything is measured again: edits, or kinds of zero modes in scopes of the model."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lesion.anatomy import Anatomy
from lesion.checkpoints.masks import mask_file
from lesion.checkpoints.scopes import expand_scopes
from lesion.checkpoints.selection import KINDS, RANDOM, Kind
from lesion.errors import InputError, InterventionError
from lesion.interventions import Intervention, Rewriting, combine, parse, set_weights, structure_of
from lesion.interventions.rewriting import refuse_nothing
from lesion.results import file_digest

NONE = "none"
"""The condition without an ablation: the model, under its base edits if there are any."""


@dataclass(frozen=True)
class Sets:
    """Weights of masks that are set, as a list of conditions.

    Attributes:
        masks: a run folder of `zero-modes diff`, or a file of masks.
        kinds: of `zero_modes`, `complement`, `keep_only`, `random`, `random_matched`.
        scopes: `all`, `layer:1`, `head:1:2` …; `layers`, `components` and `heads` stand for all of a kind.
        seeds: of the random kinds; each gives a condition.
    """

    masks: str
    kinds: tuple[str, ...] = ("zero_modes", "random", "random_matched")
    scopes: tuple[str, ...] = ("all",)
    seeds: tuple[int, ...] = (0, 1, 2)

    def check(self) -> None:
        """Raises InputError where kinds, scopes or seeds are unknown, repeated or missing."""
        for name, given in (("--kinds", self.kinds), ("--scopes", self.scopes), ("--seeds", self.seeds)):
            if len(set(given)) != len(given) or not given:
                raise InputError(f"{name} {','.join(map(str, given))!r}: give one or more, each once")
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise InputError(f"--kinds {unknown[0]!r} is not known; kinds are {', '.join(KINDS)}")
        if min(self.seeds) < 0:
            raise InputError(f"--seeds {min(self.seeds)} is negative; give 0 or more")


@dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes:
        name: unique in a run.
        intervention: what is in place, the base included; None for the model as it is.
        kind: `none`, a kind of weights, or the kind of another edit (`drop`, `drop_attn` …).
        scope: where weights are set; None where none are.
        seed: of a random kind.
    """

    name: str
    intervention: Intervention | None
    kind: str
    scope: str | None = None
    seed: int | None = None


def conditions_of(
    anatomy: Anatomy, base: Sequence[Intervention], edits: Sequence[Intervention], sets: Sets | None
) -> list[Condition]:
    """All conditions in order, the one without an ablation first.

    Raises:
        InterventionError: a block or a scope that the model does not have, an edit that is there twice, or an edit of
            a block that another one drops.
    """
    found = [Condition(NONE, combine(base) if base else None, NONE)]
    found += [_of_edit(edit, base) for edit in edits]
    if sets:
        for kind, scope, seed in _expanded(anatomy, sets):
            intervention = combine([*base, set_weights(sets.masks, kind, scope, seed=seed)])
            name = f"{kind}@{scope}" + ("" if seed is None else f"#{seed}")
            found.append(Condition(name, intervention, kind, scope, seed))
    for condition in found:
        _check(condition, anatomy.n_layers)
    names = [condition.name for condition in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InterventionError(f"the condition {repeated[0]} is there twice; give each once")
    return found


def without_empty(anatomy: Anatomy, conditions: Sequence[Condition], n_edits: int) -> tuple[list[Condition], list[str]]:
    """The conditions that set at least one weight, and a line for each of the others.

    Looked up in the masks before anything is run, so that a long run does not end at the first of them.

    Args:
        n_edits: conditions that were named one by one, behind the one without an ablation: these must do something.

    Raises:
        InterventionError: an edit that was named sets no weight at all.
        InputError, ModelError: masks that are damaged, or do not fit the model.
    """
    edits = [edit for one in conditions if one.intervention for edit in one.intervention.weights]
    if not edits:
        return list(conditions), []
    rewriting, kept, lines = Rewriting(anatomy, edits), [], []
    for number, condition in enumerate(conditions):
        own = condition.intervention.weights if condition.intervention else ()
        order = condition.intervention.order(anatomy.n_layers) if condition.intervention else ()
        running = frozenset(layer for layer in order if layer is not None)
        empty = [edit for edit in own if not rewriting.n_wanted(edit, running)]
        if empty and number <= n_edits:
            refuse_nothing(rewriting, empty, running)
        if empty:
            lines.append(f"{condition.name}: there are no such weights in blocks that run; it was left out")
        else:
            kept.append(condition)
    return kept, lines


def masks_digest(interventions: Sequence[Intervention], sets: Sets | None) -> dict[str, dict[str, str]]:
    """The files of masks that are read, by name, with their SHA-256.

    Raises:
        InputError: one is not there.
    """
    paths = [edit.masks for one in interventions for edit in one.weights]
    paths += [os.path.abspath(Path(sets.masks).expanduser())] if sets else []  # noqa: PTH100  (a link stays one)
    found = {}
    for number, path in enumerate(dict.fromkeys(paths)):
        file = mask_file(path)
        if not file.is_file():
            raise InputError(
                f"there are no masks at {path}: give a run folder of `zero-modes diff`, or a file of masks"
            )
        found[f"masks_{number + 1}" if number else "masks"] = {"path": path, "sha256": file_digest(file)}
    return found


def parsed(edits: Sequence["str | Intervention"]) -> list[Intervention]:
    """Edits of the grammar, or interventions as they are."""
    return [parse(edit) if isinstance(edit, str) else edit for edit in edits]


def _of_edit(edit: Intervention, base: Sequence[Intervention]) -> Condition:
    weights = edit.weights[0] if len(edit.weights) == 1 else None
    name = edit.name
    for one in edit.weights:
        name = name.replace(one.masks, Path(one.masks).name)
    kind = edit.name.partition(":")[0].replace("-", "_")
    scope, seed = (weights.scope, weights.seed) if weights else (None, None)
    return Condition(name, combine([*base, edit]), kind, scope, seed)


def _expanded(anatomy: Anatomy, sets: Sets) -> list[tuple[Kind, str, int | None]]:
    known: dict[str, Kind] = {kind: kind for kind in KINDS}
    scopes = [scope.text for scope in expand_scopes(sets.scopes, structure_of(anatomy))]
    return [
        (known[kind], scope, seed)
        for scope in scopes
        for kind in sets.kinds
        for seed in (sets.seeds if kind in RANDOM else (None,))
    ]


def _check(condition: Condition, n_layers: int) -> None:
    intervention = condition.intervention
    if intervention is None:
        return
    order = intervention.order(n_layers)
    silent = [edit.label for edit in intervention.edits if edit.layer not in order]
    if silent:
        raise InterventionError(f"{condition.name}: {silent[0]} never runs, because another edit drops its block")
