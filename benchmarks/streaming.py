"""What block by block costs beside the model in memory: peak memory, bytes read, time; and the same numbers.

    python benchmarks/streaming.py [--blocks 16] [--width 1024] [--tokens 2048] [--pairs 3]

A random LLaMA in float32 is written to a temporary folder and swept (drop and swap of a few blocks) in fresh
processes, in turn in memory and from disk. Peaks are of resident memory above that of the same process with everything
imported and nothing loaded. Writes `benchmarks/streaming.json`.
"""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama  # noqa: F401  (imported before memory is counted)

from lesion.anatomy import dissect, known_families
from lesion.anatomy.files import weight_files
from lesion.anatomy.placement import HELD
from lesion.anatomy.streaming import open_streamed
from lesion.data import Batch
from lesion.engine import Bench, Here, Plan, keep_pages, lay_out, make_plan, make_runner, sweep
from lesion.interventions import drop, swap

CONTEXT, VOCABULARY = 128, 4096


class Tokens:
    """Random documents of one length."""

    domains = ("random",)

    def __init__(self, tokens: int) -> None:
        generator = np.random.default_rng(0)
        self.ids = generator.integers(5, VOCABULARY, size=(tokens // CONTEXT, CONTEXT))
        self.lengths = np.full(len(self.ids), CONTEXT)

    def batch(self, indices: object) -> Batch:
        ids = torch.from_numpy(self.ids[list(indices)])
        targets = torch.cat([ids[:, 1:], torch.full((len(ids), 1), -100)], dim=1)
        return Batch(
            ids=ids,
            pixels=None,
            mask=None,
            keep=targets != -100,
            targets=targets,
            documents=torch.tensor(list(indices)),
            domains=torch.zeros(len(ids), dtype=torch.long),
        )


def status(name: str) -> int:
    """A number of kilobytes in /proc/self/status, in bytes."""
    return 1024 * int(re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def child(folder: Path, tokens: int, streamed: bool) -> dict[str, object]:
    """One sweep in this process."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    keep_pages()
    config = transformers.AutoConfig.from_pretrained(folder)
    before = status("VmRSS")
    blocks = None
    if streamed:
        model, blocks = open_streamed(
            LlamaForCausalLM,
            config,
            known_families()["llama"],
            weight_files(folder, allow_pickle=False),
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
    else:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    data, depth = Tokens(tokens), config.num_hidden_layers
    anatomy = dissect(model)
    interventions = [drop(1), drop(depth // 2), swap(depth // 2), swap(depth - 2)]
    planned = make_plan(anatomy, list(data.lengths), len(interventions))
    batches = [batch for shard in planned.shards for batch in shard]
    plan = Plan([batches], planned.groups, planned.stack_tokens, planned.chunk)
    bench = Bench(anatomy, data, lay_out(interventions, depth), plan)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    started, cpu = time.perf_counter(), time.process_time()
    state = sweep(bench, executor=Here(make_runner(bench, blocks, None)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    bytes_of = [sum(p.numel() * 4 for p in block.parameters()) for block in anatomy.blocks]
    rest = sum(p.numel() * 4 for p in model.parameters()) - sum(bytes_of)
    return {
        "peak_bytes": status("VmHWM") - before,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "weight_bytes": sum(bytes_of) + rest,
        "rest_bytes": rest,
        "block_bytes": max(bytes_of),
        "hidden_bytes": tokens * config.hidden_size * 4 * len(bench.lanes),
        "bytes_read": blocks.bytes_read if blocks else 0,
        "loads": blocks.loads if blocks else [],
        "result": state.means[0].result().mean.flatten().tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "HOW"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(Path(arguments.child[0]), arguments.tokens, arguments.child[1] == "streamed")))
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=arguments.width,
            intermediate_size=arguments.width * 8 // 3,
            num_hidden_layers=arguments.blocks,
            num_attention_heads=arguments.width // 64,
            vocab_size=VOCABULARY,
            max_position_embeddings=CONTEXT,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        runs: dict[str, list[dict]] = {"memory": [], "streamed": []}
        for _ in range(arguments.pairs):
            for how, found in runs.items():
                command = [sys.executable, __file__, "--tokens", str(arguments.tokens), "--child", folder, how]
                found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    report(arguments, runs)


def report(arguments: argparse.Namespace, runs: dict[str, list[dict]]) -> None:
    memory, streamed = runs["memory"], runs["streamed"]
    assert all(run["result"] == memory[0]["result"] for run in memory + streamed), "the numbers differ"
    one = streamed[0]
    calls = max(run["peak_bytes"] for run in memory) - one["weight_bytes"] - one["hidden_bytes"]
    bound = one["rest_bytes"] + HELD * one["block_bytes"] + one["hidden_bytes"]
    times = [b["seconds"] / a["seconds"] for a, b in zip(memory, streamed, strict=True)]
    cpu = [b["cpu_seconds"] / a["cpu_seconds"] for a, b in zip(memory, streamed, strict=True)]
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "torch": torch.__version__},
        "model": {"blocks": arguments.blocks, "width": arguments.width, "tokens": arguments.tokens},
        "weight_bytes": one["weight_bytes"],
        "peak_bytes": {how: [run["peak_bytes"] for run in found] for how, found in runs.items()},
        "bound_bytes": bound,
        "bound_is": "embeddings and head, three blocks, residual streams of all lanes",
        "working_bytes_in_memory": calls,
        "bytes_read": one["bytes_read"],
        "loads_a_block": max(one["loads"]),
        "time_ratio": {"median": statistics.median(times), "range": [min(times), max(times)]},
        "cpu_time_ratio": {"median": statistics.median(cpu), "range": [min(cpu), max(cpu)]},
        "same_bits": True,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
