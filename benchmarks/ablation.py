"""How long a per-layer sweep over four kinds of weights takes, beside the loop that edits weights and runs everything.

    python benchmarks/ablation.py [--pairs 5] [--batches 2] [--settings blocks vocabulary]

Random LLaMAs of 24 blocks, masks that hold a fifth of each projection matrix. Kinds: zero modes, the complement, as
many random weights, as many of each exponent. The loop is written with care: each lane's weights are edited once for
all batches, with masks made before the clock starts; only the layer's seven matrices are changed and put back;
inference mode, no cache, one log-softmax a forward, what is compared with kept. It gives loss, KL, agreement, top-1 and
entropy, as the engine does. The engine's side draws its random weights, lays out lanes and makes edited weights within
the clock. Times are paired (A B A B ...) in one process. Writes `benchmarks/ablation.json`.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run import SETTINGS, IdsData, Setting, check_same, machine, paired, random_batches, random_model
from torch import Tensor
from transformers import PreTrainedModel

from lesion.anatomy import dissect
from lesion.checkpoints.masks import Masks, MaskWriter
from lesion.checkpoints.scopes import Region
from lesion.checkpoints.selection import Kind, select, tensor_seed
from lesion.engine import METRICS, Bench, lay_out, make_plan, sweep
from lesion.interventions import set_weights

TARGET = 1.8
SHARE = 0.2
KINDS: dict[Kind, int | None] = {"zero_modes": None, "complement": None, "random": 0, "random_matched": 0}
NAMES = ("loss_nats", "kl_nats", "agreement", "top1", "entropy_bits")


def write_masks(model: PreTrainedModel, path: Path) -> None:
    """Masks of random bits for every parameter."""
    generator = np.random.default_rng(0)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    with MaskWriter(path, shapes, {}) as writer:
        for name, shape in shapes.items():
            writer.write(name, np.packbits(generator.random(shape) < SHARE, bitorder="little"))


Edits = list[dict[str, Tensor]]
"""For each lane the weights to set, by parameter."""


def chosen_weights(model: PreTrainedModel, masks: Masks) -> Edits:
    """What each lane sets, layer after layer within a kind."""
    parameters = dict(model.named_parameters())
    found = []
    for kind, seed in KINDS.items():
        for layer in range(model.config.num_hidden_layers):
            names = [name for name in parameters if f".layers.{layer}." in name and "_proj." in name]
            found.append(
                {
                    name: select(
                        kind,
                        masks[name],
                        parameters[name].data,
                        Region(),
                        seed=tensor_seed(seed or 0, name),
                    )
                    for name in names
                }
            )
    return found


@torch.inference_mode()
def obvious_sweep(model: PreTrainedModel, batches: Sequence[Tensor], edits: Edits) -> dict[str, list[float]]:
    """A full forward over all batches for each edit of the model's weights."""
    parameters = dict(model.named_parameters())
    clean = [log_probabilities(model, ids) for ids in batches]
    kept = [(log_p, p := log_p.exp(), log_p.argmax(-1), torch.linalg.vecdot(p, log_p)) for log_p in clean]
    n_positions = sum(len(log_p) for log_p in clean)
    sums: dict[str, list[float]] = {name: [] for name in NAMES}
    for edit in edits:
        before = {name: parameters[name].data.clone() for name in edit}
        for name, chosen in edit.items():
            parameters[name].data.masked_fill_(chosen, 0.0)
        totals = dict.fromkeys(NAMES, 0.0)
        for ids, (_, clean_p, clean_top, clean_self) in zip(batches, kept, strict=True):
            targets, log_p = ids[:, 1:].flatten(), log_probabilities(model, ids)
            top = log_p.argmax(-1)
            totals["loss_nats"] -= log_p.gather(1, targets[:, None]).sum().item()
            totals["kl_nats"] += (clean_self - torch.linalg.vecdot(clean_p, log_p)).sum().item()
            totals["agreement"] += (top == clean_top).sum().item()
            totals["top1"] += (top == targets).sum().item()
            totals["entropy_bits"] -= torch.linalg.vecdot(log_p.exp(), log_p).sum().item() / math.log(2)
        for name, weight in before.items():
            parameters[name].data.copy_(weight)
        for name, total in totals.items():
            sums[name].append(total / n_positions)
    return sums


def log_probabilities(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Of every position with a next token, (position, vocabulary), float32."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return logits.flatten(0, 1).float().log_softmax(-1)


def lesion_sweep(model: PreTrainedModel, batches: Sequence[Tensor], masks: Path) -> dict[str, list[float]]:
    """The same numbers by the engine."""
    anatomy, data = dissect(model), IdsData(torch.cat(list(batches)))
    depth = anatomy.n_layers
    changes = [
        set_weights(masks, kind, f"layer:{at}", seed=seed) for kind, seed in KINDS.items() for at in range(depth)
    ]
    plan = make_plan(anatomy, data.lengths.tolist(), len(changes), batch_size=len(batches[0]))
    means = sweep(Bench(anatomy, data, lay_out(changes, depth), plan)).means[0].result().mean
    return {name: [float(value) for value in means[1:, METRICS.index(name)]] for name in NAMES}


def measure(setting: Setting, pairs: int, n_batches: int) -> dict[str, Any]:
    """The loop against the engine, on the same model, masks and batches."""
    model, batches = random_model(setting), random_batches(setting, n_batches)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "masks.safetensors"
        write_masks(model, path)
        edits = chosen_weights(model, Masks.load(path))
        obvious: Callable[[], Any] = lambda: obvious_sweep(model, batches, edits)  # noqa: E731
        ours: Callable[[], Any] = lambda: lesion_sweep(model, batches, path)  # noqa: E731
        gaps = check_same(obvious(), ours())
        return paired(obvious, ours, pairs) | {"greatest_difference": gaps}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("ablation.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {"machine": machine(), "target": TARGET, "settings": {}, "sweep": {}}
    for name in arguments.settings:
        results["settings"][name] = asdict(SETTINGS[name])
        found = measure(SETTINGS[name], arguments.pairs, arguments.batches)
        results["sweep"][name] = found
        print(
            f"{name}: loop {found['first_s']:.1f} s, lesion {found['second_s']:.1f} s, ratio {found['ratio']:.3f} "
            f"({found['ratio_min']:.3f} to {found['ratio_max']:.3f}), of processor time {found['cpu_ratio']:.3f}; "
            f"wanted at least {TARGET}",
            flush=True,
        )
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
