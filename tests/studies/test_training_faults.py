"""Training that is stopped, damaged, refused, or asked for what does not fit: nothing is lost or silent."""

import errno
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoTokenizer

from lesion.errors import InputError, LesionError, ModelError, NonFiniteError, RunFolderError
from lesion.studies.setting import Outcome, Reading
from lesion.studies.training import Keeping, Progress, Recipe, finetune, last_model, pretrain
from lesion.studies.training import loop as loop_module
from lesion.studies.training import train as train_module
from lesion.studies.training.storing import ModelStore
from tests.support import tiny_model

READING = Reading(tokens=2_000, context=16)
SHORT = Recipe(steps=6, batch_size=4, warmup=2, learning_rate=1e-3)
KEEPING = Keeping(store=("fp32",), log_every=1, save_every=2, store_every=3, count_every=1, held_out=0.1)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(f"word{number % 37} and {number * number % 101}" for number in range(2000)))
    return str(path)


@pytest.fixture(scope="module")
def base(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended, and a start for others."""
    out = tmp_path_factory.mktemp("base") / "run"
    pretrain("llama-tiny", text, vocabulary=300, reading=READING, recipe=SHORT, keeping=KEEPING, out=out)
    return out


def tuned(base: Path, text: str, out: Path, **changes: object) -> Outcome:
    """A short run from a copy of the base's last model."""
    options = {"reading": READING, "recipe": SHORT, "keeping": KEEPING, **changes}
    return finetune(str(base / "models/step-000006/fp32"), text, out=out, **options)  # type: ignore[arg-type]


def stored(run: Path) -> dict[str, dict[str, Tensor]]:
    return {str(path.relative_to(run)): load_file(path) for path in sorted(run.rglob("model.safetensors"))}


def assert_same(first: Path, second: Path) -> None:
    """All stored models and all tables, bit for bit."""
    models, others = stored(first), stored(second)
    assert models.keys() == others.keys()
    assert len(models) == 3
    for name, tensors in models.items():
        assert all(torch.equal(tensors[key], others[name][key]) for key in others[name])
    for path in (first / "tables").iterdir():
        one, two = pd.read_parquet(path), pd.read_parquet(second / "tables" / path.name)
        pd.testing.assert_frame_equal(one, two, check_exact=True)


def stopped(base: Path, text: str, out: Path, step: int, **changes: object) -> None:
    def stop(now: Progress) -> None:
        if now.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(base, text, out, progress=stop, **changes)


def test_stopped_after_its_last_step(base: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer's last checkpoint is there, the run was not yet marked complete: nothing is trained again."""

    def interrupt(folder: Path) -> dict[str, str]:
        raise KeyboardInterrupt

    tuned(base, text, tmp_path / "whole")
    monkeypatch.setattr(train_module, "stored_models", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tuned(base, text, tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setenv("LESION_CACHE", str(tmp_path / "cache"))
    assert (tmp_path / "run/trainer/checkpoint-6").is_dir()
    seen: list[int] = []
    tuned(base, text, tmp_path / "run", progress=lambda now: seen.append(now.step))
    assert seen == []
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_what_a_run_needs_to_go_on_is_gone_once_it_is_complete(base: Path, text: str, tmp_path: Path) -> None:
    stopped(base, text, tmp_path / "run", 3)
    assert (tmp_path / "run/trainer/checkpoint-2").is_dir()
    tuned(base, text, tmp_path / "run")
    assert not (tmp_path / "run/trainer").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", loop_module.ROWS, loop_module.WHOLE])
def test_a_damaged_checkpoint_is_not_gone_on_from(base: Path, text: str, tmp_path: Path, name: str) -> None:
    stopped(base, text, tmp_path / "run", 5)
    path = tmp_path / "run/trainer/checkpoint-4" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    seen: list[int] = []
    tuned(base, text, tmp_path / "run", progress=lambda now: seen.append(now.step))
    assert seen == [3, 4, 5, 6]
    tuned(base, text, tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("damage", ["missing", "changed", "none"])
def test_a_complete_run_whose_model_was_lost(base: Path, text: str, tmp_path: Path, damage: str) -> None:
    for name in ("run", "whole"):
        tuned(base, text, tmp_path / name)
    path = tmp_path / "run/models/step-000006/fp32/model.safetensors"
    if damage == "missing":
        shutil.rmtree(path.parents[1])
    elif damage == "changed":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    again = tuned(base, text, tmp_path / "run")
    assert again.resumed_complete == (damage == "none")
    assert again.warnings == (
        [] if damage == "none" else ["step-000006/fp32 was missing or changed: the run was done again"]
    )
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("lost", ["step-000000", "step-000003"])
def test_a_stopped_run_that_lost_a_model_begins_again(base: Path, text: str, tmp_path: Path, lost: str) -> None:
    stopped(base, text, tmp_path / "run", 5)
    shutil.rmtree(tmp_path / "run/models" / lost)
    outcome = tuned(base, text, tmp_path / "run")
    assert outcome.warnings == [f"{lost} was missing from models/: the run was begun again"]
    tuned(base, text, tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_model_that_was_being_stored_is_swept_away(base: Path, text: str, tmp_path: Path) -> None:
    stopped(base, text, tmp_path / "run", 3)
    leftover = tmp_path / "run/models/.step-000006.partial/fp32"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    tuned(base, text, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run/models").iterdir()) == [
        "step-000000", "step-000003", "step-000006",
    ]  # fmt: skip


@pytest.mark.parametrize("foreign", ["models/step-000006/fp32/notes.md", "models/mine.txt", "trainer/checkpoint-2/a/b"])
def test_overwrite_takes_its_own_files_only(base: Path, text: str, tmp_path: Path, foreign: str) -> None:
    stopped(base, text, tmp_path / "run", 5)
    other = Recipe(steps=2, batch_size=4, warmup=0)
    with pytest.raises(RunFolderError, match="belongs to another run"):
        tuned(base, text, tmp_path / "run", recipe=other)
    path = tmp_path / "run" / foreign
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(RunFolderError, match="not lesion's"):
        tuned(base, text, tmp_path / "run", recipe=other, overwrite=True)
    assert path.read_text() == "mine"
    path.unlink()
    tuned(base, text, tmp_path / "run", recipe=other, overwrite=True)
    assert sorted(stored(tmp_path / "run")) == [f"models/step-00000{step}/fp32/model.safetensors" for step in (0, 2)]


def test_a_run_over_several_passes_and_with_dropout_goes_on_as_it_was(text: str, tmp_path: Path) -> None:
    """GPT-2 with dropout and three steps a pass: the order of the data and the random masks are those of one run."""
    tokenizer = pretrain(
        "llama-tiny", text, vocabulary=300, reading=READING, recipe=Recipe(steps=1), keeping=KEEPING, out=tmp_path / "b"
    ).path
    assert tokenizer is not None
    folder = tmp_path / "gpt2"
    tiny_model("gpt2", vocab_size=300, resid_pdrop=0.3).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer / "models/step-000001/fp32").save_pretrained(folder)
    reading, recipe = Reading(tokens=1_600, context=16), Recipe(epochs=2.5, batch_size=29, warmup=1)
    for name, at in (("run", 4), ("whole", None)):
        for step in (at, None) if at else (None,):

            def stop(now: Progress, step: int | None = step) -> None:
                if now.step == step:
                    raise KeyboardInterrupt

            try:
                found = finetune(
                    str(folder),
                    text,
                    reading=reading,
                    recipe=recipe,
                    keeping=KEEPING,
                    out=tmp_path / name,
                    progress=stop,
                )
            except KeyboardInterrupt:
                assert step == at
    assert found.tables["training"]["step"].iloc[-1] == 8  # three steps a pass; the half pass is 1.5, rounded up
    assert_same_tables(tmp_path / "run", tmp_path / "whole")


def assert_same_tables(first: Path, second: Path) -> None:
    for path in (first / "tables").iterdir():
        one, two = pd.read_parquet(path), pd.read_parquet(second / "tables" / path.name)
        pd.testing.assert_frame_equal(one, two, check_exact=True)


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from lesion.studies.training import Recipe, finetune, Keeping
from lesion.studies.setting import Reading
from lesion.errors import RunFolderError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
try:
    finetune(sys.argv[1], sys.argv[2], reading=Reading(tokens=2000, context=16), out=sys.argv[3],
             recipe=Recipe(steps=6, batch_size=4, warmup=2, learning_rate=1e-3),
             keeping=Keeping(store=("fp32",), log_every=1, save_every=2, store_every=3, count_every=1, held_out=0.1))
except RunFolderError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1_000_000, 4_000_000])
def test_a_file_that_cannot_be_written(base: Path, text: str, tmp_path: Path, limit: int) -> None:
    """The system refuses the model (1 MB) or the optimiser's state (4 MB): one line, and the run goes on later."""
    start = base / "models/step-000006/fp32"
    arguments = [str(start), text, str(tmp_path / "run"), str(limit)]
    ended = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("cannot write ")
    assert len(ended.stdout.splitlines()) == 1
    assert "goes on where it stopped" in ended.stdout
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    tuned(base, text, tmp_path / "run")
    tuned(base, text, tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_full_disk_leaves_no_half_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    beside = type("Beside", (), {"save_pretrained": staticmethod(full)})()
    store = ModelStore(tmp_path, {"bf16": torch.bfloat16}, beside)
    with pytest.raises(RunFolderError, match="No space left on device"):
        store.store(model, 3)  # type: ignore[arg-type]
    assert not (tmp_path / "step-000003").exists()
    assert ModelStore(tmp_path, {"bf16": torch.bfloat16}, None).store(model, 3).is_dir()  # type: ignore[arg-type]


def test_weights_that_a_type_cannot_store(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        next(model.parameters())[0, 0] = 70_000.0
    with pytest.raises(NonFiniteError, match=r"embed_tokens\.weight holds weights that are no numbers in fp16"):
        ModelStore(tmp_path, {"fp16": torch.float16}, None).store(model, 3)  # type: ignore[arg-type]
    ModelStore(tmp_path, {"bf16": torch.bfloat16}, None).store(model, 3)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["step-000003"]


@pytest.mark.parametrize("word", ["bf16", "fp16"])
def test_the_start_is_held_too(base: Path, text: str, tmp_path: Path, word: str) -> None:
    """Zero modes are counted against the start as it is held, and everything stored is of the held type."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[word]
    recipe = Recipe(steps=6, batch_size=4, warmup=0, learning_rate=1e-4, hold=word)  # type: ignore[arg-type]
    outcome = tuned(base, text, tmp_path / "run", recipe=recipe)
    given = load_file(base / "models/step-000006/fp32/model.safetensors")
    models = stored(tmp_path / "run")
    start = models["models/step-000000/fp32/model.safetensors"]
    assert all(torch.equal(start[name], given[name].to(dtype).float()) for name in given)
    rounded = sum(int((start[name] != given[name]).sum()) for name in given)
    assert rounded > 0
    assert outcome.warnings[0].startswith(f"to be held in {word}, {rounded:,} weights of the start were rounded")
    end = models["models/step-000006/fp32/model.safetensors"]
    assert all(torch.equal(tensor, tensor.to(dtype).float()) for tensor in end.values())
    same = sum(int((start[name].view(torch.int32) == end[name].view(torch.int32)).sum()) for name in start)
    counted = outcome.tables["training_zero_modes"]
    assert counted[counted["step"] == 6]["n_zero_modes"].sum() == same
    assert 0 < same < sum(tensor.numel() for tensor in start.values())


def test_weights_that_cannot_be_held(base: Path, text: str, tmp_path: Path) -> None:
    folder = tmp_path / "start"
    shutil.copytree(base / "models/step-000006/fp32", folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = 1e6
    model.save_pretrained(folder)
    for hold in ("fp16", "bf16"):
        recipe = Recipe(steps=1, batch_size=4, warmup=0, hold=hold)  # type: ignore[arg-type]
        options = {"reading": READING, "recipe": recipe, "keeping": Keeping(store=("fp32",)), "out": tmp_path / hold}
        if hold == "fp16":
            with pytest.raises(InputError, match=r"down_proj\.weight holds weights that are too large for fp16"):
                finetune(str(folder), text, **options)  # type: ignore[arg-type]
        else:
            finetune(str(folder), text, **options)  # type: ignore[arg-type]


def test_starts_that_cannot_be_trained(base: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = base / "models/step-000006/fp32"
    with pytest.raises(InputError, match="--context 300 is longer than the 256 positions"):
        tuned(base, text, tmp_path / "long", reading=Reading(tokens=2_000, context=300))
    masked = tmp_path / "bert"
    tiny_model("bert", vocab_size=300).save_pretrained(masked)
    tokenizer = AutoTokenizer.from_pretrained(start)
    tokenizer.add_special_tokens({"mask_token": "<|begin|>"})
    tokenizer.save_pretrained(masked)
    with pytest.raises(InputError, match="is a masked model"):
        finetune(str(masked), text, reading=READING, out=tmp_path / "masked")
    pickled = tmp_path / "pickled"
    shutil.copytree(start, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="--allow-pickle"):
        finetune(str(pickled), text, reading=READING, recipe=SHORT, out=tmp_path / "run")
    found = finetune(str(pickled), text, reading=READING, recipe=SHORT, allow_pickle=True, out=tmp_path / "run")
    assert len(found.tables["training"]) == 1
    monkeypatch.setattr(sys.modules["lesion.anatomy.load"], "fits", lambda *_: False)
    with pytest.raises(ModelError, match="does not fit into memory; training takes 16 bytes a weight"):
        tuned(base, text, tmp_path / "streamed")
    assert not any((tmp_path / name).exists() for name in ("long", "masked", "streamed"))


def test_packed_weights_are_not_trained(base: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lesion.anatomy.anatomy.packing_of", lambda config: "bitsandbytes")
    with pytest.raises(ModelError, match=r"training reads weights as numbers.*packed"):
        tuned(base, text, tmp_path / "run")


def test_tied_weights_stay_tied(base: Path, text: str, tmp_path: Path) -> None:
    tuned(base, text, tmp_path / "run")
    path = tmp_path / "run/models/step-000006/fp32"
    start = load_file(base / "models/step-000006/fp32/model.safetensors")
    end = load_file(path / "model.safetensors")
    assert "lm_head.weight" not in end
    assert end.keys() == start.keys()
    assert not torch.equal(end["model.embed_tokens.weight"], start["model.embed_tokens.weight"])
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize(("config", "frozen"), [("opt-tiny-nopos", True), ("opt-tiny", False)])
def test_a_model_without_positions_learns_none_later(text: str, tmp_path: Path, config: str, frozen: bool) -> None:
    options = {"reading": READING, "recipe": Recipe(steps=2, batch_size=2, warmup=0), "keeping": KEEPING}
    pretrain(config, text, vocabulary=300, out=tmp_path / "base", **options)  # type: ignore[arg-type]
    outcome = finetune(tmp_path / "base/models/step-000002/fp32", text, out=tmp_path / "run", **options)  # type: ignore[arg-type]
    name = "model.decoder.embed_positions.weight"
    start, end = (stored(tmp_path / "run")[f"models/step-00000{step}/fp32/model.safetensors"] for step in (0, 2))
    assert bool(end[name].any()) != frozen
    assert torch.equal(end[name], start[name]) == frozen
    assert (
        "the table of positions is all zeros and stays so: the model has no positions" in outcome.warnings
    ) == frozen


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of pictures, each of its own brightness."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(20):
            pixels = generator.integers(80 * label, 80 * label + 60, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{index}.png")
    return tmp_path / "pictures"


def test_a_folder_of_pictures_has_its_own_classes(pictures: Path, tmp_path: Path) -> None:
    keeping = Keeping(store=("fp32",), held_out=0.2)
    recipe = Recipe(steps=40, batch_size=16, warmup=5)
    outcome = pretrain("vit-digits", str(pictures), recipe=recipe, keeping=keeping, out=tmp_path / "run")
    assert outcome.warnings == []
    model = last_model(tmp_path / "run")
    assert model is not None
    config = AutoModelForImageClassification.from_pretrained(model / "fp32").config
    assert config.id2label == {0: "ant", 1: "bee", 2: "cat"}
    assert outcome.tables["training_evaluation"]["top1"].iloc[-1] > 0.9
    assert outcome.tables["training"].columns[1] == "n_images"
    assert "images_per_second" in json.loads((tmp_path / "run/run.json").read_text())["timings"]
    again = finetune(model / "fp32", str(pictures), recipe=recipe, keeping=keeping, out=tmp_path / "more")
    assert again.tables["training_evaluation"]["top1"].iloc[0] == outcome.tables["training_evaluation"]["top1"].iloc[-1]
    with pytest.raises(InputError, match="knows only 3 classes"):
        finetune(model / "fp32", "digits", recipe=recipe, keeping=keeping, out=tmp_path / "digits")
    flat = tmp_path / "flat"
    shutil.copytree(pictures / "ant", flat)
    with pytest.raises(InputError, match="no labels to train on"):
        pretrain("vit-digits", str(flat), recipe=recipe, keeping=keeping, out=tmp_path / "flat-run")


def test_less_data_than_a_step_asks_for(text: str, tmp_path: Path) -> None:
    """Every step sees all there is; tokens are counted as they are."""
    reading, keeping = Reading(tokens=100, context=16), Keeping(store=("fp32",), log_every=4, held_out=0.0)
    recipe = Recipe(steps=6, batch_size=50, warmup=6)
    outcome = pretrain(
        "llama-tiny", text, vocabulary=280, reading=reading, recipe=recipe, keeping=keeping, out=tmp_path / "a"
    )
    manifest = json.loads((tmp_path / "a/run.json").read_text())
    sequences = manifest["counts"]["n_sequences"]
    assert 1 < sequences < 50
    table = outcome.tables["training"]
    assert table["step"].tolist() == [4, 6]  # the last row holds what is left
    assert table["n_tokens"].tolist() == [4 * 16 * sequences, 6 * 16 * sequences]
    assert outcome.warnings == [
        "the rate rises for 6 steps (--warmup) and there were 6: it never reached --learning-rate"
    ]
    assert "training_evaluation" not in outcome.tables
    with pytest.raises(InputError, match="--held-out"):
        pretrain("llama-tiny", text, vocabulary=280, reading=reading, recipe=recipe, out=tmp_path / "b")


def test_too_little_text_for_the_vocabulary(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a cat, a dog and a hen. " * 20)
    keeping = Keeping(store=("fp32",), held_out=0.0)
    options = {"reading": Reading(tokens=None, context=8), "recipe": Recipe(steps=1, batch_size=2, warmup=0)}
    outcome = pretrain("llama-tiny", str(short), keeping=keeping, out=tmp_path / "run", **options)  # type: ignore[arg-type]
    assert "ids of the 2048 that were asked for" in outcome.warnings[0]


def test_no_clipping_trains_differently_and_tells_the_same_kind_of_norm(base: Path, text: str, tmp_path: Path) -> None:
    tables = {}
    for clip in (0.0, 0.05):
        recipe = Recipe(steps=3, batch_size=4, warmup=0, learning_rate=1e-3, clip=clip)
        tables[clip] = tuned(base, text, tmp_path / str(clip), recipe=recipe).tables["training"]
    norms = [table["gradient_norm"].tolist() for table in tables.values()]
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-6)  # the same first gradient, its norm before clipping
    assert norms[0][0] > 0.05
    assert tables[0.0]["loss_nats"].tolist() != tables[0.05]["loss_nats"].tolist()


def test_held_out_losses_by_domain(base: Path, tmp_path: Path) -> None:
    """Against each held-out sequence alone, with plain arithmetic for means and errors."""
    specs = []
    for name, words in (("one", "alpha beta gamma"), ("two", "delta epsilon zeta eta")):
        rows = [" ".join(words.split()[(row + k * k) % len(words.split())] for k in range(60)) for row in range(40)]
        (tmp_path / f"{name}.txt").write_text("\n".join(rows))
        specs.append(f"{name}={tmp_path / name}.txt")
    reading = Reading(tokens=3_000, context=16)
    outcome = finetune(
        base / "models/step-000006/fp32", specs, reading=reading, recipe=SHORT, keeping=KEEPING, out=tmp_path / "run"
    )
    pooled, split = (outcome.tables[f"training_evaluation{end}"] for end in ("", "_by_domain"))
    assert pooled["step"].tolist() == [0, 6]
    assert split["domain"].tolist() == ["one", "two"] * 2
    folder = tmp_path / "run/models/step-000006/fp32"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    every: list[float] = []
    for name, spec in zip(("one", "two"), specs, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(Path(spec.partition("=")[2]).read_text())["input_ids"]]
        limit = -(-1_500 // 16) * 16
        sequences = [ids[start : start + 16] for start in range(0, limit, 16)]
        held = sequences[len(sequences) - round(0.1 * len(sequences)) :]
        losses = [model(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss.item() for row in held]
        row = split[(split["domain"] == name) & (split["step"] == 6)].iloc[0]
        assert row["n_tokens"] == 15 * len(held)
        # float32 losses of one sequence at a time and of several in a call: 1e-6 apart
        assert row["loss_nats"] == pytest.approx(np.mean(losses), abs=1e-5)
        assert row["loss_nats_sem"] == pytest.approx(np.std(losses, ddof=1) / np.sqrt(len(losses)), abs=1e-5)
        every += losses
    last = pooled.iloc[-1]
    assert last["loss_nats"] == pytest.approx(np.mean(every), abs=1e-5)
    assert last["loss_nats_sem"] == pytest.approx(np.std(every, ddof=1) / np.sqrt(len(every)), abs=1e-5)
    assert split["loss_nats"].nunique() == 4


def unchecked(**wrong: object) -> Recipe:
    """A recipe as users without a type checker may write it; under pytest its types would be checked first."""
    recipe = Recipe()
    for name, value in wrong.items():
        object.__setattr__(recipe, name, value)
    return recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": unchecked(schedule="linear")}, "--schedule 'linear'"),
        ({"recipe": unchecked(compute="float16")}, "--compute 'float16'"),
        ({"recipe": unchecked(hold="fp32")}, "--hold 'fp32'.*bf16 or fp16"),
        ({"recipe": Recipe(weight_decay=float("nan"))}, "--weight-decay nan"),
        ({"recipe": Recipe(steps=0)}, "--steps 0"),
        ({"keeping": Keeping(store_every=-1)}, "--store-every -1"),
        ({"keeping": Keeping(save_every=0)}, "--save-every 0"),
        ({"seed": 2**32}, "--seed"),
    ],
)
def test_numbers_that_make_no_sense(
    base: Path, text: str, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(LesionError, match=message):
        tuned(base, text, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
