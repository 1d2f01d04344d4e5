"""`lesion train pretrain` and `lesion train finetune`: models made to be looked at (spec `zero-modes`, section 4)."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lesion.anatomy.wording import quiet_transformers
from lesion.data import ImageData
from lesion.errors import InputError
from lesion.results import RunFolder, commit, run_name, versions
from lesion.studies.setting import Outcome, Reading
from lesion.studies.training.counting import ZeroModeCounter
from lesion.studies.training.holding import hold
from lesion.studies.training.loop import Keeper, Loop, Told, is_due, last_whole, make_loop
from lesion.studies.training.recipe import Keeping, Recipe
from lesion.studies.training.starting import Specs, Start, from_model, from_nothing, split
from lesion.studies.training.storing import DTYPES, ModelStore, lost_models, stored_models

MODELS, TRAINER = "models", "trainer"


def pretrain(
    config: str,
    data: Specs = "stdlib",
    *,
    tokenizer: str | Path | None = None,
    vocabulary: int | None = None,
    reading: Reading | None = None,
    recipe: Recipe | None = None,
    keeping: Keeping | None = None,
    seed: int = 0,
    device: str = "auto",
    out: Path | str,
    name_folder: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "lesion.training.pretrain(...)",
    progress: Told | None = None,
) -> Outcome:
    """Trains one of the small architectures from random weights.

    Weights and the optimiser's states are float32 (or held in a type, `Recipe.hold`); what is stored is rounded once.

    Args:
        config: a name of `ARCHITECTURES`.
        data: DATA, one or several; documents are joined into full contexts.
        tokenizer: folder of a tokenizer; None trains a byte-level BPE on the data.
        vocabulary: ids of that BPE; None takes the architecture's.
        reading: how data are read; `tokens` None reads everything once.
        out: run folder; the models are in `models/step-NNNNNN/DTYPE`.

    Returns:
        Tables `training` (loss by step), `training_evaluation` (on what was held out) and, where it was asked for,
        `training_zero_modes`.

    Raises:
        LesionError: anything that a user can mend, in one line.
    """
    reading = reading or Reading(tokens=None)
    said = {"config": config, "vocabulary": vocabulary, "tokenizer": str(tokenizer) if tokenizer else None}
    asked = _Asked(
        "train pretrain", said, data, reading, recipe or Recipe(), keeping or Keeping(), seed, device, command
    )
    where = _Where(Path(out), name_folder, resume, overwrite)
    return _train(lambda: from_nothing(config, data, tokenizer, vocabulary, reading, seed), asked, where, progress)


def finetune(
    model: str | Path,
    data: Specs = "stdlib",
    *,
    allow_pickle: bool = False,
    reading: Reading | None = None,
    recipe: Recipe | None = None,
    keeping: Keeping | None = None,
    seed: int = 0,
    device: str = "auto",
    out: Path | str,
    name_folder: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "lesion.training.finetune(...)",
    progress: Told | None = None,
) -> Outcome:
    """Goes on training a stored model, on other data; arguments and tables are those of `pretrain`.

    Weights are widened to float32 first, exactly; zero modes are counted against them as they were stored. The
    learning rate is 1e-4 unless the recipe says otherwise, and a table of positions that is all zeros stays so.
    """
    reading, recipe = reading or Reading(tokens=None), recipe or Recipe(learning_rate=1e-4)
    said = {"model": str(model), "allow_pickle": allow_pickle}
    asked = _Asked("train finetune", said, data, reading, recipe, keeping or Keeping(), seed, device, command)
    where = _Where(Path(out), name_folder, resume, overwrite)
    return _train(
        lambda: from_model(str(model), data, reading, seed, allow_pickle=allow_pickle), asked, where, progress
    )


@dataclass(frozen=True)
class _Asked:
    study: str
    start: dict[str, Any]
    data: Specs
    reading: Reading
    recipe: Recipe
    keeping: Keeping
    seed: int
    device: str
    command: str

    def arguments(self) -> dict[str, Any]:
        """Everything that changes numbers; documents are always packed."""
        read = {key: value for key, value in self.reading.arguments().items() if key != "pack"}
        return {
            **self.start,
            "data": [self.data] if isinstance(self.data, str) else list(self.data),
            **read,
            **self.recipe.arguments(),
            **self.keeping.arguments(),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class _Where:
    out: Path
    name_folder: bool
    resume: bool
    overwrite: bool


def _train(start: Callable[[], Start], asked: _Asked, where: _Where, progress: Told | None) -> Outcome:
    asked.recipe.check()
    asked.keeping.check()
    if not 0 <= asked.seed < 2**32:
        raise InputError(f"--seed {asked.seed}: give a whole number from 0 to {2**32 - 1}")
    device = _device(asked.device)
    begun = start()
    data, share = begun.data, asked.keeping.held_out
    trained, held_out, notes = split(data.domain_of, data.domains, share, gap=int(data.objective != "image"))
    described = begun.model.describe()
    identity = {
        "study": asked.study,
        "arguments": asked.arguments(),
        "model": described["fingerprint"],
        "data": data.fingerprint,
        "lesion": versions()["lesion"],
    }
    path = where.out
    if where.name_folder:
        path /= run_name(asked.study.replace(" ", "-"), begun.model.name, identity)
    if where.resume and not (path / "run.json").exists():
        raise InputError(f"--resume: {path} holds no run; leave --resume out to start it")
    manifest = {
        "study": asked.study,
        "command": asked.command,
        "arguments": asked.arguments(),
        "versions": versions(),
        "commit": commit(),
        "device": device,
        "dtype": asked.recipe.compute,
        "seeds": [asked.seed],
        "model": described,
        "data": {**data.description, "fingerprint": data.fingerprint},
        "models": {},
    }
    with RunFolder.open(path, identity=identity, manifest=manifest, overwrite=where.overwrite) as folder:
        if folder.is_complete:
            lost = lost_models(folder.path / MODELS, folder.manifest["models"])
            if not lost:
                return _complete(folder)
            folder.finish("running")
            shutil.rmtree(folder.path / TRAINER, ignore_errors=True)
            notes.append(f"{', '.join(lost)} was missing or changed: the run was done again")
        with quiet_transformers():
            run = _Run(begun, asked, folder, device, trained, held_out, progress)
            tables, facts = run.run()
        for table, frame in tables.items():
            folder.write_table(table, frame)
        warnings = [*begun.warnings, *notes, *run.warnings]
        folder.finish("complete", warnings=warnings, models=stored_models(folder.path / MODELS), **facts)
        shutil.rmtree(folder.path / TRAINER, ignore_errors=True)  # three times the model, and of no more use
        return Outcome(tables, folder.path, folder.manifest["warnings"])


def _complete(folder: RunFolder) -> Outcome:
    shutil.rmtree(folder.path / TRAINER, ignore_errors=True)
    tables = {name: folder.read_table(name) for name in folder.manifest["tables"]}
    return Outcome(tables, folder.path, folder.manifest.get("warnings", []), resumed_complete=True)


def last_model(run: Path) -> Path | None:
    """The folder of the last stored step of a run, with a folder a type in it."""
    found = sorted((run / MODELS).glob("step-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return found[-1] if found else None


class _Run:
    """One training, from its start or from where it was stopped."""

    def __init__(
        self,
        begun: Start,
        asked: _Asked,
        folder: RunFolder,
        device: str,
        trained: list[int],
        held_out: list[int],
        told: Told | None,
    ) -> None:
        recipe, keeping, data = asked.recipe, asked.keeping, begun.data
        self.warnings: list[str] = []
        self._model: Any = begun.model.anatomy.model.to(device)
        self._recipe, self._keeping, self._data = recipe, keeping, data
        self._hold()
        self._n_read = min(recipe.batch_size, len(trained)) * int(data.lengths[trained[0]])
        self._counter = ZeroModeCounter(self._model, keeping.dtypes) if keeping.count_every else None
        self._store = ModelStore(folder.path / MODELS, keeping.dtypes, begun.beside)
        outputs = begun.model.anatomy.vocabulary
        self._keeper = Keeper(keeping, data, held_out, self._store, self._counter, told, self._n_read, outputs)
        self._trainer = folder.path / TRAINER
        self._loop = make_loop(
            self._model, data, trained, recipe, keeping, self._keeper, self._trainer, seed=asked.seed, device=device
        )
        self._counts = {"n_sequences": len(trained), "n_held_out": len(held_out)}

    def _hold(self) -> None:
        if self._recipe.hold is None:
            return
        rounded = hold(self._model, self._recipe.hold, DTYPES[self._recipe.hold])
        if rounded:
            self.warnings.append(
                f"to be held in {self._recipe.hold}, {rounded:,} weights of the start were rounded: zero modes are "
                "counted against the rounded start, which is stored as step 0"
            )

    def run(self) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
        """Trains to the end; tables, and what the manifest says of them."""
        earlier = self._earlier()
        if earlier is None:
            self._store.store(self._model, 0)
            if self._counts["n_held_out"]:
                self._keeper.evaluate(self._model, 0)
        else:
            self._keeper.restore(earlier)
        loop, before = self._loop, len(self._loop.losses)
        started = time.monotonic()
        if earlier is None or not _is_last(earlier):  # the Trainer would go one step beyond its end
            loop.train(resume_from_checkpoint=str(earlier) if earlier else None)
        loop.read_losses()
        seconds = time.monotonic() - started
        n_steps = len(loop.losses)
        if self._recipe.warmup >= n_steps:
            self.warnings.append(
                f"the rate rises for {self._recipe.warmup} steps (--warmup) and there were {n_steps}: "
                "it never reached --learning-rate"
            )
        unit = "images" if isinstance(self._data, ImageData) else "tokens"
        counts = {
            "n_steps": n_steps,
            f"n_{unit}_trained": n_steps * self._n_read,
            **self._counts,
            "n_parameters": sum(parameter.numel() for parameter in self._model.parameters()),
        }
        speed = (n_steps - before) * self._n_read / seconds
        return self._tables(unit), {
            "counts": counts,
            "timings": {"seconds": seconds, **({f"{unit}_per_second": speed} if n_steps > before else {})},
        }

    def _earlier(self) -> Path | None:
        """The checkpoint to go on from; none where a model that was stored before it is gone."""
        earlier = last_whole(self._trainer)
        if earlier is None:
            return None
        step = int(earlier.name.rpartition("-")[2])
        due = [0, *(done for done in range(1, step + 1) if is_due(done, self._keeping.store_every))]
        due += [step] if _is_last(earlier) else []
        gone = [self._store.at(done).name for done in due if not self._store.at(done).is_dir()]
        if not gone:
            return earlier
        self.warnings.append(f"{', '.join(gone)} was missing from {MODELS}/: the run was begun again")
        shutil.rmtree(self._trainer)
        return None

    def _tables(self, unit: str) -> dict[str, pd.DataFrame]:
        tables = {"training": _losses(self._loop, self._keeping.log_every, self._n_read, unit)}
        if self._keeper.evaluations:
            rows = pd.DataFrame(self._keeper.evaluations)
            whole = rows["domain"].isna()
            tables["training_evaluation"] = rows[whole].drop(columns="domain").reset_index(drop=True)
            if not whole.all():
                tables["training_evaluation_by_domain"] = rows[~whole].reset_index(drop=True)
        if self._counter is not None:
            tables["training_zero_modes"] = self._counter.table()
        return tables


def _is_last(checkpoint: Path) -> bool:
    """Whether a checkpoint of the Trainer is that of its last step."""
    state = json.loads((checkpoint / "trainer_state.json").read_bytes())
    return bool(state["global_step"] >= state["max_steps"])


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked not in ("cpu", "cuda"):
        raise InputError(f"--device {asked!r}: training takes auto, cpu or cuda")
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no CUDA device; give cpu")
    return asked


def _losses(loop: Loop, every: int, n_read: int, unit: str) -> pd.DataFrame:
    """A row for every so many steps, the last one of what is left.

    The loss is the mean over these steps; rate and norm of the gradient (before it was clipped) are those of the last.
    """
    ends = [*range(every, len(loop.losses), every), len(loop.losses)]
    rows = []
    for start, end, norm in zip([0, *ends], ends, loop.norms, strict=False):
        rows.append(
            {
                "step": end,
                f"n_{unit}": end * n_read,
                "loss_nats": sum(loop.losses[start:end]) / (end - start),
                "learning_rate": loop.rates[end - 1],
                "gradient_norm": norm,
            }
        )
    return pd.DataFrame(rows)
