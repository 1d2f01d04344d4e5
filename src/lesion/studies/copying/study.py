"""Does a model copy, with which heads, and what of it is left under edits (paper `zero-modes`, section 3.1, App. B)."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lesion.anatomy import Loading, Model
from lesion.data.copy_tasks import TASKS, Drawing
from lesion.engine import Progress
from lesion.interventions import Intervention, in_eval_mode
from lesion.results import RunFolder, digest, versions
from lesion.studies.copying.conditions import Sets
from lesion.studies.copying.running import Count, Run
from lesion.studies.copying.setting import Looking, Prepared, prepare
from lesion.studies.setting import Outcome, Study
from lesion.studies.sweeping import timings
from lesion.studies.zero_modes.running import complete

STUDY = "copying"


def copying(
    model: "str | Path | nn.Module | Model",
    *,
    tasks: Sequence[str] = TASKS,
    drawing: Drawing | None = None,
    base: Sequence["str | Intervention"] = (),
    edits: Sequence["str | Intervention"] = (),
    sets: Sets | None = None,
    looking: Looking | None = None,
    generate: int = 0,
    loading: Loading | None = None,
    batch_size: int | None = None,
    tokenizer: Any = None,
    out: Path | str | None = None,
    name_folder: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "lesion.copying(...)",
    progress: Progress | None = None,
) -> Outcome:
    """Measures copying of repeated integers and random tokens, depth by depth and head by head.

    At the end of each prompt the model's final norm and head read the residual stream after the embedding and after
    attention and MLP of every block (Fig 3). Heads are scored on sequences of their own, and followed on the tasks:
    how much the last token attends to earlier occurrences of the answer (Tab 4).

    Args:
        model: a folder, hub id or `zoo:NAME`, or a model in memory (with `tokenizer`); it predicts the next token.
        tasks: of `integers` (5 four-digit integers, twice) and `tokens` (10 random tokens, three times).
        drawing: how examples are drawn: how many, from which seed, where they are cut …
        base: edits under which everything is measured (`drop:3`).
        edits: conditions: all is measured again under each of these, one at a time.
        sets: more conditions: kinds of weights of a pair's masks, in scopes of the model.
        looking: whose attention is followed, and what an induction head is.
        generate: also generate so many tokens greedily, and follow attention at every step (Tab 10).
        loading: how the model is loaded.
        batch_size: examples in a batch; None fills it.
        out: run folder; None keeps the tables in memory. The same call again resumes it.
        name_folder: make the run folder inside `out`, named after the study, the model and a hash of the arguments.
        resume: refuse to start a run that has not been started before.
        progress: told how many tokens of all have been read.

    Returns:
        Tables `copying` (a row a task and condition; changes are paired, over the same examples), `copying_depths`,
        `heads`, `copying_attention`, and `copying_generation` where tokens were generated.

    Raises:
        LesionError: anything that a user can mend, in one line.
    """
    prepared = prepare(
        model,
        tasks=tasks,
        drawing=drawing,
        base=base,
        edits=edits,
        sets=sets,
        looking=looking,
        generate=generate,
        loading=loading,
        batch_size=batch_size,
        tokenizer=tokenizer,
    )
    if out is None:
        return _measured(prepared, None, batch_size, progress)
    seed = prepared.arguments["seed"]
    study = Study(STUDY, prepared.arguments, prepared.model, prepared.data, command, seed, prepared.beside)
    path = Path(out) / study.folder_name() if name_folder else Path(out)
    with study.open_folder(path, resume=resume, overwrite=overwrite) as folder:
        if folder.is_complete:
            return complete(folder)
        return _measured(prepared, folder, batch_size, progress)


def _measured(
    prepared: Prepared, folder: RunFolder | None, batch_size: int | None, progress: Progress | None
) -> Outcome:
    """The run itself; with a folder, each condition is a shard of it."""
    started = time.monotonic()
    store = folder.shard_store(_shard_key(prepared)) if folder else None
    run = Run(prepared, store, batch_size, Count(prepared, progress))
    with in_eval_mode(prepared.model.anatomy.model), torch.inference_mode():
        run.all()
    tables, warnings = run.tables(), run.warnings()
    partial = bool(tables["copying"]["accuracy"].isna().any())
    if folder is None:
        return Outcome(tables, None, warnings, partial=partial)
    for name, table in tables.items():
        folder.write_table(name, table)
    for task, arrays in run.maps().items():
        folder.write_arrays(f"attention_{task}", arrays, {"what": "mean attention map over examples, row by column"})
    folder.finish(
        "partial" if partial else "complete",
        warnings=warnings,
        followed=[f"{layer}:{head}" for layer, head in run.chosen],
        timings=timings(run.count.done, time.monotonic() - started, resumed="resumed" in folder.manifest),
    )
    return Outcome(tables, folder.path, folder.manifest["warnings"], partial=partial)


def _shard_key(prepared: Prepared) -> str:
    """Names shards that may be read again: another kind of device, or another version, rounds otherwise."""
    made_by = {name: version for name, version in versions().items() if name in ("lesion", "torch", "transformers")}
    known = {"arguments": prepared.arguments, "data": prepared.data.fingerprint, "versions": made_by}
    return digest({**known, "device": prepared.model.anatomy.device.type})
