"""`lesion train`: small models made to be looked at."""

import math
import shlex
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lesion.cli.console import Output, errors_in_one_line, plus_minus, shown
from lesion.cli.interrupts import INTERRUPTS
from lesion.cli.options import (
    CHECKPOINT,
    BadRowOption,
    Bos,
    BosOption,
    ContextOption,
    DataOption,
    DebugOption,
    JsonOption,
    OnBadRow,
    OutOption,
    OverwriteOption,
    PickleOption,
    QuietOption,
    ResumeOption,
)
from lesion.cli.zero_modes.ending import say

train = typer.Typer(help="Train small models from nothing, or go on training one, and store them in several types.")
SECONDS = 10
"""Between two lines of progress."""


class Schedule(StrEnum):
    cosine = "cosine"
    constant = "constant"


class Hold(StrEnum):
    bf16 = "bf16"
    fp16 = "fp16"


class Compute(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


TokensOption = Annotated[
    int | None, typer.Option(min=1, help="Tokens to read over all domains (images: how many).", show_default="all")
]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Updates.", show_default="as --epochs says")]
EpochsOption = Annotated[float, typer.Option(help="Passes over the data, where --steps is not given.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Sequences (or images) a step.")]
RateOption = Annotated[float, typer.Option("--learning-rate", "--lr", help="The greatest.")]
ScheduleOption = Annotated[Schedule, typer.Option(help="After the warm-up: down to 0 as a cosine, or constant.")]
WarmupOption = Annotated[int, typer.Option(min=0, help="Steps in which the rate rises to its greatest.")]
DecayOption = Annotated[float, typer.Option(min=0, help="Weight decay of matrices (AdamW).")]
ClipOption = Annotated[float, typer.Option(min=0, help="Greatest norm of the gradient; 0 does not clip.")]
HoldOption = Annotated[
    Hold | None,
    typer.Option(
        help="Type that parameters live in: each update is worked out in float32 and rounded.",
        show_default="float32 master weights",
    ),
]
ComputeOption = Annotated[Compute, typer.Option(help="Type of the passes; bfloat16 is autocast over float32 weights.")]
StoreOption = Annotated[str, typer.Option(help="Types that models are stored in, separated by commas: bf16,fp16,fp32.")]
StoreEveryOption = Annotated[int, typer.Option(min=0, help="Steps between stored models; 0: only start and end.")]
CountOption = Annotated[int, typer.Option(min=0, help="Steps between counts of zero modes against the start; 0 never.")]
EvaluateOption = Annotated[
    int, typer.Option(min=0, help="Steps between evaluations on what was held out; 0: start and end.")
]
LogOption = Annotated[int, typer.Option(min=1, help="Steps over which the table averages the loss.")]
SaveOption = Annotated[int, typer.Option(min=1, help="Steps that a killed run loses at most.")]
HeldOutOption = Annotated[
    float, typer.Option(min=0, max=0.9, help="Part of the data that is not trained on: the last of each domain.")
]
SeedOption = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Of the first weights and of the order of the data.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@train.command()
def pretrain(
    config: Annotated[
        str,
        typer.Option(help="llama-1l, llama-2l (paper size), llama-tiny, opt-tiny, opt-tiny-nopos or vit-digits."),
    ],
    data: DataOption = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Folder, hub id or zoo:NAME whose tokenizer to take.", show_default="one trained on the data"
        ),
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option(min=1, help="Ids of a tokenizer trained on the data.", show_default="the config's")
    ] = None,
    tokens: TokensOption = None,
    context: ContextOption = None,
    bos: BosOption = Bos.auto,
    on_bad_row: BadRowOption = OnBadRow.fail,
    steps: StepsOption = None,
    epochs: EpochsOption = 1.0,
    batch_size: BatchOption = 8,
    learning_rate: RateOption = 1e-3,
    schedule: ScheduleOption = Schedule.cosine,
    warmup: WarmupOption = 50,
    weight_decay: DecayOption = 0.05,
    clip: ClipOption = 1.0,
    hold: HoldOption = None,
    compute: ComputeOption = Compute.float32,
    store: StoreOption = "bf16",
    store_every: StoreEveryOption = 0,
    count_every: CountOption = 0,
    evaluate_every: EvaluateOption = 0,
    log_every: LogOption = 10,
    save_every: SaveOption = 500,
    held_out: HeldOutOption = 0.02,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    out: OutOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a small model from random weights."""
    recipe, keeping = _recipe(locals()), _keeping(locals())
    with errors_in_one_line(debug):
        output = Output(out, resume, overwrite, quiet, as_json)
        from lesion.studies.setting import Reading
        from lesion.studies.training import Keeping, Recipe, pretrain

        outcome = pretrain(
            config,
            data or ["stdlib"],
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            reading=Reading(tokens, context, bos.value, on_bad_row=on_bad_row.value),
            recipe=Recipe(**recipe),
            keeping=Keeping(**keeping),
            seed=seed,
            device=device,
            **_where(output),
            progress=_progress(output.console),
        )
        _tell(outcome, output)


@train.command()
def finetune(
    model: Annotated[str, typer.Argument(help="What to start from: " + CHECKPOINT)],
    data: DataOption = None,
    allow_pickle: PickleOption = False,
    tokens: TokensOption = None,
    context: ContextOption = None,
    bos: BosOption = Bos.auto,
    on_bad_row: BadRowOption = OnBadRow.fail,
    steps: StepsOption = None,
    epochs: EpochsOption = 1.0,
    batch_size: BatchOption = 8,
    learning_rate: RateOption = 1e-4,
    schedule: ScheduleOption = Schedule.cosine,
    warmup: WarmupOption = 50,
    weight_decay: DecayOption = 0.05,
    clip: ClipOption = 1.0,
    hold: HoldOption = None,
    compute: ComputeOption = Compute.float32,
    store: StoreOption = "bf16",
    store_every: StoreEveryOption = 0,
    count_every: CountOption = 0,
    evaluate_every: EvaluateOption = 0,
    log_every: LogOption = 10,
    save_every: SaveOption = 500,
    held_out: HeldOutOption = 0.02,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    out: OutOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Go on training a stored model, on other data."""
    recipe, keeping = _recipe(locals()), _keeping(locals())
    with errors_in_one_line(debug):
        output = Output(out, resume, overwrite, quiet, as_json)
        from lesion.studies.setting import Reading
        from lesion.studies.training import Keeping, Recipe, finetune

        outcome = finetune(
            model,
            data or ["stdlib"],
            allow_pickle=allow_pickle,
            reading=Reading(tokens, context, bos.value, on_bad_row=on_bad_row.value),
            recipe=Recipe(**recipe),
            keeping=Keeping(**keeping),
            seed=seed,
            device=device,
            **_where(output),
            progress=_progress(output.console),
        )
        _tell(outcome, output)


RECIPE = (
    "steps", "epochs", "batch_size", "learning_rate", "schedule", "warmup", "weight_decay", "clip", "hold", "compute",
)  # fmt: skip
KEEPING = ("store_every", "count_every", "evaluate_every", "log_every", "save_every", "held_out")


def _recipe(given: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain(given[name]) for name in RECIPE}


def _keeping(given: dict[str, Any]) -> dict[str, Any]:
    store = tuple(name.strip() for name in given["store"].split(","))
    return {"store": store, **{name: given[name] for name in KEEPING}}


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value


def _where(output: Output) -> dict[str, Any]:
    return {
        "out": output.out or Path("runs"),
        "name_folder": output.out is None,
        "resume": output.resume,
        "overwrite": output.overwrite,
        "command": shlex.join(["lesion", *sys.argv[1:]]),
    }


def _progress(console: Console) -> Callable[[Any], None]:
    """A line now and then: how far it is, the loss, the speed, and how long it will take."""
    started, said, before = time.monotonic(), time.monotonic(), 0

    def tell(now_at: Any) -> None:
        nonlocal started, said, before
        INTERRUPTS.check()
        now, step, steps = time.monotonic(), now_at.step, now_at.steps
        if not before:  # the first step of this time also makes room for all that follow
            started, before = now, step
            return
        if now - said < SECONDS and step < steps:
            return
        said = now
        rate = (step - before) / (now - started)
        loss = "" if math.isnan(now_at.loss_nats) else f", loss {now_at.loss_nats:.3f} nats"
        console.print(
            f"step {step:,} of {steps:,}{loss}, {rate * now_at.n_read:,.0f} {now_at.unit} a second, "
            f"about {(steps - step) / rate:.0f} s left",
            markup=False,
        )

    return tell


def _tell(outcome: Any, output: Output) -> None:
    from lesion.report import write_report
    from lesion.studies.training import last_model

    page, model = write_report(outcome.path), last_model(outcome.path)
    evaluations = outcome.tables.get("training_evaluation")
    last = None if evaluations is None else evaluations.to_dict("records")[-1]
    known = last and {name: None if math.isnan(value) else value for name, value in last.items()}
    say(output, outcome, report=str(page), model=str(model), held_out=known)
    if output.quiet:
        return
    if last is not None and known is not None:
        sem = "" if known["loss_nats_sem"] is None else f" {plus_minus()} {last['loss_nats_sem']:.4f}"
        typer.echo(f"held out: {last['loss_nats']:.4f}{sem} nats, {100 * last['top1']:.2f} % right")
    typer.echo(shown(f"models: {model}"))
    typer.echo(shown(f"tables and report: {page}"))
