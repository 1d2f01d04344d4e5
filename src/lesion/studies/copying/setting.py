"""What a copying run is asked for, opened and checked before anything is run."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from lesion.anatomy import Loading, Model
from lesion.data import TextData
from lesion.data.copy_tasks import TASKS, CopyTask, Drawing, Probes, draw_probes, draw_task, usable_ids
from lesion.errors import InputError, ModelError
from lesion.interventions import Intervention
from lesion.interventions.attention import refuse_unrecordable
from lesion.studies.copying.conditions import Condition, Sets, conditions_of, masks_digest, parsed, without_empty
from lesion.studies.copying.measuring import Head
from lesion.studies.setting import open_model

Heads = Literal["auto", "all", "none"] | Sequence[Head]
MOST_HEADS = 4
"""Induction heads that are followed under every condition, unless heads are named."""


@dataclass(frozen=True)
class Looking:
    """What is looked at besides accuracy.

    Attributes:
        heads: whose attention is followed under every condition, and drawn: `auto` (the induction heads with the
            highest scores, at most `MOST_HEADS`; where there are none, the one with the highest score), `all`, `none`
            (no attention is computed at all), or (layer, head) pairs.
        threshold: induction score from which a head can be an induction head.
        maps: keep attention maps under every condition, not only without an ablation.
    """

    heads: Heads = "auto"
    threshold: float = 0.2
    maps: bool = False

    def check(self) -> None:
        """Raises InputError where a number or a word is none of those that are possible."""
        if not 0.0 < self.threshold <= 1.0:
            raise InputError(f"--threshold {self.threshold:g}: attention is a share; give more than 0 and at most 1")
        if isinstance(self.heads, str) and self.heads not in ("auto", "all", "none"):
            raise InputError(f"--heads {self.heads!r}: give auto, all, none, or heads as 1:2,0:3 (layer:head)")
        if self.heads == "none" and self.maps:
            raise InputError("--maps draws attention, and --heads none computes none; leave one of them out")
        if not isinstance(self.heads, str) and (not self.heads or len(set(self.heads)) != len(self.heads)):
            raise InputError("--heads: give one or more heads, each once")

    @property
    def written(self) -> "str | list[str]":
        """The heads as the command line writes them."""
        if isinstance(self.heads, str):
            return self.heads
        return [f"{layer}:{head}" for layer, head in self.heads]

    @property
    def is_wanted(self) -> bool:
        """Whether any attention is computed."""
        return self.heads != "none"


def read_heads(text: str) -> Heads:
    """Reads `auto`, `all`, `none` or `1:2,0:3`.

    Raises:
        InputError: it is none of these.
    """
    words: dict[str, Heads] = {"auto": "auto", "all": "all", "none": "none"}
    if text in words:
        return words[text]
    if not all(re.fullmatch(r"\s*\d{1,6}:\d{1,6}\s*", part) for part in text.split(",")):
        raise InputError(f"--heads {text!r}: give auto, all, none, or heads as 1:2,0:3 (layer:head)")
    pairs = [part.split(":") for part in text.split(",")]
    return tuple((int(layer), int(head)) for layer, head in pairs)


@dataclass(frozen=True)
class Prepared:
    """A run that is ready.

    Attributes:
        probes: None where no attention is wanted.
        data: the strings of all tasks, a domain a task.
        arguments: everything asked that changes numbers, defaults filled in.
        beside: files of masks that are read.
        notes: what a reader of the tables must know before anything is run.
    """

    model: Model
    tasks: Sequence[CopyTask]
    probes: Probes | None
    conditions: Sequence[Condition]
    looking: Looking
    n_steps: int
    data: TextData
    arguments: dict[str, Any]
    beside: Mapping[str, Mapping[str, str]]
    notes: Sequence[str] = ()


def prepare(
    model: "str | Path | nn.Module | Model",
    *,
    tasks: Sequence[str] = TASKS,
    drawing: Drawing | None = None,
    base: Sequence["str | Intervention"] = (),
    edits: Sequence["str | Intervention"] = (),
    sets: Sets | None = None,
    looking: Looking | None = None,
    generate: int = 0,
    loading: Loading | None = None,
    batch_size: int | None = None,
    tokenizer: Any = None,
) -> Prepared:
    """Opens the model and checks everything that was asked against it; arguments are those of `copying`.

    Raises:
        InputError, InterventionError, ModelError: what was asked is not possible; the message says why.
    """
    drawing, looking = drawing or Drawing(), looking or Looking()
    drawing.check()
    looking.check()
    if sets:
        sets.check()
    _check(tasks, generate)
    before, after = parsed(base), parsed(edits)
    beside = masks_digest([*before, *after], sets)

    def expects(n_layers: int) -> None:
        for edit in (*before, *after):
            edit.order(n_layers)

    opened = open_model(model, tokenizer=tokenizer, loading=loading, expects=expects)
    anatomy = opened.anatomy
    _refuse_others(opened, looking, [*before, *after], sets)
    conditions, notes = without_empty(anatomy, conditions_of(anatomy, before, after, sets), len(after))
    drawing = replace(drawing, n_steps=max(1, generate))
    usable = usable_ids(opened.tokenizer, anatomy.n_token_ids)
    sizes: dict[str, Any] = {"n_ids": anatomy.n_token_ids, "n_positions": anatomy.n_positions, "usable": usable}
    drawn = [draw_task(name, opened.tokenizer, drawing, **sizes) for name in tasks]
    probes = draw_probes(opened.tokenizer, drawing, **sizes) if looking.is_wanted else None
    arguments = {
        "tasks": list(tasks),
        "examples": drawing.n_examples,
        "cut": drawing.cut,
        "through_text": drawing.through_text,
        "bos": drawing.bos,
        "generate": generate,
        "edits": [_short(edit) for edit in before],
        "condition": [_short(edit) for edit in after],
        **({name: list(getattr(sets, name)) for name in ("kinds", "scopes", "seeds")} if sets else {}),
        "heads": looking.heads
        if isinstance(looking.heads, str)
        else [f"{layer}:{head}" for layer, head in looking.heads],
        "threshold": looking.threshold,
        "maps": looking.maps,
        "batch_size": batch_size,
        "seed": drawing.seed,
    }
    data = as_text(drawn, opened, drawing)
    return Prepared(opened, drawn, probes, conditions, looking, generate, data, arguments, beside, notes)


def as_text(tasks: Sequence[CopyTask], model: Model, drawing: Drawing) -> TextData:
    """The strings of all tasks as data of any other study: a domain a task, a document a string."""
    strings = [task.whole(example) for task in tasks for example in range(task.n_examples)]
    lengths = np.array([len(string) for string in strings])
    counts = [task.n_examples for task in tasks]
    domains = {task.name: {"n_documents": task.n_examples, "n_tokens": int(task.ends.sum())} for task in tasks}
    known = {key: tasks[0].description[key] for key in ("tokenizer", "tokenizer_fingerprint")}
    digest = hashlib.sha256("".join(task.fingerprint for task in tasks).encode()).hexdigest()
    described = {
        "specs": [task.name for task in tasks],
        "domains": domains,
        "bos": bool(tasks[0].n_special),
        "cut": drawing.cut,
        "through_text": drawing.through_text,
        "chance": {task.name: task.chance for task in tasks},
        **known,
    }
    return TextData(
        domains=tuple(task.name for task in tasks),
        domain_of=np.repeat(np.arange(len(tasks)), counts),
        lengths=lengths,
        objective="causal",
        context=int(lengths.max()),
        fingerprint=digest,
        description=described,
        pad_id=0,
        _ids=np.concatenate(strings),
        _offsets=np.concatenate([[0], np.cumsum(lengths)]),
        _masking=None,
    )


def _check(tasks: Sequence[str], generate: int) -> None:
    unknown = [name for name in tasks if name not in TASKS]
    if unknown or not tasks or len(set(tasks)) != len(tasks):
        raise InputError(f"--tasks {','.join(tasks)!r}: give one or more, each once, of {', '.join(TASKS)}")
    if generate < 0:
        raise InputError(f"--generate {generate}: give how many tokens to generate, or 0 for none")


def _refuse_others(model: Model, looking: Looking, edits: Sequence[Intervention], sets: Sets | None) -> None:
    anatomy = model.anatomy
    if anatomy.objective != "causal":
        kind = {"masked": "predicts masked tokens", "image": "reads images"}[anatomy.objective]
        raise ModelError(f"{model.name} {kind}; copying is measured on models that predict the next token")
    if looking.is_wanted:
        refuse_unrecordable(anatomy)
    if model.streamed and (sets or any(edit.weights for edit in edits)):
        raise ModelError(f"weights are set in memory, and the blocks of {model.name} are on disk; pass --no-stream")
    if isinstance(looking.heads, str):
        return
    for layer, head in looking.heads:
        if not (0 <= layer < anatomy.n_layers and 0 <= head < anatomy.n_heads):
            raise InputError(
                f"--heads {layer}:{head}: the model has layers 0 to {anatomy.n_layers - 1} with heads 0 to "
                f"{anatomy.n_heads - 1}"
            )


def _short(edit: Intervention) -> str:
    name = edit.name
    for one in edit.weights:
        name = name.replace(one.masks, Path(one.masks).name)
    return name
