"""Where zero modes sit in the ranking by Wanda's score (paper `zero-modes`, section 5, footnote 16)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from lesion.anatomy import Anatomy, Loading, Model, refuse_packed
from lesion.anatomy.renaming import renaming
from lesion.anatomy.wording import some
from lesion.checkpoints.align import common_prefix
from lesion.checkpoints.components import place
from lesion.checkpoints.masks import Masks
from lesion.checkpoints.opened import Checkpoint, Stored, open_checkpoint
from lesion.data import ImageData, TextData
from lesion.engine import Bench, Progress, Watch, lay_out, make_plan
from lesion.engine.executors import read_choice
from lesion.errors import InputError, ModelError
from lesion.results import RunFolder
from lesion.statistics import SumOfSquares
from lesion.studies.layers_results import warnings_of
from lesion.studies.setting import Outcome, Reading, Study, left_out, open_data, open_model
from lesion.studies.sweeping import Swept, run_sweep, timings
from lesion.studies.zero_modes.running import complete, described_masks
from lesion.studies.zero_modes.wanda_results import Projection, rank, tables_of

STUDY = "zero-modes wanda"
NORMS = "input_norms"
"""Name of the arrays in which the norms of activations are kept."""


def wanda(
    model: str | Path,
    masks: str | Path,
    data: "str | Sequence[str] | TextData | ImageData" = "stdlib",
    *,
    reading: Reading | None = None,
    loading: Loading | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    executor: str = "here",
    out: Path | str | None = None,
    name_folder: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "lesion.zero_modes.wanda(...)",
    progress: Progress | None = None,
    on_weights: Progress | None = None,
) -> Outcome:
    """Counts zero modes in each tenth of the weights of every projection, ranked by Wanda's score.

    The score of a weight is |W_ij| times the Euclidean norm of input coordinate j over all real tokens of the data,
    in the dense model (Sun et al. 2023, section 3; no input comes from a pruned layer). Weights are ranked within
    their output row. Beside it stand the same tenths by |W_ij| alone and by the norm alone.

    The model runs once over the data, without its head; then its weights are read from its files, some rows at a time
    (matrices that are stored as (in, out): whole).

    Args:
        model: a folder, hub id or `zoo:NAME`: the tuned model of the masks, or any other of their shapes.
        masks: a run folder of `zero-modes diff`, or a file of masks.
        data, reading, loading, batch_size, seed, executor: as in `lesion.layers`.
        out, name_folder, resume, overwrite: as in `lesion.layers`.
        progress: told how many tokens of all have been read.
        on_weights: told how many weights of all have been ranked.

    Returns:
        Tables `zero_modes_wanda` (a row a tensor, ranking and tenth; sums over blocks and over all projections have no
        tensor) and `zero_modes_wanda_neurons` (a row an MLP neuron and matrix).

    Raises:
        LesionError: anything that a user can mend, in one line.
    """
    started = time.monotonic()
    read_choice(executor)
    loading, reading = loading or Loading(), reading or Reading()
    asked = _prepared(model, masks, data, reading, loading, batch_size, seed)
    sweeping: dict[str, Any] = {"loading": loading, "executor": executor, "progress": progress}
    if out is None:
        swept = run_sweep(asked.model, asked.bench, **sweeping)
        tables = asked.ranked(norms_of(swept), on_weights)
        return Outcome(tables, None, asked.warnings(swept), partial=bool(swept.state.failed))
    arguments = {
        "batch_size": batch_size,
        "data": asked.data.description["specs"],
        **({} if asked.data is data else reading.arguments()),
        "seed": seed,
    }
    beside = {"masks": described_masks(masks, asked.masks)}
    study = Study(STUDY, arguments, asked.model, asked.data, command, seed, beside)
    path = Path(out) / study.folder_name() if name_folder else Path(out)
    with study.open_folder(path, resume=resume, overwrite=overwrite) as folder:
        if folder.is_complete:
            return complete(folder)
        swept = run_sweep(asked.model, asked.bench, folder=folder, **sweeping)
        norms = norms_of(swept)
        _keep_norms(folder, asked.projections, norms, study)
        tables = asked.ranked(norms, on_weights)
        for name, table in tables.items():
            folder.write_table(name, table)
        counts = {"n_tokens_seen": seen(swept), "n_tensors": len(asked.projections)}
        folder.finish(
            "partial" if swept.state.failed else "complete",
            warnings=asked.warnings(swept),
            plan_shape=asked.bench.plan.shape(),
            weights=swept.weights,
            counts={**folder.manifest["counts"], **counts},
            timings=timings(asked.data.n_tokens, time.monotonic() - started, resumed="resumed" in folder.manifest),
        )
        return Outcome(tables, folder.path, folder.manifest["warnings"], partial=bool(swept.state.failed))


@dataclass(frozen=True)
class _Prepared:
    """What was asked, opened and checked.

    Attributes:
        checkpoint: the model's files, from which weights are read a piece at a time.
        projections: those that are ranked, in the order of the bench's watches.
        notes: what a reader of the tables must know before anything is run.
    """

    model: Model
    data: "TextData | ImageData"
    masks: Masks
    checkpoint: Checkpoint
    projections: Sequence[Projection]
    bench: Bench
    notes: Sequence[str]

    def ranked(self, norms: Sequence[np.ndarray], on_weights: Progress | None) -> dict[str, pd.DataFrame]:
        """The tables; refuses files that changed while they were read."""
        found = rank(self.projections, norms, self.masks, on_weights)
        self.checkpoint.refuse_changed()
        return tables_of(found)

    def warnings(self, swept: Swept) -> list[str]:
        """A line each."""
        return [*self.notes, *warnings_of(swept.state, self.bench)]


def _prepared(
    model: str | Path,
    masks: str | Path,
    data: "str | Sequence[str] | TextData | ImageData",
    reading: Reading,
    loading: Loading,
    batch_size: int | None,
    seed: int,
) -> _Prepared:
    """Masks are held against the model's files before the model is loaded, which may take minutes."""
    sets = Masks.load(masks)
    verify = sets.metadata.get("tuned", "").startswith("whole:")  # a fingerprint of the same kind can be compared
    checkpoint = open_checkpoint(str(model), allow_pickle=loading.allow_pickle, verify=verify)
    counterparts = _counterparts(sets, checkpoint)
    opened = open_model(model, loading=loading)
    anatomy = opened.anatomy
    refuse_packed(anatomy, "Wanda's score")
    chosen, spread = projections(anatomy, counterparts)
    documents = open_data(data, opened, reading, seed=seed)
    plan = make_plan(anatomy, [int(n) for n in documents.lengths], 0, batch_size=batch_size)
    empty = {width: partial(SumOfSquares, width) for width in {projection.width for projection in chosen}}
    watches = tuple(Watch(p.layer, p.module, "input", empty[p.width]) for p in chosen)
    bench = Bench(anatomy, documents, lay_out([], anatomy.n_layers), plan, watches, scored=False)
    notes = [*_notes(sets, checkpoint, spread), *left_out(documents)]
    return _Prepared(opened, documents, sets, checkpoint, chosen, bench, notes)


def norms_of(swept: Swept) -> list[np.ndarray]:
    """Norms of the input coordinates of each projection, float64."""
    return [_sums(statistic).norms().numpy() for statistic in swept.state.watched]


def seen(swept: Swept) -> int:
    """Tokens (of images: positions) that the norms are of."""
    return _sums(swept.state.watched[0]).n_positions


def _sums(statistic: object) -> SumOfSquares:
    assert isinstance(statistic, SumOfSquares)
    return statistic


Counterparts = Mapping[str, Stored]
"""Tensors of a checkpoint by the names under which masks know them."""


def _counterparts(masks: Masks, checkpoint: Checkpoint) -> Counterparts:
    """The checkpoint's tensor for each mask of a projection inside blocks.

    Raises:
        InputError: there are no such masks.
        ModelError: the checkpoint lacks one, or has it in another shape.
    """
    names = [name for name in masks if place(name).is_projection]
    if not names:
        raise InputError("there are no masks of projection matrices inside blocks")
    prefix = common_prefix(masks, checkpoint.tensors)
    stored = {name.removeprefix(prefix): tensor for name, tensor in checkpoint.tensors.items()}
    lacking = [name for name in names if name.removeprefix(prefix) not in stored]
    if lacking:
        raise ModelError(
            f"{checkpoint.name} has no counterpart of {len(lacking)} of the {len(names)} masks: {some(lacking)}; "
            "give the tuned checkpoint that they were made with, or one of its shapes"
        )
    found = {name: stored[name.removeprefix(prefix)] for name in names}
    for name, tensor in found.items():
        if tensor.shape != masks.shape(name):
            raise ModelError(
                f"{name} is {masks.shape(name)} in the masks, and {tensor.shape} in {checkpoint.name}; give the tuned "
                "checkpoint that they were made with, or one of its shapes"
            )
    return found


def projections(anatomy: Anatomy, tensors: Counterparts) -> tuple[list[Projection], list[str]]:
    """The module that each tensor is the weight of.

    Returns:
        Projections in the order of the tensors, and names of tensors that belong to experts: each token is sent to
        a few of those, so that they have no input that all tokens pass.

    Raises:
        ModelError: a tensor that is the weight of no projection, or none that is.
    """
    renamed = renaming(anatomy.model)
    found, spread = [], []
    for name, tensor in tensors.items():
        front = f"{anatomy.family.blocks}.{place(name).layer}."
        inside = renamed(tensor.name).removesuffix(".weight").removeprefix(front)
        if anatomy.family.experts and f"{inside}.".startswith(f"{anatomy.family.experts}."):
            spread.append(name)
        else:
            found.append(_projection(anatomy, name, tensor, inside))
    if not found:
        raise ModelError(f"all projections that the masks are of belong to experts: {some(spread)}")
    return found, spread


def _projection(anatomy: Anatomy, name: str, tensor: Stored, path: str) -> Projection:
    from transformers.pytorch_utils import Conv1D  # here, so that comparing files does not wait for transformers

    layer, component = place(name)
    assert layer is not None
    module = dict(anatomy.blocks[layer].named_modules()).get(path) if layer < anatomy.n_layers else None
    if not isinstance(module, nn.Linear | Conv1D) or tuple(module.weight.shape) != tensor.shape:
        raise ModelError(
            f"{name} is not the weight of a projection in the blocks of this {type(anatomy.model).__name__}, so that "
            "nobody can say what its inputs are"
        )
    return Projection(name, layer, component, path, tensor, transposed=isinstance(module, Conv1D))


def _notes(masks: Masks, checkpoint: Checkpoint, spread: Sequence[str]) -> list[str]:
    """What a reader of the tables must know of the masks, a line each."""
    known = masks.metadata
    notes = []
    if spread:
        notes.append(
            f"{len(spread)} projections of experts are in no number, because each token is sent to a few of them only: "
            f"{some(list(spread))}"
        )
    if known.get("cast", "none") != "none":
        notes.append(f"the masks are of weights that were rounded to {known['cast']} first; the files have others")
    if "derived" in known:
        notes.append(f"the masks are not a pair's zero modes but {known['derived']}")
    elif known.get("tuned") != checkpoint.fingerprint:
        notes.append(f"{checkpoint.name} is not the tuned checkpoint that the masks were made with")
    return notes


def _keep_norms(folder: RunFolder, chosen: Sequence[Projection], norms: Sequence[np.ndarray], study: Study) -> None:
    arrays = {projection.name: norm for projection, norm in zip(chosen, norms, strict=True)}
    says = {
        "what": "Euclidean norm of each input coordinate over all tokens",
        "model": study.model.fingerprint,
        "data": study.data.fingerprint,
    }
    folder.write_arrays(NORMS, arrays, says)
