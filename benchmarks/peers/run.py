"""The drop sweep of lesion beside those of TransformerLens and nnterp: the same model, ids and numbers.

Each tool runs in an environment of its own (made on the first run under benchmarks/.envs) and in a process of its own,
which loads the model once. The processes take turns, A B C A B C, with one thread each, so that what else the machine
does hits all alike; only the sweeps are timed. Each peer gets the number of documents in a call at which it is fastest.
Ratios are medians over rounds of peer / lesion, with their range, of wall and of processor time, and of the fastest
turns (processor time), which other jobs disturb least. The numbers of every round are compared with lesion's; if one is
off, the run ends with an error. Writes benchmarks/peers.json.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments import HERE, python_of
from rich.console import Console
from rich.table import Table
from scoring import NUMBERS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import lesion

TARGET = 3.0
"""How many times faster than each peer's documented way a drop sweep is wanted to be."""

TOLERANCE_NATS = 2e-5
"""Greatest difference of loss and KL. They are float32 sums over up to 32,000 logits of size 10 (one step is 1e-6), and
eager attention rounds otherwise than the fused one."""

NEAR_TIES = 2
"""Positions whose greatest two logits are so close that rounding may change their order."""

SHORT_TURNS = 4
"""Rounds for each one of the others, where a sweep takes less than a second."""


@dataclass(frozen=True)
class Setting:
    """A LLaMA and its ids. `weights`: `random`, or a zoo model's name, whose shape then counts."""

    weights: str
    n_documents: int
    context: int
    n_layers: int = 24
    d_model: int = 256
    d_mlp: int = 688
    vocabulary: int = 2048
    short: bool = False

    @property
    def tolerance(self) -> dict[str, float]:
        """Greatest difference allowed of each number."""
        positions = self.n_documents * (self.context - 1)
        return {"loss_nats": TOLERANCE_NATS, "kl_nats": TOLERANCE_NATS, "agreement": (NEAR_TIES + 0.5) / positions}


SETTINGS = {
    "blocks": Setting("random", n_documents=8, context=128),
    "vocabulary": Setting("random", n_documents=8, context=128, d_model=288, d_mlp=768, vocabulary=32000),
    "trained": Setting("python-8l", 8, 128, n_layers=8, d_model=128, d_mlp=384, short=True),
    "prompt": Setting("random", n_documents=1, context=32, short=True),
}


@dataclass(frozen=True)
class Contestant:
    """A way to run the sweep; `environment` None is that of lesion.

    `most_tokens`: with more ids than these it is another contestant's way again, and is left out.
    """

    module: str
    variant: str
    environment: str | None
    most_tokens: int | None = None

    def differs(self, setting: "Setting") -> bool:
        """Whether there is something to measure."""
        return self.most_tokens is None or setting.n_documents * setting.context <= self.most_tokens


CONTESTANTS = {
    "lesion": Contestant("with_lesion", "", None),
    "plain hooks": Contestant("with_plain", "", None),
    "TransformerLens": Contestant("with_transformer_lens", "documented", "transformer_lens"),
    "TransformerLens, best": Contestant("with_transformer_lens", "best", "transformer_lens", most_tokens=512),
    "nnterp": Contestant("with_nnterp", "documented", "nnterp"),
    "nnterp, best": Contestant("with_nnterp", "best", "nnterp"),
}
PEERS = ("TransformerLens", "nnterp")


# --- the model and the ids ----------------------------------------------------------------------------------------


def _random_model(setting: Setting) -> PreTrainedModel:
    """Seeded; weights wide enough that predictions are peaked and a dropped block moves them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=setting.vocabulary,
        hidden_size=setting.d_model,
        intermediate_size=setting.d_mlp,
        num_hidden_layers=setting.n_layers,
        num_attention_heads=setting.d_model // 32,
        max_position_embeddings=128,
        initializer_range=0.1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM._from_config(config)


def _model_and_ids(setting: Setting) -> tuple[PreTrainedModel, torch.Tensor]:
    if setting.weights == "random":
        generator = torch.Generator().manual_seed(1)
        shape = (setting.n_documents, setting.context)
        return _random_model(setting), torch.randint(1, setting.vocabulary, shape, generator=generator)
    loaded = lesion.load(f"zoo:{setting.weights}", device="cpu", dtype="float32")
    read = lesion.load_text("stdlib", loaded.tokenizer, context=setting.context, tokens=20_000)
    full = np.flatnonzero(read.lengths == setting.context)[: setting.n_documents]
    return loaded.anatomy.model, torch.from_numpy(np.stack([read.document(int(index)) for index in full]))


def lay_down(setting: Setting, folder: Path) -> None:
    """Write what every tool reads: a model folder with a tokenizer of one word an id, and the documents twice over.

    Peers read `ids.npy`; lesion reads `documents.jsonl` and refuses to run if it gives other ids.
    """
    model, ids = _model_and_ids(setting)
    model.save_pretrained(folder)
    words = {f"t{index}": index for index in range(model.config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = {"unk_token": "t0", "pad_token": "t0", "bos_token": "t0", "eos_token": "t0"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(folder)
    np.save(folder / "ids.npy", ids.numpy())
    lines = [json.dumps({"text": " ".join(f"t{index}" for index in row)}) for row in ids.tolist()]
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")


# --- the processes ------------------------------------------------------------------------------------------------


class Worker:
    """A tool in its process, with the model of a setting loaded."""

    def __init__(self, contestant: Contestant, folder: Path, core: int | None) -> None:
        python = sys.executable if contestant.environment is None else str(python_of(contestant.environment))
        pin = ["taskset", "-c", str(core)] if core is not None else []
        self.command = [*pin, python, str(HERE / "serve.py"), contestant.module, contestant.variant, str(folder)]
        self._log = folder / f"{contestant.module}-{contestant.variant}.log"
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE"), "1")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **one, "TOKENIZERS_PARALLELISM": "false"},
            )
        self.hello = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text()[-4000:]
            raise SystemExit(f"{shlex.join(self.command)} ended without an answer; the end of what it said:\n{said}")
        return json.loads(line)

    def ask(self, what: str, layers: Sequence[int], batch_size: int) -> dict[str, Any]:
        """Do a `sweep` or a `profile` of one."""
        question = {"what": what, "layers": list(layers), "batch_size": batch_size}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Let it end."""
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def workers(names: Sequence[str], folder: Path, core: int | None) -> Iterator[dict[str, Worker]]:
    """One process each, all loaded before the first is asked."""
    started: dict[str, Worker] = {}
    try:
        for name in names:
            started[name] = Worker(CONTESTANTS[name], folder, core)
        yield started
    finally:
        for worker in started.values():
            worker.close()


def fastest_batch(worker: Worker, setting: Setting) -> int:
    """The documents in a call at which a peer is fastest, by one layer, the better of two tries; and its warm-up."""
    layers = [setting.n_layers // 2]
    sizes = [size for size in (1, 2, 4, 8) if size <= setting.n_documents]
    worker.ask("sweep", layers, sizes[-1])
    return min(sizes, key=lambda size: min(worker.ask("sweep", layers, size)["cpu_s"] for _ in range(2)))


# --- measuring ----------------------------------------------------------------------------------------------------


def differences(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> dict[str, float]:
    """Greatest difference of each number over layers; NaN, which equals nothing, stays NaN."""
    return {name: float(np.abs(np.subtract(ours[name], theirs[name])).max()) for name in NUMBERS}


def check_same(name: str, setting: str, gaps: dict[str, float], tolerance: dict[str, float]) -> None:
    """Times of different answers are not worth comparing.

    Raises:
        SystemExit: a number is further from lesion's than the tolerance; says which and by how much.
    """
    wrong = {number: gap for number, gap in gaps.items() if not gap <= tolerance[number]}
    if wrong:
        raise SystemExit(f"{setting}: {name} and lesion give different numbers: {wrong}; allowed {tolerance}")


def _ratio(first: list[float], second: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def take_turns(
    name: str, ready: dict[str, Worker], batch: dict[str, int], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """The answers of each contestant, round by round; every round's numbers are compared with lesion's."""
    setting = SETTINGS[name]
    taken: dict[str, list[dict[str, Any]]] = {who: [] for who in ready}
    for turn in range(rounds):
        answers = {who: worker.ask("sweep", range(setting.n_layers), batch[who]) for who, worker in ready.items()}
        for who, answer in answers.items():
            answer["gaps"] = differences(answers["lesion"]["numbers"], answer["numbers"])
            check_same(who, name, answer["gaps"], setting.tolerance)
            taken[who].append(answer)
        seconds = ", ".join(f"{who} {answer['wall_s']:.2f} s" for who, answer in answers.items())
        print(f"{name}, round {turn + 1} of {rounds}: {seconds}", flush=True)
    return taken


def _entry(taken: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """What a contestant's turns come to, beside lesion's in the same rounds."""
    times = {key: [round(answer[key], 4) for answer in taken] for key in ("wall_s", "cpu_s")}
    return {
        **times,
        "ratio": _ratio(times["wall_s"], [answer["wall_s"] for answer in ours]),
        "cpu_ratio": _ratio(times["cpu_s"], [answer["cpu_s"] for answer in ours]),
        "fastest_cpu_ratio": min(times["cpu_s"]) / min(answer["cpu_s"] for answer in ours),
        "greatest_difference": {number: max(answer["gaps"][number] for answer in taken) for number in NUMBERS},
    }


def measure(name: str, names: Sequence[str], rounds: int, core: int | None, *, profiled: bool) -> dict[str, Any]:
    """All contestants on one setting, in turn."""
    setting = SETTINGS[name]
    layers = range(setting.n_layers)
    with tempfile.TemporaryDirectory() as folder:
        lay_down(setting, Path(folder))
        names = [who for who in names if CONTESTANTS[who].differs(setting)]
        with workers(names, Path(folder), core) as ready:
            batch = {who: fastest_batch(worker, setting) for who, worker in ready.items() if who != "lesion"}
            batch["lesion"] = 0  # lesion chooses for itself
            ready["lesion"].ask("sweep", layers, batch["lesion"])  # its warm-up
            taken = take_turns(name, ready, batch, rounds * (SHORT_TURNS if setting.short else 1))
            entries = {}
            for who, worker in ready.items():
                shares = worker.ask("profile", layers, batch[who]) if profiled else None
                known = {"documents_in_a_call": batch[who], "versions": worker.hello["versions"], "profile_s": shares}
                entries[who] = {**known, **_entry(taken[who], taken["lesion"])}
    return {
        "setting": asdict(setting),
        "tolerance": setting.tolerance,
        "lesion_numbers": taken["lesion"][0]["numbers"],
        "contestants": entries,
    }


# --- report -------------------------------------------------------------------------------------------------------


def machine(threads: int) -> dict[str, Any]:
    """What the numbers were measured on, and with what."""
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "command": shlex.join(["python", "benchmarks/peers/run.py", *sys.argv[1:]]),
    }


def table_of(results: dict[str, Any]) -> Table:
    """One line a contestant and setting."""
    title = f"drop sweep of every block; wanted: lesion at least {TARGET:g} times as fast as a peer"
    table = Table("setting", "tool", "docs a call", "median s", "× lesion, wall (range)", title=title)
    table.add_column("× lesion, cpu")
    table.add_column("of fastest")
    for number in NUMBERS:
        table.add_column(f"{number} off by")
    for name, result in results["settings"].items():
        for who, entry in result["contestants"].items():
            ratio = entry["ratio"]
            met = "" if who not in PEERS else " (met)" if ratio["median"] >= TARGET else " (not met)"
            table.add_row(
                name,
                who,
                str(entry["documents_in_a_call"] or "own choice"),
                f"{statistics.median(entry['wall_s']):.3f}",
                f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f}){met}",
                f"{entry['cpu_ratio']['median']:.2f}",
                f"{entry['fastest_cpu_ratio']:.2f}",
                *(f"{entry['greatest_difference'][number]:.1e}" for number in NUMBERS),
            )
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=5, help=f"turns of every tool; short ones take {SHORT_TURNS} times as many"
    )
    parser.add_argument("--quick", action="store_true", help="two rounds, and no setting with 32,000 tokens")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), help="default: all")
    parser.add_argument("--tools", nargs="+", choices=list(CONTESTANTS), help="besides lesion; default: all")
    parser.add_argument("--core", type=int, help="pin every process to this core with taskset (Linux)")
    parser.add_argument("--profile", action="store_true", help="one more sweep each, to see where the time goes")
    parser.add_argument("--out", type=Path, default=HERE.parent / "peers.json")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    arguments = _arguments()
    names = arguments.settings or [name for name in SETTINGS if not (arguments.quick and name == "vocabulary")]
    tools = ["lesion", *(who for who in arguments.tools or CONTESTANTS if who != "lesion")]
    rounds = 2 if arguments.quick else arguments.rounds
    results: dict[str, Any] = {"machine": machine(threads=1), "target": TARGET, "settings": {}}
    for name in names:
        results["settings"][name] = measure(name, tools, rounds, arguments.core, profiled=arguments.profile)
    Console(width=170).print(table_of(results))
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
