"""What is written while a model trains, whole or not at all: models in several types, and what a killed run needs."""

import contextlib
import copy
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from lesion.anatomy.files import fingerprint, weight_files
from lesion.errors import LesionError, NonFiniteError, RunFolderError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""What weights can be stored in, by the names that users give."""


class ModelStore:
    """Stores the model of a step in several types: `FOLDER/step-000100/bf16`, which any tool loads.

    Args:
        folder: where.
        dtypes: names of `DTYPES`.
        beside: what belongs into every folder, the tokenizer or the image processor; anything with `save_pretrained`.
    """

    def __init__(self, folder: Path, dtypes: Mapping[str, torch.dtype], beside: Any) -> None:
        self.folder, self._dtypes, self._beside = folder, dict(dtypes), beside

    def store(self, model: PreTrainedModel, step: int) -> Path:
        """Stores the model; one that is there already is written anew.

        Returns:
            The folder of the step.

        Raises:
            NonFiniteError: a weight is no number, or too large for a type.
            RunFolderError: the disk is full, or cannot be written.
        """
        target = self.at(step)
        partial = self.folder / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for word, dtype in self._dtypes.items():
            stored = copy.deepcopy(model).to(dtype)
            _refuse_non_finite(stored, word, step)
            with disk_errors(target):
                stored.save_pretrained(partial / word)
                if self._beside is not None:
                    self._beside.save_pretrained(partial / word)
        with disk_errors(target):
            settle(partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        return target

    def at(self, step: int) -> Path:
        """The folder of a step, whether it is there or not."""
        return self.folder / f"step-{step:06}"


def stored_models(folder: Path) -> dict[str, str]:
    """SHA-256 of configuration and weights of every stored model, by `step-000100/bf16`."""
    places = sorted(place for place in folder.glob("step-*/*") if place.is_dir())
    return {f"{place.parent.name}/{place.name}": _fingerprint(place) for place in places}


def lost_models(folder: Path, recorded: Mapping[str, str]) -> list[str]:
    """Stored models that are missing, or not those that were recorded."""
    return [name for name, known in recorded.items() if _fingerprint(folder / name) != known]


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """One line for what a full or broken disk makes torch, safetensors and Python say."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunFolderError(
            f"cannot write {path}: {reason}; free space and give the same command again: it goes on where it stopped"
        ) from error


def settle(folder: Path) -> None:
    """Waits until everything in a folder is on the disk."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file directly in a folder."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _fingerprint(folder: Path) -> str:
    try:
        return fingerprint(folder, weight_files(folder, allow_pickle=False))
    except (LesionError, OSError):
        return "missing"


def _refuse_non_finite(model: nn.Module, word: str, step: int) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise NonFiniteError(
                f"after step {step} {name} holds weights that are no numbers in {word}; "
                "give a lower --learning-rate, or leave that type out of --store if they are too large for it"
            )
