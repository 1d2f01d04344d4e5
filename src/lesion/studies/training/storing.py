"""Models stored while they train: ordinary folders, each in the type that was asked for, whole or not at all."""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

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
        """
        target = self.folder / f"step-{step:06}"
        partial = self.folder / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for word, dtype in self._dtypes.items():
            stored = copy.deepcopy(model).to(dtype)
            stored.save_pretrained(partial / word)
            if self._beside is not None:
                self._beside.save_pretrained(partial / word)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        return target
