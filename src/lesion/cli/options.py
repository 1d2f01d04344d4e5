"""Options that commands share, declared once."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lesion.errors import LesionError


class Bos(StrEnum):
    auto = "auto"
    always = "always"
    never = "never"


class OnBadRow(StrEnum):
    fail = "fail"
    skip = "skip"


CHECKPOINT = "A folder, a hub id (owner/name[@revision]), or zoo:NAME."
CheckpointArgument = Annotated[str, typer.Argument(help=CHECKPOINT)]
MasksArgument = Annotated[Path, typer.Argument(help="A run folder of `zero-modes diff`, or a file of masks.")]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="stdlib[:code|:prose], a file, a folder, a glob, or hf:ID[:CONFIG][@SPLIT][#COLUMN]; several as name=DATA "
        "are domains. Images: digits[:train|:test], a folder, or hf:…",
        show_default="stdlib",
    ),
]
TokensOption = Annotated[
    int, typer.Option(min=1, help="Tokens to read over all domains, the last document whole (images: how many).")
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        min=2, help="Longest sequence, specials included.", show_default="the model's positions, at most 1024"
    ),
]
BosOption = Annotated[
    Bos, typer.Option(help="Put a BOS in front: where the tokenizer has one and does not add it, always, or never.")
]
PackOption = Annotated[
    bool, typer.Option("--pack", help="Concatenate documents into full contexts instead of one document a sequence.")
]
BadRowOption = Annotated[OnBadRow, typer.Option(help="What to do with a row that cannot be read.")]
BatchOption = Annotated[str, typer.Option(help="Documents in a batch, or auto.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[
    str, typer.Option(help="auto (float32 on a CPU, the checkpoint's on a GPU), float32, bfloat16 or float16.")
]
StreamOption = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Leave the blocks' weights on disk and read one block at a time.",
        show_default="where the model does not fit",
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--max-memory", help="What weights and hidden states may take, for example 4GB.", show_default="what is free"
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of the masking of masked models.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Run folder.", show_default="runs/<study>-<model>-<hash of the arguments>")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Start again in a folder that holds another run.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run; refuse to start a new one.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what the run would read, hold and take, and run nothing.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print a summary as JSON on standard output.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
PickleOption = Annotated[
    bool, typer.Option("--allow-pickle", help="Read pytorch_model.bin where there is no safetensors file.")
]
RemoteCodeOption = Annotated[
    bool,
    typer.Option(
        "--ignore-remote-code",
        help="Load a model that names code of its own with transformers' own class; that code is never run.",
    ),
]
ExecutorOption = Annotated[
    str,
    typer.Option(
        help="Who runs the shards: here, local[:N] (N processes, or one a GPU), ray[:ADDRESS] (one actor a device)."
    ),
]
EditOption = Annotated[
    list[str] | None,
    typer.Option(
        "--edit",
        help="Measure the model under this edit; may be repeated: drop:3, swap:3, drop-attn:3, drop-mlp:3, "
        "zero-modes:MASKS[@SCOPE], complement:…, keep-only:…, random:MASKS[@SCOPE]#SEED, random-matched:….",
    ),
]


def ranges(text: str) -> list[int]:
    """Reads `0,2,5-7`."""
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_small(first) or (dash and not (_is_small(last) and int(first) <= int(last))):
            raise LesionError(f"--layers {text!r}: write whole numbers and ranges upwards, for example 0,2,5-7")
        chosen += range(int(first), int(last or first) + 1)
    return chosen


def names(text: str) -> list[str]:
    """Reads `all,layers`: names separated by commas, blanks around them left out."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(option: str, text: str) -> list[int]:
    """Reads `0,1,2`."""
    found = names(text)
    if not all(name.isdecimal() and len(name) < 19 for name in found):
        raise LesionError(f"{option} {text!r}: write whole numbers separated by commas, for example 0,1,2")
    return [int(name) for name in found]


def _is_small(text: str) -> bool:
    """Whether it is a whole number that can be a layer or a batch; a typo must not ask for billions of them."""
    return text.isdecimal() and len(text) < 7


def chosen_batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not _is_small(text) or int(text) < 1:
        raise LesionError(f"--batch-size {text!r}: give a whole number from 1, or auto")
    return int(text)


UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def chosen_memory(text: str | None) -> int | None:
    """Reads an amount of memory: `4GB`, `512MiB`, or bytes.

    Raises:
        LesionError: it is not one.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS or float(match[1]) == 0:
        raise LesionError(f"--max-memory {text!r}: give an amount such as 4GB or 512MB")
    return int(float(match[1]) * UNITS[match[2].upper()])
