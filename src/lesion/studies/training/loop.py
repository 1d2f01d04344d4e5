"""The Trainer of transformers, told what to count, to store, and how to go on after it was killed."""

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lesion.data import Batch, ImageData, TextData
from lesion.errors import NonFiniteError
from lesion.studies.training.counting import ZeroModeCounter
from lesion.studies.training.evaluation import evaluate
from lesion.studies.training.holding import HeldAdamW
from lesion.studies.training.recipe import Keeping, Recipe
from lesion.studies.training.storing import DTYPES, ModelStore, digests, disk_errors, settle


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """The Trainer imports bitsandbytes where it is installed, which warns of a kernel that nobody asked for."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


with _quiet_import():
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

Data = TextData | ImageData
ROWS, MASKS, WHOLE = "lesion.json", "lesion.safetensors", "lesion.whole"
"""What lesion adds to a checkpoint of the Trainer; the last one holds digests of all other files, and comes last."""


@dataclass(frozen=True)
class Progress:
    """Where a run is after a step.

    Attributes:
        step, steps: done, and in all.
        loss_nats: of the latest step that is known; a GPU is asked every `Keeping.log_every` steps. NaN before that.
        n_read: tokens (or images) a step.
        unit: `tokens` or `images`.
    """

    step: int
    steps: int
    loss_nats: float
    n_read: int
    unit: str


Told = Callable[[Progress], None]


class Windows(torch.utils.data.Dataset[int]):
    """Numbers of the sequences to train on; a batch of them is made in one go."""

    def __init__(self, indices: Sequence[int]) -> None:
        self._indices = np.asarray(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: int) -> int:
        return int(self._indices[place])


def collate(data: Data) -> Callable[[list[int]], dict[str, Tensor]]:
    """Makes the model's arguments of a batch, labels as transformers wants them: not shifted, -100 where none count."""

    def together(indices: list[int]) -> dict[str, Tensor]:
        return {**(batch := data.batch(indices)).model_inputs(), "labels": labels(batch)}

    return together


def labels(batch: Batch) -> Tensor:
    """What a transformers model expects as `labels` beside a batch."""
    if batch.ids is None:
        return batch.targets[:, 0]
    return batch.ids if batch.mask is None else batch.ids.masked_fill(batch.mask == 0, -100)


class Loop(Trainer):  # type: ignore[misc]
    """A Trainer that keeps the loss of every step and holds parameters in a type."""

    def __init__(self, recipe: Recipe, **options: Any) -> None:
        super().__init__(**options)
        self._recipe = recipe
        self._unread: list[Tensor] = []
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.norms: list[float] = []

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over float32 masters, or over parameters that are held in a type."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        decayed = set(self.get_decay_parameter_names(self.model))
        groups = [
            {"params": [p for name, p in named if name in decayed], "weight_decay": self._recipe.weight_decay},
            {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
        ]
        held = DTYPES[self._recipe.hold] if self._recipe.hold else None
        self.optimizer = HeldAdamW(groups, held=held, lr=self._recipe.learning_rate, fused=True)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass, whose loss is kept."""
        self.rates.append(float(self.optimizer.param_groups[0]["lr"]))
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._unread.append(loss.detach())
        if loss.device.type == "cpu":  # asking a GPU at every step would make it wait
            self.read_losses()
        return loss

    def read_losses(self) -> None:
        """Fetches the losses of the steps since the last time.

        Raises:
            NonFiniteError: one is no number.
        """
        if not self._unread:
            return
        fresh = torch.stack(self._unread).tolist()
        self._unread.clear()
        self.losses += fresh
        for step, loss in enumerate(fresh, start=len(self.losses) - len(fresh) + 1):
            if not math.isfinite(loss):
                raise NonFiniteError(
                    f"the loss of step {step} is {loss}; "
                    "give a lower --learning-rate, a longer --warmup or a smaller --clip"
                )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keeps the gradient's norm; everything else that the Trainer says is in the tables."""
        self.read_losses()
        if "grad_norm" in logs:
            self.norms.append(float(logs["grad_norm"]))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with disk_errors(Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)


class Keeper(TrainerCallback):  # type: ignore[misc]
    """Counts, evaluates and stores on schedule, and keeps what a killed run needs to go on."""

    def __init__(
        self,
        keeping: Keeping,
        data: Data,
        held_out: Sequence[int],
        store: ModelStore,
        counter: ZeroModeCounter | None,
        told: Told | None,
        n_read: int,
        outputs: int,
    ) -> None:
        self.evaluations: list[dict[str, Any]] = []
        self._keeping, self._data, self._held_out, self._outputs = keeping, data, held_out, outputs
        self._store, self._counter, self._told, self._n_read = store, counter, told, n_read
        self.loop: Loop | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, model: PreTrainedModel = None, **_: Any) -> Any:
        """Everything that is due after a step; `save` comes after it."""
        step, keeping, is_last = int(state.global_step), self._keeping, state.global_step == state.max_steps
        assert self.loop is not None
        control.should_log |= is_last
        if self._counter is not None and step % keeping.count_every == 0:
            self._counter.count(model, step)
        if self._held_out and (is_last or is_due(step, keeping.evaluate_every)):
            self.loop.read_losses()
            self.evaluate(model, step)
        if is_last or is_due(step, keeping.store_every):
            self.loop.read_losses()
            self._store.store(model, step)
        if self._told:
            loss = self.loop.losses[-1] if self.loop.losses else math.nan
            unit = "images" if isinstance(self._data, ImageData) else "tokens"
            self._told(Progress(step, int(state.max_steps), loss, self._n_read, unit))
        return control

    def evaluate(self, model: PreTrainedModel, step: int) -> None:
        """Adds rows on what was held out: over all domains (domain None), and by domain where there are several."""
        pooled, by_domain = evaluate(model, self._data, self._held_out, self._outputs)
        self.evaluations.append({"step": step, "domain": None, **pooled})
        if len(self._data.domains) > 1:
            self.evaluations += [{"step": step, "domain": name, **row} for name, row in by_domain.items()]

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Adds what lesion knows to the Trainer's checkpoint, and then the mark that it is whole."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        assert self.loop is not None
        self.loop.read_losses()
        masks, rows = self._counter.state() if self._counter is not None else ({}, [])
        said = {
            "losses": self.loop.losses,
            "rates": self.loop.rates,
            "norms": self.loop.norms,
            "evaluations": self.evaluations,
            "zero_modes": rows,
        }
        with disk_errors(folder):
            (folder / ROWS).write_text(json.dumps(said))
            save_file(masks, folder / MASKS)
            settle(folder)
            (folder / WHOLE).write_text(json.dumps(digests(folder)))
            settle(folder)

    def restore(self, folder: Path) -> None:
        """Goes on from such a checkpoint."""
        assert self.loop is not None
        said = json.loads((folder / ROWS).read_bytes())
        self.loop.losses, self.loop.rates, self.loop.norms = said["losses"], said["rates"], said["norms"]
        self.evaluations = said["evaluations"]
        if self._counter is not None:
            self._counter.restore(load_file(folder / MASKS), said["zero_modes"])


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return bool(every) and step % every == 0


def make_loop(
    model: PreTrainedModel,
    data: Data,
    indices: Sequence[int],
    recipe: Recipe,
    keeping: Keeping,
    keeper: Keeper,
    folder: Path,
    *,
    seed: int,
    device: str,
) -> Loop:
    """The Trainer, ready to start or to go on."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.batch_size,
        max_steps=recipe.steps or -1,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine" if recipe.schedule == "cosine" else "constant_with_warmup",
        warmup_steps=recipe.warmup,
        max_grad_norm=recipe.clip,
        bf16=recipe.compute == "bfloat16",
        logging_steps=keeping.log_every,
        logging_nan_inf_filter=False,
        save_steps=keeping.save_every,
        save_total_limit=2,
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=len(indices) >= recipe.batch_size,
        dataloader_pin_memory=device != "cpu",
    )
    if arguments.n_gpu > 1:  # the Trainer would split each batch over all of them
        arguments._n_gpu = 1
    loop = Loop(
        recipe,
        model=model,
        args=arguments,
        train_dataset=Windows(indices),
        data_collator=collate(data),
        callbacks=[keeper],
    )
    loop.remove_callback(PrinterCallback)
    keeper.loop = loop
    return loop


def last_whole(folder: Path) -> Path | None:
    """The Trainer's latest checkpoint that is as it was written; unfinished and damaged ones are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in found:
        if not _is_whole(path):
            shutil.rmtree(path)
    whole = [path for path in found if path.exists()]
    return whole[-1] if whole else None


def _is_whole(folder: Path) -> bool:
    try:
        recorded = json.loads((folder / WHOLE).read_bytes())
        return bool(recorded) and recorded == {
            name: digest for name, digest in digests(folder).items() if name != WHOLE
        }
    except (OSError, ValueError):
        return False
