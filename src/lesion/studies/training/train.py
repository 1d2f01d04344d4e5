"""`lesion train pretrain` and `lesion train finetune`: models made to be looked at (spec `zero-modes`, section 4)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, set_seed

from lesion.anatomy import load
from lesion.anatomy.wording import quiet_transformers
from lesion.data import ImageData, TextData, load_images, load_text
from lesion.data.vocabulary import train_tokenizer
from lesion.errors import InputError
from lesion.results import RunFolder, commit, digest, run_name, versions
from lesion.studies.setting import Outcome, Reading
from lesion.studies.training.configurations import architecture
from lesion.studies.training.counting import ZeroModeCounter
from lesion.studies.training.loop import Data, Keeper, Told, last_whole, make_loop
from lesion.studies.training.recipe import Keeping, Recipe
from lesion.studies.training.storing import ModelStore

MODELS, TRAINER = "models", "trainer"


@dataclass(frozen=True)
class Start:
    """What training starts from.

    Attributes:
        model: in float32.
        beside: tokenizer or image processor, stored with every model.
        identity: what determines it, for the run's identity.
        described: what the manifest says of it.
    """

    model: PreTrainedModel
    beside: Any
    data: Data
    identity: dict[str, Any]
    described: dict[str, Any]


def pretrain(
    config: str,
    data: "str | Sequence[str]" = "stdlib",
    *,
    tokenizer: str | Path | None = None,
    vocabulary: int | None = None,
    reading: Reading | None = None,
    recipe: Recipe | None = None,
    keeping: Keeping | None = None,
    seed: int = 0,
    device: str = "auto",
    out: Path | str,
    name_folder: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "lesion.training.pretrain(...)",
    progress: Told | None = None,
) -> Outcome:
    """Trains one of the small architectures from random weights.

    Weights and the optimiser's states are float32 (or held in a type, `Recipe.hold`); what is stored is rounded once.

    Args:
        config: a name of `ARCHITECTURES`.
        data: DATA, one or several; documents are joined into full contexts.
        tokenizer: folder of a tokenizer; None trains a byte-level BPE on the data.
        vocabulary: ids of that BPE; None takes the architecture's.
        reading: how data are read; `tokens` None reads everything once.
        out: run folder; the models are in `models/step-NNNNNN/DTYPE`.

    Returns:
        Tables `training` (loss by step), `training_evaluation` (on what was held out) and, where it was asked for,
        `training_zero_modes`.

    Raises:
        LesionError: anything that a user can mend, in one line.
    """
    kind, reading = architecture(config), reading or Reading(tokens=None)
    recipe, keeping = recipe or Recipe(), keeping or Keeping()

    def start() -> Start:
        if kind.reads_images:
            if tokenizer is not None or vocabulary is not None:
                raise InputError(f"{config} reads images: leave out --tokenizer and --vocabulary")
            images = _images(data, kind.context, 1, reading, seed)
            set_seed(seed)
            return Start(kind.build(0, kind.context, None), None, images, {"config": config}, {"config": config})
        context = reading.context or kind.context
        words = _tokenizer(data, tokenizer, vocabulary or kind.vocabulary, context, reading)
        text = _text(data, words, context, reading, seed)
        set_seed(seed)
        model = kind.build(len(words), max(context, kind.context), words)
        return Start(model, words, text, {"config": config}, {"config": config, "vocabulary": len(words)})

    said = {"config": config, "vocabulary": vocabulary, "tokenizer": str(tokenizer) if tokenizer else None}
    asked = _Asked("train pretrain", said, data, reading, recipe, keeping, seed, device, command)
    return _train(start, asked, config, out, name_folder, resume, overwrite, progress)


def finetune(
    model: str,
    data: "str | Sequence[str]" = "stdlib",
    *,
    reading: Reading | None = None,
    recipe: Recipe | None = None,
    keeping: Keeping | None = None,
    seed: int = 0,
    device: str = "auto",
    out: Path | str,
    name_folder: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "lesion.training.finetune(...)",
    progress: Told | None = None,
) -> Outcome:
    """Goes on training a stored model, on other data; arguments and tables are those of `pretrain`.

    Weights are widened to float32 first, exactly; zero modes are counted against them as they were stored.
    """
    reading = reading or Reading(tokens=None)
    recipe, keeping = recipe or Recipe(learning_rate=1e-4), keeping or Keeping()

    def start() -> Start:
        found = load(model, device="cpu", dtype="float32")
        anatomy = found.anatomy
        identity = {"model": found.fingerprint}
        described = {"model": found.describe()}
        if anatomy.objective == "image":
            config = anatomy.config
            images = _images(data, config.image_size, config.num_channels, reading, seed, found.image_processor)
            return Start(anatomy.model, found.image_processor, images, identity, described)
        if anatomy.objective != "causal":
            raise InputError(f"{model} is a masked model; causal models and image classifiers can be trained")
        context = min(reading.context or anatomy.n_positions, anatomy.n_positions)
        text = _text(data, found.tokenizer, context, reading, seed, anatomy.n_token_ids)
        return Start(anatomy.model, found.tokenizer, text, identity, described)

    asked = _Asked("train finetune", {"model": model}, data, reading, recipe, keeping, seed, device, command)
    return _train(start, asked, Path(model).name, out, name_folder, resume, overwrite, progress)


@dataclass(frozen=True)
class _Asked:
    study: str
    start: dict[str, Any]
    data: "str | Sequence[str]"
    reading: Reading
    recipe: Recipe
    keeping: Keeping
    seed: int
    device: str
    command: str

    def arguments(self) -> dict[str, Any]:
        return {
            **self.start,
            "data": [self.data] if isinstance(self.data, str) else list(self.data),
            **self.reading.arguments(),
            **self.recipe.arguments(),
            **self.keeping.arguments(),
            "seed": self.seed,
        }


def _tokenizer(data: "str | Sequence[str]", given: str | Path | None, size: int, context: int, reading: Reading) -> Any:
    if given is None:
        return train_tokenizer(data, size, context=context, on_bad_row=reading.on_bad_row)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(given), local_files_only=Path(given).exists())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--tokenizer {given} cannot be loaded: {str(error).splitlines()[0]}") from None


def _text(
    data: "str | Sequence[str]", tokenizer: Any, context: int, reading: Reading, seed: int, ids: int | None = None
) -> TextData:
    return load_text(
        data,
        tokenizer,
        context=context,
        tokens=reading.tokens,
        bos=reading.bos,
        pack=True,
        on_bad_row=reading.on_bad_row,
        seed=seed,
        vocabulary_size=ids,
    )


def _images(
    data: "str | Sequence[str]", size: int, channels: int, reading: Reading, seed: int, processor: Any = None
) -> ImageData:
    spec = data if isinstance(data, str) else data[0]
    if spec == "stdlib" or (not isinstance(data, str) and len(data) != 1):
        raise InputError("images come from one source; give --data digits, a folder of images, or hf:ID")
    found = load_images(spec, size=size, channels=channels, processor=processor, n_images=reading.tokens, seed=seed)
    if found.largest_label < 0:
        raise InputError(f"'{spec}' has no labels to train on; give a folder with a folder a class, or digits")
    return found


def _train(
    start: Callable[[], Start],
    asked: _Asked,
    name: str,
    out: Path | str,
    name_folder: bool,
    resume: bool,
    overwrite: bool,
    progress: Told | None,
) -> Outcome:
    asked.recipe.check()
    asked.keeping.check()
    begun = start()
    arguments = asked.arguments()
    identity = {
        "study": asked.study,
        "arguments": arguments,
        **begun.identity,
        "data": begun.data.fingerprint,
        "lesion": versions()["lesion"],
    }
    manifest = {
        "study": asked.study,
        "command": asked.command,
        "arguments": arguments,
        "versions": versions(),
        "commit": commit(),
        "device": asked.device,
        "seeds": [asked.seed],
        "start": begun.described,
        "data": begun.data.description,
    }
    path = Path(out) / run_name(asked.study.replace(" ", "-"), name, identity) if name_folder else Path(out)
    if resume and not (path / "run.json").exists():
        raise InputError(f"--resume: {path} holds no run; leave --resume out to start it")
    with RunFolder.open(path, identity=identity, manifest=manifest, overwrite=overwrite) as folder:
        if folder.is_complete and last_model(folder.path) is not None:
            tables = {name: folder.read_table(name) for name in folder.manifest["tables"]}
            return Outcome(tables, folder.path, folder.manifest.get("warnings", []), resumed_complete=True)
        with quiet_transformers():
            tables, facts = _run(begun, asked, folder, progress)
        for table, frame in tables.items():
            folder.write_table(table, frame)
        folder.finish("complete", warnings=[], **facts)
        return Outcome(tables, folder.path, [])


def last_model(run: Path) -> Path | None:
    """The folder of the last stored step of a run, with a folder a type in it."""
    found = sorted((run / MODELS).glob("step-*"))
    return found[-1] if found else None


def split(n_documents: int, held_out: float) -> tuple[range, range]:
    """Numbers of the sequences to train on and of those held out, the last ones.

    One between them belongs to neither: packed documents go over from one sequence to the next.
    """
    n_held_out = round(held_out * n_documents)
    if held_out and not n_held_out:
        raise InputError(f"--held-out {held_out} of {n_documents} sequences is none; give more data, or --held-out 0")
    n_trained = n_documents - n_held_out - bool(n_held_out)
    if n_trained < 1:
        raise InputError(f"{n_documents} sequences leave none to train on; give more data, or a smaller --held-out")
    return range(n_trained), range(n_documents - n_held_out, n_documents)


def _run(
    begun: Start, asked: _Asked, folder: RunFolder, progress: Told | None
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    recipe, keeping, data = asked.recipe, asked.keeping, begun.data
    trained, held_out = split(data.n_documents, keeping.held_out)
    device = _device(asked.device)
    model = begun.model
    counter = ZeroModeCounter(model, keeping.dtypes) if keeping.count_every else None
    store = ModelStore(folder.path / MODELS, keeping.dtypes, begun.beside)
    tokens_a_step = recipe.batch_size * int(data.lengths[0])
    keeper = Keeper(keeping, data, held_out, store, counter, progress, tokens_a_step)
    trainer = folder.path / TRAINER
    loop = make_loop(model, data, trained, recipe, keeping, keeper, trainer, seed=asked.seed, device=device)
    earlier = last_whole(trainer)
    if earlier is None:
        store.store(model, 0)
        if held_out:
            keeper.evaluate(model, 0)
    else:
        keeper.restore(earlier)
    n_before = len(loop.losses)
    started = time.monotonic()
    loop.train(resume_from_checkpoint=str(earlier) if earlier else None)
    seconds = time.monotonic() - started
    tables = {"training": _losses(loop.losses, loop.rates, loop.norms, keeping.log_every, tokens_a_step)}
    if keeper.evaluations:
        tables["training_evaluation"] = pd.DataFrame(keeper.evaluations)
    if counter is not None:
        tables["training_zero_modes"] = counter.table()
    n_steps = len(loop.losses)
    facts = {
        "counts": {
            "n_steps": n_steps,
            "n_tokens": n_steps * tokens_a_step,
            "n_sequences": len(trained),
            "n_held_out": len(held_out),
            "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "timings": {
            "seconds": seconds,
            "tokens_per_second": (n_steps - n_before) * tokens_a_step / seconds if seconds else None,
        },
        "weights": digest({name: list(tensor.shape) for name, tensor in model.state_dict().items()}),
    }
    return tables, facts


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked not in ("cpu", "cuda"):
        raise InputError(f"--device {asked!r}: training takes auto, cpu or cuda")
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no CUDA device; give cpu")
    return asked


def _losses(
    losses: Sequence[float], rates: Sequence[float], norms: Sequence[float], every: int, tokens: int
) -> pd.DataFrame:
    """A row for every so many steps; the loss is their mean, rate and gradient's norm are the last step's."""
    rows = []
    for index, end in enumerate(range(every, len(losses) + 1, every)):
        rows.append(
            {
                "step": end,
                "n_tokens": end * tokens,
                "loss_nats": sum(losses[end - every : end]) / every,
                "learning_rate": rates[end - 1],
                "gradient_norm": norms[index],
            }
        )
    return pd.DataFrame(rows)
