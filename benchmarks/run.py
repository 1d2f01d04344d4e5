"""`make bench`: what a sweep costs beside the obvious loop, beside the bare blocks, and in memory.

All times are paired (A B A B ...) in one process, so that what else the machine does hits both; ratios are medians of
pairs, with their range. Peak memory is that of fresh processes. Writes `benchmarks/results.json`.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from baseline_loop import obvious_drop_sweep
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lesion.anatomy import Anatomy, dissect
from lesion.data import Batch
from lesion.engine import METRICS, Bench, Call, Lane, Plan, Skeleton, Walk, lay_out, make_plan, sweep
from lesion.interventions import KINDS

TARGETS = {"speedup": 1.8, "overhead": 1.03, "memory": 1.3}
"""The bars that the project holds itself to."""


@dataclass(frozen=True)
class Setting:
    """A random LLaMA and the size of a batch."""

    d_model: int
    d_mlp: int
    vocabulary: int
    n_layers: int = 24
    context: int = 128
    batch_tokens: int = 1024


SETTINGS = {
    "blocks": Setting(d_model=256, d_mlp=688, vocabulary=2048),
    "vocabulary": Setting(d_model=288, d_mlp=768, vocabulary=32000),
}


def random_model(setting: Setting) -> PreTrainedModel:
    """A seeded LLaMA with tied embeddings, in eval mode."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=setting.vocabulary,
        hidden_size=setting.d_model,
        intermediate_size=setting.d_mlp,
        num_hidden_layers=setting.n_layers,
        num_attention_heads=setting.d_model // 32,
        max_position_embeddings=setting.context,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()


def random_batches(setting: Setting, n_batches: int) -> list[Tensor]:
    """Batches of random ids, all of the full context."""
    shape = (setting.batch_tokens // setting.context, setting.context)
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(setting.vocabulary, shape, generator=generator) for _ in range(n_batches)]


# --- the side of lesion -------------------------------------------------------------------------------------------


class IdsData:
    """Documents given as ids, as the engine reads them: every position with a next token counts."""

    domains = ("random",)

    def __init__(self, ids: Tensor) -> None:
        self._ids = ids

    @property
    def lengths(self) -> np.ndarray:
        return np.full(len(self._ids), self._ids.shape[1])

    def batch(self, indices: Sequence[int]) -> Batch:
        ids = self._ids[list(indices)]
        targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], dim=1)
        documents = torch.tensor(list(indices))
        return Batch(ids, None, None, targets != -100, targets, documents, torch.zeros_like(documents))


def drop_plan(anatomy: Anatomy, data: IdsData, batch_size: int) -> tuple[list[Lane], Plan]:
    """Lanes that drop each block, and the plan for them at the batch size of the other side."""
    lanes = lay_out([KINDS["drop"](layer) for layer in range(anatomy.n_layers)], anatomy.n_layers)
    return lanes, make_plan(anatomy, data.lengths.tolist(), anatomy.n_layers, batch_size=batch_size)


def lesion_drop_sweep(model: PreTrainedModel, batches: Sequence[Tensor]) -> dict[str, list[float]]:
    """The same numbers as `obvious_drop_sweep`, by the engine."""
    anatomy, data = dissect(model), IdsData(torch.cat(list(batches)))
    lanes, plan = drop_plan(anatomy, data, len(batches[0]))
    means = sweep(Bench(anatomy, data, lanes, plan)).means[0].result().mean
    names = ("loss_nats", "kl_nats", "agreement", "top1", "entropy_bits")
    return {name: [float(value) for value in means[1:, METRICS.index(name)]] for name in names}


# --- measuring ----------------------------------------------------------------------------------------------------


def seconds(action: Callable[[], object]) -> tuple[float, float]:
    """Wall time of one call, and the processor time of this process in it."""
    wall, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - processor


def paired(first: Callable[[], object], second: Callable[[], object], pairs: int) -> dict[str, Any]:
    """Time two actions in turn; `ratio` is first / second: its median over pairs, with the range.

    `cpu_ratio` is that of processor times, which other jobs on the machine disturb less.
    """
    times = [(seconds(first), seconds(second)) for _ in range(pairs)]
    ratios = [a[0] / b[0] for a, b in times]
    return {
        "pairs_s": [[round(a[0], 4), round(b[0], 4)] for a, b in times],
        "pairs_cpu_s": [[round(a[1], 4), round(b[1], 4)] for a, b in times],
        "first_s": statistics.median(a[0] for a, _ in times),
        "second_s": statistics.median(b[0] for _, b in times),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "cpu_ratio": statistics.median(a[1] / b[1] for a, b in times),
    }


def check_same(obvious: dict[str, list[float]], ours: dict[str, list[float]]) -> dict[str, float]:
    """Greatest difference of each metric; times of different answers are not worth comparing.

    Raises:
        ValueError: If a metric differs by more than 1e-4 (float32 sums over 1024 positions and up to 32k tokens).
    """
    gaps = {name: max(abs(a - b) for a, b in zip(obvious[name], ours[name], strict=True)) for name in obvious}
    # one near-tie that falls the other way moves these by 1 / positions
    allowed = {"agreement": 5e-3, "top1": 5e-3}
    wrong = {name: gap for name, gap in gaps.items() if not gap <= allowed.get(name, 1e-4)}
    if wrong:
        raise ValueError(f"the two sides give different numbers: greatest differences {wrong}")
    return gaps


def bench_sweep(setting: Setting, pairs: int, n_batches: int) -> dict[str, Any]:
    """The obvious loop against the engine, on the same model and batches."""
    model, batches = random_model(setting), random_batches(setting, n_batches)
    gaps = check_same(obvious_drop_sweep(model, batches[:1]), lesion_drop_sweep(model, batches[:1]))  # and warm-up
    result = paired(lambda: obvious_drop_sweep(model, batches), lambda: lesion_drop_sweep(model, batches), pairs)
    return result | {"greatest_difference": gaps}


def _refuse(index: int, step: int) -> None:
    raise ValueError(f"lane {index} is not finite at step {step}")


def _bare_calls(anatomy: Anatomy, lanes: Sequence[Lane], calls: Sequence[Call], stream: Tensor, size: int) -> list[Any]:
    """The calls of blocks that a walk of `lanes` makes, as (block, rows, call) with the rows made beforehand."""
    work = []
    for step, block in enumerate(anatomy.blocks):
        running = sum(
            index == 0 or (lane.fork <= step and lane.order[step] is not None) for index, lane in enumerate(lanes)
        )
        for start in range(0, running, size):
            copies = min(size, running - start)
            work.append((block, stream.repeat(copies, 1, 1), calls[step].grown(copies)))
    return work


def bench_overhead(setting: Setting, pairs: int, kind: str | None) -> dict[str, Any]:
    """The engine's walk against bare calls of the same blocks on rows of the same shapes; no metrics on either side.

    Args:
        kind: The intervention that there is a lane of for every block; None for the clean lane alone.
    """
    anatomy = dissect(random_model(setting))
    data = IdsData(random_batches(setting, 1)[0])
    kinds = [KINDS[kind](layer) for layer in range(anatomy.n_layers)] if kind else []
    lanes = lay_out(kinds, anatomy.n_layers)
    plan = make_plan(anatomy, data.lengths.tolist(), len(kinds), batch_size=len(data.lengths))
    with torch.inference_mode():
        stream, calls = Skeleton(anatomy).enter(data.batch(range(len(data.lengths))))
        work = _bare_calls(anatomy, lanes, calls, stream, max(1, plan.stack_tokens // setting.batch_tokens))
        group = list(range(1, len(lanes)))

        def walk() -> None:
            Walk(anatomy, lanes, plan.stack_tokens, _refuse).run(stream, calls, group)

        def bare() -> None:
            for block, rows, call in work:
                block(rows, *call.arguments, **call.keywords)

        walk()
        bare()
        return paired(walk, bare, pairs)


# --- memory -------------------------------------------------------------------------------------------------------


def peak_bytes() -> int:
    """Greatest resident memory of this process so far; on Linux of this program alone, not of what started it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_child(setting: Setting, action: str) -> None:
    """Do one thing and print the peak: `loaded` (nothing), `forward` (one plain forward), `sweep`, `obvious`."""
    model, batches = random_model(setting), random_batches(setting, 1)
    if action == "forward":
        with torch.inference_mode():
            model(input_ids=batches[0], use_cache=False)
    elif action == "sweep":
        lesion_drop_sweep(model, batches)
    elif action == "obvious":
        obvious_drop_sweep(model, batches)
    print(peak_bytes())


def bench_memory(name: str) -> dict[str, Any]:
    """Peak of a sweep, less its lanes' residual streams, against the peak of one plain forward of the same batch."""
    setting = SETTINGS[name]
    peaks = {}
    for action in ("loaded", "forward", "sweep", "obvious"):
        command = [sys.executable, __file__, "--child", action, "--settings", name]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[action] = int(answer.stdout.split()[-1])
    residuals = setting.n_layers * setting.batch_tokens * setting.d_model * 4
    return {
        "peak_bytes": peaks,
        "residual_bytes": residuals,
        "ratio": (peaks["sweep"] - residuals) / peaks["forward"],
        "ratio_above_loaded": (peaks["sweep"] - residuals - peaks["loaded"]) / (peaks["forward"] - peaks["loaded"]),
    }


# --- report -------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _times(name: str, result: dict[str, Any]) -> tuple[str, str, str, str]:
    ratio = (
        f"{result['ratio']:.3f} ({result['ratio_min']:.3f}–{result['ratio_max']:.3f}); cpu {result['cpu_ratio']:.3f}"
    )
    return name, f"{result['first_s']:.3f} s", f"{result['second_s']:.3f} s", ratio


def _memory(name: str, result: dict[str, Any]) -> tuple[str, str, str, str]:
    peaks = {key: f"{value / 2**20:.0f} MiB" for key, value in result["peak_bytes"].items()}
    ratio = f"{result['ratio']:.3f} (above the loaded model {result['ratio_above_loaded']:.3f})"
    return (
        name,
        f"{peaks['sweep']} (obvious loop {peaks['obvious']})",
        f"{peaks['forward']} (loaded {peaks['loaded']})",
        ratio,
    )


def table_of(results: dict[str, Any]) -> Table:
    """One line a measurement."""
    table = Table("what", "first", "second", "ratio, median (range); of cpu time", title="benchmarks")
    for name, result in results["sweep"].items():
        label = f"drop sweep, 24 blocks, {name}: obvious loop / lesion (wanted ≥ {TARGETS['speedup']})"
        table.add_row(*_times(label, result))
    for name, result in results["overhead"].items():
        table.add_row(*_times(f"walk, {name}: lesion / bare blocks (wanted ≤ {TARGETS['overhead']})", result))
    for name, result in results["memory"].items():
        label = f"peak memory, {name}: sweep less lanes / one forward (wanted ≤ {TARGETS['memory']})"
        table.add_row(*_memory(label, result))
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of a sweep; the short walks run four times as many")
    parser.add_argument("--batches", type=int, default=1, help="batches a sweep")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--parts", nargs="+", default=["sweep", "overhead", "memory"])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.json"))
    parser.add_argument("--child", choices=["loaded", "forward", "sweep", "obvious"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    arguments = _arguments()
    if arguments.child:
        memory_child(SETTINGS[arguments.settings[0]], arguments.child)
        return
    results: dict[str, Any] = {"machine": machine(), "settings": {n: asdict(s) for n, s in SETTINGS.items()}}
    results |= {"targets": TARGETS, "sweep": {}, "overhead": {}, "memory": {}}
    for name in arguments.settings:
        if "sweep" in arguments.parts:
            results["sweep"][name] = bench_sweep(SETTINGS[name], arguments.pairs, arguments.batches)
        if "memory" in arguments.parts:
            results["memory"][name] = bench_memory(name)
    if "overhead" in arguments.parts:
        for label, kind in {"clean lane": None, "drop lanes": "drop", "drop-attn lanes (hooked)": "drop-attn"}.items():
            pairs = arguments.pairs * (4 if kind is None else 1)
            results["overhead"][label] = bench_overhead(SETTINGS["blocks"], pairs, kind)
    Console(width=150).print(table_of(results))
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
