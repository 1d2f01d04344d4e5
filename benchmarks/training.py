"""How fast lesion trains, beside a plain Trainer of transformers and beside a bare loop of PyTorch.

    python benchmarks/training.py [--rounds 3] [--threads 1] [--shapes llama-tiny llama-2l]

Two shapes on text of the standard library: `llama-tiny` (8 sequences of 256 tokens a step) and `llama-2l` (1 of 1024,
a vocabulary of 32,000). All ways do the same updates from the same weights: AdamW, cosine, clipping at 1. They run in
fresh processes, in turn; the first steps are left out, and the last one, in which lesion stores its model. `lesion`
keeps its defaults; `lesion, counting` also counts zero modes in three types after every step. The others read token
ids that lie ready in one tensor. Speeds are tokens a second of wall time, and of processor time, which other programs
disturb less. Writes `benchmarks/training.json`.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, get_scheduler

from lesion.data import load_text
from lesion.studies.setting import Reading
from lesion.studies.training import Keeping, Progress, Recipe, finetune, pretrain
from lesion.studies.training.loop import Trainer, TrainerCallback, TrainingArguments

SHAPES = {"llama-tiny": (8, 256, 24), "llama-2l": (1, 1024, 11)}
"""Sequences a step, tokens a sequence, steps."""
FIRST = 4
"""Steps before the clock starts."""
WAYS = ("lesion", "lesion, counting", "transformers.Trainer", "bare loop")
RATE, WARMUP = 1e-3, 5
Stamp = tuple[float, float]


def now() -> Stamp:
    return time.perf_counter(), time.process_time()


def prepare(folder: Path, shapes: list[str]) -> None:
    """A start of each shape, stored by lesion itself, with the tokenizer of its data."""
    for shape in shapes:
        context = SHAPES[shape][1]
        pretrain(
            shape,
            "stdlib",
            reading=Reading(tokens=50_000, context=context),
            recipe=Recipe(steps=1, batch_size=1, warmup=0),
            keeping=Keeping(store=("fp32",), held_out=0.0),
            out=folder / shape,
        )


def ids(start: Path, shape: str) -> torch.Tensor:
    batch, context, steps = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(start)
    tokens = batch * context * steps
    data = load_text("stdlib", tokenizer, context=context, tokens=tokens + context, pack=True)
    return torch.stack([torch.from_numpy(data.document(index)) for index in range(batch * steps)])


def with_lesion(start: Path, shape: str, *, counting: bool) -> list[Stamp]:
    batch, context, steps = SHAPES[shape]
    stamps: list[Stamp] = []

    def told(progress: Progress) -> None:
        stamps.append(now())

    dtypes = ("bf16", "fp16", "fp32") if counting else ("bf16",)
    with tempfile.TemporaryDirectory() as out:
        finetune(
            start,
            "stdlib",
            reading=Reading(tokens=batch * context * steps + context, context=context),
            recipe=Recipe(steps=steps, batch_size=batch, learning_rate=RATE, warmup=WARMUP),
            keeping=Keeping(store=dtypes, count_every=int(counting), held_out=0.0),
            out=Path(out),
            progress=told,
        )
    return stamps


def with_trainer(start: Path, shape: str) -> list[Stamp]:
    batch, _, steps = SHAPES[shape]
    stamps: list[Stamp] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            stamps.append(now())

    rows = [{"input_ids": row, "labels": row} for row in ids(start, shape)]
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=batch,
            max_steps=steps,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            warmup_steps=WARMUP,
            weight_decay=0.05,
            max_grad_norm=1.0,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Clock()]).train()
    return stamps


def with_bare_loop(start: Path, shape: str) -> list[Stamp]:
    batch, _, steps = SHAPES[shape]
    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=WARMUP, num_training_steps=steps)
    stamps = []
    for rows in ids(start, shape).split(batch):
        model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        stamps.append(now())
    return stamps


def child(folder: Path, shape: str, way: str) -> dict[str, float]:
    """Tokens a second of one training in this process."""
    start = folder / shape / "models/step-000001/fp32"
    if way.startswith("lesion"):
        stamps = with_lesion(start, shape, counting="counting" in way)
    else:
        stamps = (with_trainer if way == "transformers.Trainer" else with_bare_loop)(start, shape)
    batch, context, steps = SHAPES[shape]
    assert len(stamps) == steps
    seconds = [last - first for first, last in zip(stamps[FIRST - 1], stamps[-2], strict=True)]
    tokens = batch * context * (steps - 1 - FIRST)
    return {"wall": tokens / seconds[0], "processor": tokens / seconds[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "SHAPE", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        folder, shape, way = arguments.child
        print(json.dumps(child(Path(folder), shape, way)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["LESION_CACHE"] = f"{temporary}/cache"
        prepare(Path(temporary), arguments.shapes)
        for shape in arguments.shapes:
            report(shape, rounds(Path(temporary), shape, arguments), arguments.threads)


def rounds(folder: Path, shape: str, arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for repeat in range(arguments.rounds):
        for way in WAYS if repeat % 2 == 0 else reversed(WAYS):
            command = [
                sys.executable,
                __file__,
                "--threads",
                str(arguments.threads),
                "--child",
                str(folder),
                shape,
                way,
            ]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[way].append(json.loads(printed.splitlines()[-1]))
            print(shape, way, runs[way][-1], file=sys.stderr)
    return runs


def report(shape: str, ways: dict[str, list[dict[str, float]]], threads: int) -> None:
    """Medians over rounds, beside those of other shapes; a ratio is the median of those of each round."""
    path = Path(__file__).with_suffix(".json")
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results[shape] = {
        "date": datetime.date.today().isoformat(),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "torch": torch.__version__},
        "threads": threads,
        "tokens_per_second": {
            way: {clock: [round(run[clock]) for run in found] for clock in ("wall", "processor")}
            for way, found in ways.items()
        },
        "times_as_fast": {
            f"{ours} / {other}": {clock: _ratio(ways[ours], ways[other], clock) for clock in ("wall", "processor")}
            for ours in WAYS[:2]
            for other in WAYS[2:]
        },
    }
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results[shape], indent=2))


def _ratio(ours: list[dict[str, float]], other: list[dict[str, float]], clock: str) -> float:
    return round(statistics.median(one[clock] / two[clock] for one, two in zip(ours, other, strict=True)), 3)


if __name__ == "__main__":
    main()
