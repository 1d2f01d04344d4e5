"""What comparing two checkpoints costs, beside loading both and comparing, and beside `cat` of both files.

    python benchmarks/checkpoints.py [--layers 24] [--width 2048] [--rounds 3] [--folder FOLDER]

A random LLaMA-like pair in bfloat16 is written (2.7 GB each by default) and compared in fresh processes, in turn, with
the files in the page cache and start-up left out. `counts` finds, counts and packs the zero modes; `masks` writes them
too; `table` also sums the magnitudes, as the table does. Then the same from the disk, the files' pages dropped before:
beside `cat`, which reads one file after the other, and `read`, two threads that read both at once and do nothing else.
Writes `benchmarks/checkpoints.json`.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lesion.checkpoints.compare import Options, compare
from lesion.checkpoints.opened import open_checkpoint

VOCABULARY = 32_000
WAYS = ("load both", "counts", "masks", "table", "cat")
COLD = ("cat", "read", "counts", "table")


def tensors(layers: int, width: int, *, tuned: bool) -> dict[str, torch.Tensor]:
    """Weights of a LLaMA; about a fifth of TUNED's have the bits of BASE's."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, width), "lm_head.weight": (VOCABULARY, width)}
    for layer in range(layers):
        front, middle = f"model.layers.{layer}", width * 8 // 3
        shapes |= {f"{front}.self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
        shapes |= {f"{front}.mlp.{part}_proj.weight": (middle, width) for part in ("gate", "up")}
        shapes[f"{front}.mlp.down_proj.weight"] = (width, middle)
    found = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        generator = torch.Generator().manual_seed(seed)
        weights = (0.02 * torch.randn(shape, generator=generator)).bfloat16()
        if tuned:
            moved = (torch.rand(shape, generator=generator) > 0.2).to(torch.int16)
            weights = (weights.view(torch.int16) + moved).view(torch.bfloat16)
        found[name] = weights
    return found


def write_pair(folder: Path, layers: int, width: int) -> None:
    for side in ("base", "tuned"):
        (folder / side).mkdir(parents=True)
        (folder / side / "config.json").write_text('{"model_type": "llama"}')
        save_file(tensors(layers, width, tuned=side == "tuned"), folder / side / "model.safetensors")


def peak() -> int:
    """Of this program; what `getrusage` says goes back to the process that started it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def drop_pages(files: list[Path]) -> None:
    """Makes the next reader go to the disk (what a virtual machine's host keeps is out of reach)."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass


def child(folder: Path, way: str, *, cold: bool = False) -> dict[str, float]:
    """One comparison in this process: seconds without start-up, zero modes found, peak of memory in bytes."""
    files = [folder / side / "model.safetensors" for side in ("base", "tuned")]
    if cold:
        drop_pages(files)
    started = time.perf_counter()
    if way == "cat":
        with Path(os.devnull).open("wb") as nowhere:
            subprocess.run(["cat", *map(str, files)], stdout=nowhere, check=True)
        found = -1
    elif way == "read":
        with ThreadPoolExecutor() as pool:
            list(pool.map(read, files))
        found = -1
    elif way == "load both":
        base, tuned = map(load_file, files)
        found = sum(int(torch.eq(base[name], tuned[name]).sum()) for name in base)
    else:
        sides = [open_checkpoint(str(path.parent)) for path in files]
        masks = None if way == "counts" else folder / "zero_modes.safetensors"
        result = compare(*sides, masks=masks, options=Options(magnitudes=way == "table"))
        found = sum(row.n_zero_modes for row in result.rows)
    return {"seconds": time.perf_counter() - started, "zero_modes": found, "peak_bytes": peak()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="a pair that is already there")
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "WAY", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        place, way, cache = arguments.child
        print(json.dumps(child(Path(place), way, cold=cache == "cold")))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not arguments.folder:
            write_pair(folder, arguments.layers, arguments.width)
        report(folder, rounds(folder, WAYS, "warm", arguments.rounds), rounds(folder, COLD, "cold", arguments.rounds))


def rounds(folder: Path, ways: tuple[str, ...], cache: str, n_rounds: int) -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for repeat in range(-1, n_rounds):
        for way, found in runs.items():
            command = [sys.executable, __file__, "--child", str(folder), way, cache]
            answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            if repeat >= 0:  # the first round brings files and programs into the cache
                found.append(answer)
    return runs


def medians(runs: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    return {way: statistics.median(run["seconds"] for run in found) for way, found in runs.items()}


def report(folder: Path, runs: dict[str, list[dict[str, float]]], cold: dict[str, list[dict[str, float]]]) -> None:
    seconds, from_disk = medians(runs), medians(cold)
    ours = ("counts", "masks", "table")
    assert len({run["zero_modes"] for way in ("load both", *ours) for run in runs[way]}) == 1, "the numbers differ"
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "torch": torch.__version__},
        "numpy": np.__version__,
        "bytes_each": (folder / "base" / "model.safetensors").stat().st_size,
        "seconds": {way: [round(run["seconds"], 3) for run in found] for way, found in runs.items()},
        "times_faster_than_loading_both": {way: round(seconds["load both"] / seconds[way], 2) for way in ours},
        "times_cat": {way: round(seconds[way] / seconds["cat"], 2) for way in ours},
        "seconds_from_disk": {way: [round(run["seconds"], 3) for run in found] for way, found in cold.items()},
        "times_reading_both_from_disk": {
            way: round(from_disk[way] / from_disk["read"], 2) for way in ("cat", "counts", "table")
        },
        "peak_bytes": {way: max(run["peak_bytes"] for run in runs[way]) for way in ("load both", *ours)},
        "zero_modes": runs["counts"][0]["zero_modes"],
        "mask_bytes": (folder / "zero_modes.safetensors").stat().st_size,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
