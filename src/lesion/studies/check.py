"""The anatomy's contract on the user's own weights: every check of `lesion.engine.checks`, as a table."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from lesion.anatomy import Loading, Model
from lesion.data import ImageData, TextData
from lesion.engine.checks import Finding, run_checks
from lesion.engine.samples import Samples, image_samples, text_samples
from lesion.errors import InputError, ModelError
from lesion.studies.setting import Reading, open_data, open_model

CONTEXT = 256
"""Longest document unless `context` says otherwise: checks are many passes, and a large model on a CPU is slow."""
TOKENS = 2048
"""Tokens to read, from which the two documents are taken."""


@dataclass(frozen=True)
class Examination:
    """What was found, and of which model."""

    model: Model
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> tuple[str, ...]:
        """Names of the checks that did not hold."""
        return tuple(finding.check for finding in self.findings if finding.verdict == "WRONG")

    def facts(self) -> dict[str, Any]:
        """What the model is: the facts of a run's manifest, and its dtype, device and heads' width."""
        anatomy = self.model.anatomy
        return {
            **self.model.describe(),
            "d_head": anatomy.d_head,
            "dtype": str(anatomy.dtype).removeprefix("torch."),
            "device": str(anatomy.device),
        }

    def table(self) -> pd.DataFrame:
        """A row a check: `check`, `verdict`, `found`, `bound` (=, <= or >), `limit`, `detail`."""
        return pd.DataFrame([asdict(finding) for finding in self.findings]).reindex(columns=list(COLUMNS))


COLUMNS = ("check", "verdict", "found", "bound", "limit", "detail")


def check(
    model: "str | Path | nn.Module | Model",
    data: "str | Sequence[str] | TextData | ImageData | None" = None,
    *,
    context: int | None = None,
    tokenizer: Any = None,
    loading: Loading | None = None,
) -> pd.DataFrame:
    """Checks on a model's own weights what every study takes for granted.

    Args:
        model: a folder, hub id or `zoo:NAME`, or a model in memory (with `tokenizer`).
        data: DATA of the command line; None reads the standard library, or the embedded digits for an image model.
        context: tokens of the longer document at most; None takes 256, or the model's positions if they are fewer.
        loading: how the model is loaded: device, dtype …

    Returns:
        A row a check: `check`, `verdict` (`ok`, `not applicable`, `WRONG`), `found` (for logits: the greatest
        difference as a share of the largest logit), `bound` and `limit` (what `found` has to be), `detail`.

    Raises:
        LesionError: anything that a user can mend, in one line; a check that fails is a row, not an error.
    """
    return examine(model, data, context=context, tokenizer=tokenizer, loading=loading).table()


def examine(
    model: "str | Path | nn.Module | Model",
    data: "str | Sequence[str] | TextData | ImageData | None" = None,
    *,
    context: int | None = None,
    tokenizer: Any = None,
    loading: Loading | None = None,
    before: Callable[[str], None] = lambda name: None,
) -> Examination:
    """As `check`, with the model.

    Args:
        before: told the name of each check before it runs.
    """
    opened = open_model(model, tokenizer=tokenizer, loading=loading)
    if opened.streamed is not None:
        raise ModelError(
            f"{opened.name} does not fit into the memory of {opened.anatomy.device}, and checks run the whole model; "
            "give another --device or --dtype"
        )
    samples = _samples(opened, data, context)
    return Examination(opened, tuple(run_checks(opened.anatomy, samples, before=before)))


def _samples(model: Model, data: "str | Sequence[str] | TextData | ImageData | None", context: int | None) -> Samples:
    """Two documents (images: two pictures) of the data."""
    if model.anatomy.objective == "image":
        return _pictures(model, data, context)
    length = min(CONTEXT, model.anatomy.n_positions) if context is None else context
    reading = Reading(tokens=max(TOKENS, 2 * length), context=length)
    opened = open_data("stdlib" if data is None else data, model, reading, seed=0)
    assert isinstance(opened, TextData)  # images were seen above
    longest = int(np.argmax(opened.lengths))
    other = (longest + 1) % opened.n_documents
    long, short = (torch.from_numpy(opened.document(index)) for index in (longest, other))
    return text_samples(long, short, padding=opened.pad_id)


def _pictures(model: Model, data: "str | Sequence[str] | TextData | ImageData | None", context: int | None) -> Samples:
    if context is not None:
        raise InputError(f"--context: for text only; {model.name} reads images")
    opened = open_data("digits" if data is None else data, model, Reading(tokens=2), seed=0)
    if opened.n_documents < 2:
        raise InputError("checks need two pictures; there is one in the data")
    pixels = opened.batch([0, 1]).pixels
    assert pixels is not None
    return image_samples(pixels.to(model.anatomy.dtype))
