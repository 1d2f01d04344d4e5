"""One tool in its own environment: loads the model once, then does a sweep for each line that it is given.

`run.py` starts it. Lines in and out are JSON. Only the sweep itself is timed: not imports, not loading.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO


def _channel() -> TextIO:
    """The real standard output; what libraries print goes to standard error instead."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def _versions() -> dict[str, str]:
    names = ("lesion", "transformer-lens", "nnterp", "nnsight", "torch", "transformers", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _shares(sweep: Any, arguments: tuple[Any, ...]) -> dict[str, float]:
    """Where the time of one sweep goes, in seconds of the operators themselves.

    `matrix_products` and `attention` are the arithmetic of the blocks and the head, `other_operators` all else that
    torch does, `python` the rest of the wall time (the profiler's own cost is in it).
    """
    from torch.profiler import ProfilerActivity, profile

    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        sweep(*arguments)
        wall = time.perf_counter() - start
    products = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}
    shares = {"matrix_products": 0.0, "attention": 0.0, "other_operators": 0.0}
    for event in record.key_averages():
        kind = (
            "matrix_products"
            if event.key in products
            else "attention"
            if "attention" in event.key
            else "other_operators"
        )
        shares[kind] += event.self_cpu_time_total / 1e6
    return {**shares, "python": wall - sum(shares.values())}


def main() -> None:
    """Answer line by line until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module")
    parser.add_argument("variant")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    answers = _channel()

    import numpy as np
    import torch

    torch.set_num_threads(arguments.threads)
    ids = torch.from_numpy(np.load(arguments.folder / "ids.npy"))
    sweep = importlib.import_module(arguments.module).open_tool(arguments.folder, arguments.variant)
    print(json.dumps({"versions": _versions(), "threads": torch.get_num_threads()}), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        call = (ids, asked["layers"], asked["batch_size"])
        if asked["what"] == "profile":
            print(json.dumps(_shares(sweep, call)), file=answers)
            continue
        wall, processor = time.perf_counter(), time.process_time()
        numbers = sweep(*call)
        spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - processor}
        print(json.dumps({**spent, "numbers": numbers}), file=answers)


if __name__ == "__main__":
    main()
