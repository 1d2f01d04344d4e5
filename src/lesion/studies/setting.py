"""What every study needs before it starts: the model, the data, and a folder for the run."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import nn

from lesion.anatomy import Loading, Model, adopt, load
from lesion.anatomy.files import fingerprint, weight_files
from lesion.data import ImageData, TextData, load_images, load_text
from lesion.errors import InputError, ModelError, RunFolderError
from lesion.results import RunFolder, commit, run_name, versions

DEFAULT_CONTEXT = 1024
"""Longest sequence read unless `context` says otherwise; less where the model has fewer positions."""


@dataclass(frozen=True)
class Reading:
    """How data are read; see the options of the command line of the same names.

    Attributes:
        tokens: budget over all domains; None reads everything.
        context: longest sequence, specials included; None takes the model's positions, at most `DEFAULT_CONTEXT`.
        bos: put a BOS in front: where the tokenizer has one and does not add it (auto), always, or never.
        pack: concatenate documents and cut them into full contexts instead of one document a sequence.
        on_bad_row: stop at a row that cannot be read, or leave it out and count it.
    """

    tokens: int | None = 100_000
    context: int | None = None
    bos: Literal["auto", "always", "never"] = "auto"
    pack: bool = False
    on_bad_row: Literal["fail", "skip"] = "fail"

    def arguments(self) -> dict[str, Any]:
        """As plain arguments for a manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What a study gives back.

    Attributes:
        tables: data frames by name, the same as in the run folder.
        path: the run folder, if there is one.
        warnings: what a reader of the tables must know, one line each.
        partial: some rows could not be measured; they are NaN.
        resumed_complete: the run had been complete already, and its tables were read.
    """

    tables: dict[str, pd.DataFrame]
    path: Path | None
    warnings: list[str] = field(default_factory=list)
    partial: bool = False
    resumed_complete: bool = False


def open_model(
    model: "str | Path | nn.Module | Model",
    *,
    tokenizer: Any = None,
    loading: Loading | None = None,
    expects: Callable[[int], None] | None = None,
) -> Model:
    """A model by name, by folder, or one that is in memory already.

    Raises:
        ModelError: it cannot be loaded or is not supported, or its weights are elsewhere (on the meta device).
        InputError: a model in memory without its tokenizer, where text is to be read, or one to be streamed.
    """
    loading = loading or Loading()
    if isinstance(model, Model | nn.Module) and loading.stream:
        raise InputError("a model that is in memory cannot be read block by block; give its folder or its hub id")
    if isinstance(model, Model):
        return model
    if isinstance(model, nn.Module):
        away = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        if away:
            raise ModelError(
                f"{len(away)} weights of the model in memory are on the meta device, {away[0]} first: edits of weights "
                "that were offloaded would change nothing; give the model's folder instead"
            )
        found = adopt(model, tokenizer)
        if tokenizer is None and found.anatomy.objective != "image":
            raise InputError("a model in memory needs tokenizer=… beside it to read text")
        return found
    return load(model, **asdict(loading), expects=expects)


def open_data(
    data: "str | Sequence[str] | TextData | ImageData", model: Model, reading: Reading, *, seed: int
) -> "TextData | ImageData":
    """The data, read as the model reads.

    Raises:
        InputError: the data or the options do not fit the model; the message says which.
    """
    if isinstance(data, TextData | ImageData):
        _refuse_other_models_data(data, model)
        return data
    anatomy = model.anatomy
    if anatomy.objective == "image":
        images = _open_images(data, model, reading, seed)
        _refuse_other_models_data(images, model)
        return images
    context = min(DEFAULT_CONTEXT, anatomy.n_positions) if reading.context is None else reading.context
    if context > anatomy.n_positions:
        raise InputError(f"--context {context} is longer than the {anatomy.n_positions} positions of {model.name}")
    return load_text(
        data,
        model.tokenizer,
        context=context,
        tokens=reading.tokens,
        bos=reading.bos,
        pack=reading.pack,
        on_bad_row=reading.on_bad_row,
        objective=anatomy.objective,
        seed=seed,
        vocabulary_size=anatomy.n_token_ids,
    )


def _open_images(data: "str | Sequence[str]", model: Model, reading: Reading, seed: int) -> ImageData:
    if not isinstance(data, str) and len(data) != 1:
        raise InputError("images come from one source; give --data once")
    if data in ("stdlib", ["stdlib"]):
        raise InputError(f"{model.name} reads images; give --data digits, a folder of images, or hf:ID")
    plain = Reading(tokens=reading.tokens)
    of_text = [
        f"--{name.replace('_', '-')}" for name, value in asdict(reading).items() if value != getattr(plain, name)
    ]
    if of_text:
        raise InputError(f"{', '.join(of_text)}: for text only; {model.name} reads images")
    config = model.anatomy.config
    return load_images(
        data if isinstance(data, str) else data[0],
        size=config.image_size,
        channels=config.num_channels,
        processor=model.image_processor,
        n_images=reading.tokens,
        seed=seed,
        id2label=getattr(config, "id2label", None),
    )


def _refuse_other_models_data(data: "TextData | ImageData", model: Model) -> None:
    anatomy = model.anatomy
    if data.objective != anatomy.objective:
        raise InputError(f"the data is for a model of kind {data.objective!r}; {model.name} is {anatomy.objective!r}")
    if isinstance(data, ImageData):
        if data.largest_label >= anatomy.vocabulary:
            raise InputError(
                f"the data holds the label {data.largest_label}, but {model.name} knows only {anatomy.vocabulary} "
                "classes; give images of its own classes, or a folder of images without labels"
            )
        return
    longest, largest = int(np.max(data.lengths)), data.largest_id
    if longest > anatomy.n_positions:
        raise InputError(f"the data holds a sequence of {longest} tokens; {model.name} has {anatomy.n_positions}")
    if largest >= anatomy.n_token_ids:
        raise InputError(f"the data holds token id {largest}; {model.name} knows only {anatomy.n_token_ids} ids")


@dataclass(frozen=True)
class Study:
    """The facts that determine a run's numbers, and those that only describe it.

    Attributes:
        name: the command.
        arguments: everything asked that changes numbers, defaults filled in; JSON-able.
        command: the command line, or the call, as given.
        beside: other files that are read, by what they are for; `sha256` says which, the rest only describes.
    """

    name: str
    arguments: Mapping[str, Any]
    model: Model
    data: "TextData | ImageData"
    command: str
    seed: int
    beside: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def folder_name(self) -> str:
        """Name for a run without `--out`: the same model and arguments give the same name, so that a run resumes.

        Wherever the model lies: its fingerprint is hashed, not its path.
        """
        name = self.model.name
        if Path(name).is_dir():
            name = Path(os.path.abspath(name)).name  # noqa: PTH100  (a link keeps its own name; `.` gets one)
        decisive = {**self.arguments, "dtype": self.dtype, "model": self.model.fingerprint, **self._beside}
        return run_name(self.name.replace(" ", "-"), name, decisive)

    def open_folder(self, out: Path, *, resume: bool, overwrite: bool) -> RunFolder:
        """The run's folder: new, or the one of an earlier start of the same run.

        Raises:
            RunFolderError: it belongs to another run, is locked, or cannot be written, or there is nothing to resume.
        """
        try:
            exists = (out / "run.json").is_file()
        except OSError as error:  # for instance a name that is too long
            raise RunFolderError(f"cannot use {out}: {error.strerror or error}; pass another --out") from None
        if resume and not exists:
            raise RunFolderError(f"--resume was asked for, but there is no run in {out}; leave it out to start one")
        described = {**self.model.describe(), "configuration": _configuration(self.model)}
        identity = {
            "study": self.name,
            "arguments": dict(self.arguments),
            "model": described["fingerprint"],
            "data": self.data.fingerprint,
            **self._beside,
            "dtype": self.dtype,
            "lesion": versions()["lesion"],
        }
        manifest = {
            "study": self.name,
            "command": self.command,
            "arguments": dict(self.arguments),
            "versions": versions(),
            "commit": commit(),
            "device": self.device,
            "dtype": self.dtype,
            "seeds": [self.seed],
            "model": described,
            "data": _described(self.data),
            **{name: dict(facts) for name, facts in self.beside.items()},
            "counts": {"n_documents": self.data.n_documents, "n_tokens": self.data.n_tokens},
        }
        check = weights_check(self.model)
        return RunFolder.open(out, identity=identity, manifest=manifest, overwrite=overwrite, check=check)

    @property
    def _beside(self) -> dict[str, str]:
        return {name: facts["sha256"] for name, facts in self.beside.items()}

    @property
    def device(self) -> str:
        return str(self.model.anatomy.device)

    @property
    def dtype(self) -> str:
        return str(self.model.anatomy.dtype).removeprefix("torch.")


def weights_check(model: Model) -> Callable[[], None] | None:
    """A function that raises `ModelError` once the weight files are no longer those that were loaded.

    Whoever overwrites one changes blocks that are read from disk, and the model of a worker that starts later. Sizes
    and times of change are looked at; where they differ, all is hashed again. None for a model that has no files.
    """
    folder = _folder(model)
    if folder is None:
        return None
    before = _weight_stats(folder)

    def check() -> None:
        nonlocal before
        now = _weight_stats(folder)
        if now == before:
            return
        if not now or fingerprint(folder, weight_files(folder, allow_pickle=True)) != model.stored_fingerprint:
            raise ModelError(
                f"the files of {folder} were changed while they were in use, so this part of the run was not kept; "
                "give the same command again once nothing writes to them"
            )
        before = now

    return check


def _folder(model: Model) -> Path | None:
    """The folder that a model was loaded from."""
    name = getattr(model.anatomy.model, "name_or_path", None)
    if model.stored_fingerprint is None or not name or not Path(name).is_dir():
        return None
    return Path(name).absolute()


def _weight_stats(folder: Path) -> list[tuple[str, int, int, int]]:
    """Name, size, time of change and inode of the configuration and of each file that may hold weights."""
    try:
        files = [folder / "config.json", *sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.bin"))]
        stats = [(path.name, path.stat()) for path in files]
    except OSError:
        return []
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats]


def _configuration(model: Model) -> Any:
    """The model's configuration: as stored, or as it is where the model has no files; without the names of classes."""
    folder = _folder(model)
    if folder is not None:
        found = json.loads((folder / "config.json").read_bytes())
    else:
        found = json.loads(json.dumps(model.anatomy.config.to_dict(), default=str))
    kept = {key: value for key, value in found.items() if key not in ("id2label", "label2id", "transformers_version")}
    return json.loads(json.dumps(kept), parse_constant=str)  # a manifest holds no NaN and no infinity


def left_out(data: "TextData | ImageData") -> list[str]:
    """What of the data was left out or had to be taken for granted, a line each."""
    notes = list(data.description.get("notes", []))
    if isinstance(data, ImageData):
        return notes
    counts = {name: domain["n_bad_rows"] for name, domain in data.description["domains"].items()}
    left = [f"{name}: {count} rows could not be read and were left out" for name, count in counts.items() if count]
    return notes + left


def _described(data: "TextData | ImageData") -> dict[str, Any]:
    """What was read, for the manifest: counts are of documents (images: of images), by domain."""
    description = dict(data.description)
    if isinstance(data, ImageData):
        counted = {"n_documents": data.n_documents, "n_tokens": data.n_tokens}
        return {**description, "domains": [{"name": data.domains[0], **counted}], "fingerprint": data.fingerprint}
    domains = [{"name": name, **counts} for name, counts in description.pop("domains").items()]
    return {**description, "domains": domains, "fingerprint": data.fingerprint}
