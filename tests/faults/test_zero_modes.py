"""Faults 1-5, 7, 13-19, 43-45 and 48 for two checkpoints, masks and what is made of them, by the real command."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import lesion
from lesion.checkpoints.masks import FILE
from lesion.studies.setting import Outcome
from tests.checkpoints.pairs import as_bits, random_tensors, tuned_from, write
from tests.faults.commands import Commands, Running, commands
from tests.faults.disk import disk_full
from tests.faults.test_models import HOSTILE_HEADERS, UP, Header, rewrite_header
from tests.support import tiny_model

ODD = "model.layers.0.x\x1b[2J\0\u202e<script>alert(1)</script>\n.weight"
"""A name that would clear a terminal, turn text round and run in a page."""
CONFIG = {
    "model_type": "llama", "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 3, "hidden_size": 9,
    "intermediate_size": 21, "num_hidden_layers": 2, "vocab_size": 13,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with commands(tmp_path_factory.mktemp("output")) as found:
        yield found


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A folder with `base` and `tuned`."""
    base = random_tensors(0)
    tuned = tuned_from(base, 1)
    tuned[UP].view(-1)[-4:] = base[UP].view(-1)[-4:]  # the last bits of a mask are set
    write(tmp_path / "base", base)
    write(tmp_path / "tuned", tuned)
    for side in ("base", "tuned"):
        (tmp_path / side / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def refused(server: Commands, folder: Path, *arguments: object) -> str:
    """The one line of a command that must fail as bad input and leave nothing behind."""
    before = listing(folder)
    ended = server("zero-modes", *arguments, cwd=folder)
    assert (ended.code, ended.out) == (2, ""), ended
    assert ended.line.startswith("error: ")
    assert ended.line.isprintable()
    assert listing(folder) == before
    return ended.line


def diff(server: Commands, folder: Path, *options: object) -> str:
    return refused(server, folder, "diff", "base", "tuned", "--out", "run", "--look", "none", *options)


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_a_pair_that_is_whole(server: Commands, pair: Path) -> None:
    """What all the others are a change of."""
    ended = server("zero-modes", "diff", "base", "tuned", "--out", "run", "--look", "none", cwd=pair)
    assert (ended.code, ended.err) == (0, "")
    assert "projections: " in ended.out
    again = server("zero-modes", "diff", "base", "tuned", "--out", "run", "--look", "none", cwd=pair)
    assert (again.code, again.line) == (0, "This run was complete already.")


# ---------------------------------------------------------------- two checkpoints that do not fit


def test_two_architectures(server: Commands, pair: Path) -> None:
    (pair / "tuned" / "config.json").write_text('{"model_type": "gpt2"}')
    assert "base is of model type 'llama' and tuned of 'gpt2'" in diff(server, pair)
    (pair / "tuned" / "config.json").write_text("{}")
    edit(pair / "tuned", lambda tensors: [tensors.update({k: torch.cat([t, t], -1)}) for k, t in [*tensors.items()]])
    assert "only 0 have a counterpart of the same name and shape" in diff(server, pair)


def test_a_copy_in_other_shards_is_pointed_out(server: Commands, pair: Path) -> None:
    tensors = load_file(pair / "base" / "model.safetensors")
    shutil.rmtree(pair / "tuned")
    write(pair / "tuned", tensors, shards=2)
    ended = server("zero-modes", "diff", "base", "tuned", "--out", "run", "--look", "none", cwd=pair)
    assert ended.code == 0
    assert "every weight that was compared is the same on both sides" in " ".join(ended.err.split())


@pytest.mark.parametrize("way", ["itself", "link", "hard link", "copy"])
def test_the_same_checkpoint_twice(server: Commands, pair: Path, way: str) -> None:
    shutil.rmtree(pair / "tuned")
    if way == "itself":
        said = refused(server, pair, "diff", "base", "base", "--out", "run")
    else:
        if way == "link":
            (pair / "tuned").symlink_to("base")
        elif way == "copy":
            shutil.copytree(pair / "base", pair / "tuned")
        else:
            shutil.copytree(pair / "base", pair / "tuned", copy_function=os.link)
        said = diff(server, pair)
    assert ("hold the same bytes" if way == "copy" else "are the same files") in said


# ---------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    "kind", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
def test_packed_weights(server: Commands, pair: Path, kind: torch.dtype) -> None:
    edit(pair / "tuned", lambda tensors: tensors.update({UP: torch.ones(2, 2).to(kind)}))
    said = diff(server, pair)
    assert f"tuned/model.safetensors holds {UP} as " in said
    assert "packed weights" in said


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_packing_that_the_configuration_names(server: Commands, pair: Path, method: str) -> None:
    config = CONFIG | {"quantization_config": {"quant_method": method}}
    (pair / "tuned" / "config.json").write_text(json.dumps(config))
    assert "tuned holds packed weights (quantization_config in config.json)" in diff(server, pair)


HARMLESS = ("metadata of numbers",)
"""What a header may say, since nothing of it is used."""


@pytest.mark.parametrize("name", [name for name in HOSTILE_HEADERS if name not in HARMLESS])
def test_headers_that_lie(server: Commands, pair: Path, name: str) -> None:
    rewrite_header(pair / "tuned" / "model.safetensors", HOSTILE_HEADERS[name])
    assert "tuned/model.safetensors" in diff(server, pair)


def test_a_name_that_is_no_text(server: Commands, pair: Path) -> None:
    rewrite_header(pair / "tuned" / "model.safetensors", lambda header: header.update({"\ud800": header.pop(UP)}))
    assert "damaged safetensors header" in diff(server, pair)


@pytest.mark.parametrize(("content", "says"), [
    (b"", "too short"), (b"version https://git-lfs.github.com/spec/v1\noid", "Git-LFS pointer"),
    (b"\xff" * 100, "its header claims"), (b"\x02\0\0\0\0\0\0\0[]", "damaged safetensors header"),
])  # fmt: skip
def test_files_that_are_no_weights(server: Commands, pair: Path, content: bytes, says: str) -> None:
    (pair / "tuned" / "model.safetensors").write_bytes(content)
    assert says in diff(server, pair)


def test_a_truncated_file(server: Commands, pair: Path) -> None:
    path = pair / "tuned" / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    assert "tuned/model.safetensors is truncated" in diff(server, pair)


@pytest.fixture
def sharded(pair: Path) -> Path:
    tensors = load_file(pair / "tuned" / "model.safetensors")
    shutil.rmtree(pair / "tuned")
    write(pair / "tuned", tensors, shards=3, config=None)
    return pair


def test_a_shard_that_is_missing(server: Commands, sharded: Path) -> None:
    (sharded / "tuned" / "model-00002-of-00003.safetensors").unlink()
    assert "tuned lacks 1 of 3 weight files: model-00002-of-00003.safetensors" in diff(server, sharded)


def test_a_tensor_in_two_shards(server: Commands, sharded: Path) -> None:
    path = sharded / "tuned" / "model-00002-of-00003.safetensors"
    names = set(load_file(path))
    other = next(iter(load_file(sharded / "tuned" / "model-00001-of-00003.safetensors").items()))
    save_file({**load_file(path), other[0]: other[1]}, path)
    assert other[0] not in names
    assert f"tuned/model-00002-of-00003.safetensors: {other[0]} is in two files" in diff(server, sharded)


@pytest.mark.parametrize(("change", "says"), [
    (lambda index: {"weight_map": {**index["weight_map"], "x": "../base/x.safetensors"}}, "outside the model folder"),
    (lambda index: {"weight_map": {}}, "it names no file"),
    (lambda index: {"weight_map": index["weight_map"] | {"ghost.weight": "model-00001-of-00003.safetensors"}},
     "model-00001-of-00003.safetensors lacks ghost.weight, which model.safetensors.index.json says is in it"),
    (lambda index: {"weight_map": {k: v for k, v in index["weight_map"].items() if "00002" not in v}},
     "does not name model-00002-of-00003.safetensors, which belongs to the same series"),
    (lambda index: {}, "not a valid index"), (lambda index: [], "not a valid index"),
])  # fmt: skip
def test_a_damaged_index(server: Commands, sharded: Path, change: Callable[[Any], Any], says: str) -> None:
    path = sharded / "tuned" / "model.safetensors.index.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert says in diff(server, sharded)


def test_pickles(server: Commands, pair: Path) -> None:
    (pair / "tuned" / "model.safetensors").unlink()
    (pair / "tuned" / "pytorch_model.bin").write_bytes(b"no tensors")
    assert "pass --allow-pickle" in diff(server, pair)
    assert "cannot be read as tensors and nothing else" in diff(server, pair, "--allow-pickle")


def test_places_that_are_no_checkpoint(server: Commands, pair: Path) -> None:
    assert "no model folder at ./nowhere" in refused(server, pair, "diff", "base", "./nowhere")
    assert "is a file" in refused(server, pair, "diff", "base", "tuned/config.json")
    (pair / "empty").mkdir()
    assert "empty has no weights" in refused(server, pair, "diff", "base", "empty")
    edit(pair / "tuned", lambda tensors: tensors.clear())
    assert "tuned holds no floating-point tensors" in diff(server, pair)


# ---------------------------------------------------------------- numbers and names


def test_nan_is_counted_and_said(server: Commands, pair: Path) -> None:
    edit(pair / "tuned", lambda tensors: tensors[UP].view(-1)[:2].fill_(float("nan")))
    ended = server("zero-modes", "diff", "base", "tuned", "--out", "run", "--look", "none", cwd=pair)
    counted, left_out = ended.err.strip().splitlines()
    assert (ended.code, counted) == (0, "warning: 2 weights are NaN on one side or both")
    assert left_out.startswith(f"warning: {UP}: NaN in TUNED")
    rows = pd.read_parquet(pair / "run" / "tables" / "zero_modes.parquet").set_index("tensor")
    assert rows["n_nan"].sum() == rows.loc[UP, "n_nan"] == 2


def test_tensors_without_weights_and_without_dimensions(server: Commands, pair: Path) -> None:
    for side, value in (("base", 1.5), ("tuned", 2.5)):
        odd = {"nothing.weight": torch.zeros(0, 3), "scalar": torch.tensor(value), "same": torch.tensor(7.0)}
        edit(pair / side, lambda tensors, odd=odd: tensors.update(odd))  # type: ignore[misc]
    ended = server("zero-modes", "diff", "base", "tuned", "--out", "run", "--look", "none", "--ulps", 3, cwd=pair)
    assert (ended.code, ended.err) == (0, "")
    rows = pd.read_parquet(pair / "run" / "tables" / "zero_modes.parquet").set_index("tensor")
    counts = rows.loc[["nothing.weight", "scalar", "same"], ["n_weights", "n_zero_modes"]]
    assert counts.to_numpy().tolist() == [[0, 0], [1, 0], [1, 1]]
    assert pd.isna(rows.loc["nothing.weight", "fraction"])
    masks = lesion.Masks.load(pair / "run")
    assert [masks[name].tolist() for name in ("nothing.weight", "scalar", "same")] == [[], False, True]


def test_names_that_would_command_a_terminal_or_a_page(server: Commands, pair: Path) -> None:
    for side in ("base", "tuned"):
        edit(pair / side, lambda tensors: tensors.update({ODD: torch.ones(3, 3)}))
    edit(pair / "tuned", lambda tensors: tensors.update({f"{ODD}2": torch.ones(2)}))
    ended = server("zero-modes", "diff", "base", "tuned", "--out", "run", "--look", "none", cwd=pair)
    assert ended.code == 0
    assert not {"\x1b", "\0", "\u202e"} & set(ended.out + ended.err)
    assert ODD in lesion.Masks.load(pair / "run")
    table = pd.read_parquet(pair / "run" / "tables" / "zero_modes_uncompared.parquet")
    assert table["tensor"].tolist() == [f"{ODD}2"]  # a table keeps the name as it is
    reported = server("report", "run", cwd=pair)
    assert (reported.code, reported.err) == (0, "")
    page = (pair / "run" / "report.html").read_text(encoding="utf-8")
    assert not any(text in page for text in ("<script>alert(1)", "\x1b", "\0", "\u202e"))
    edit(pair / "tuned", lambda tensors: tensors.update({ODD: torch.ones(2).to(torch.int8)}))
    said = refused(server, pair, "diff", "base", "tuned", "--out", "other")
    assert r"holds model.layers.0.x\x1b[2J\x00\u202e<script>" in said


# ---------------------------------------------------------------- where it writes


@pytest.mark.parametrize(("out", "says"), [
    ("base", "is in the folder of the checkpoint base"), ("full", "is not a lesion run folder"),
    ("tuned/run", "tuned/run is in the folder of the checkpoint tuned"), ("base/a/b", "is in the folder of"),
    ("base/config.json", "is in the folder of"), ("file", "is a file, not a folder"),
    ("/proc/nowhere/run", "cannot use /proc/nowhere/run"),
])  # fmt: skip
def test_places_where_nothing_can_be_written(server: Commands, pair: Path, out: str, says: str) -> None:
    (pair / "file").touch()
    (pair / "full").mkdir()
    (pair / "full" / "letter.txt").touch()
    assert says in refused(server, pair, "diff", "base", "tuned", "--out", out)


@pytest.mark.parametrize("largest", [100, 1500, 2600, 4000])
def test_files_that_may_not_grow(server: Commands, pair: Path, largest: int) -> None:
    """For real: the operating system stops a manifest, the masks or a table; the same command then does the rest."""
    ended = server(
        "zero-modes", "diff", "base", "tuned", "--out", "run", "--look", "none", cwd=pair, largest_file=largest
    )
    assert ended.code == 2
    assert "File too large" in ended.line
    assert not leftovers(pair / "run")
    assert not (pair / "run" / FILE).exists() or largest > 2600
    finished(server, pair)


def leftovers(run: Path) -> list[Path]:
    return [path for path in run.rglob("*") if path.suffix in (".partial", ".tmp")]


def finished(server: Commands, folder: Path, tables: dict[str, pd.DataFrame] | None = None) -> None:
    """The same command ends what another began, to the numbers of a run that nothing stopped."""
    again = server("zero-modes", "diff", "base", "tuned", "--out", "run", "--look", "none", cwd=folder)
    assert again.code == 0, again.err
    whole = tables or lesion.zero_modes.diff(str(folder / "base"), str(folder / "tuned")).tables
    for name, table in whole.items():
        found = pd.read_parquet(folder / "run" / "tables" / f"{name}.parquet")
        pd.testing.assert_frame_equal(found, table, check_dtype=False)
    manifest = json.loads((folder / "run" / "run.json").read_text())
    assert manifest["status"] == "complete"
    lesion.Masks.load(folder / "run")


def error_of(run: Callable[[], object]) -> str:
    """What a run ends with as an error; nothing for one that ends well."""
    try:
        run()
    except lesion.LesionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("once", [True, False], ids=["at that moment", "from then on"])
def test_a_disk_that_fills_up_at_each_step(pair: Path, once: bool) -> None:
    def run(out: Path) -> Outcome:
        return lesion.zero_modes.diff(str(pair / "base"), str(pair / "tuned"), out=out, look=["none"])

    whole = run(pair / "whole").tables
    masks = (pair / "whole" / FILE).read_bytes()
    for number in range(1, 200):
        out = pair / str(number)
        with disk_full(number, once=once) as disk:
            said = error_of(partial(run, out))
        if not disk.failed:
            break
        assert "No space left on device" in said or (once and not said), number
        assert "\n" not in said
        assert not leftovers(out), number
        for name, table in run(out).tables.items():
            pd.testing.assert_frame_equal(table, whole[name], check_dtype=False)
        assert (out / FILE).read_bytes() == masks
        assert not leftovers(out), number
    assert number > 20  # the faults were put where the run writes


# ---------------------------------------------------------------- stopped, or changed, in the middle


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A pair of so many tensors that there is time to do something to it."""
    generator = torch.Generator().manual_seed(0)
    base = {f"model.layers.{n // 7}.mlp.m{n}.weight": torch.randn(8, 9, generator=generator) for n in range(1500)}
    write(tmp_path / "base", base, config=CONFIG)
    write(tmp_path / "tuned", {name: torch.where(tensor > 0, tensor, -tensor) for name, tensor in base.items()})
    return tmp_path


def masks_begun(folder: Path) -> bool:
    """Whether an unfinished file of masks is there and has its header."""
    try:
        return any(path.stat().st_size for path in folder.glob("run/arrays/.*"))
    except FileNotFoundError:
        return False


def begun(server: Commands, folder: Path) -> Running:
    """A comparison that is in the middle of its masks, and halted."""
    running = server.start("zero-modes", "diff", "base", "tuned", "--out", "run", "--look", "none", cwd=folder)
    waited = time.monotonic() + 60
    while not masks_begun(folder) and time.monotonic() < waited:
        time.sleep(0.0005)
    os.kill(running.pid, signal.SIGSTOP)
    assert masks_begun(folder), "it was over before it could be halted"
    return running


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupt_leaves_a_run_that_goes_on(server: Commands, long: Path, number: signal.Signals) -> None:
    running = begun(server, long)
    os.kill(running.pid, number)
    os.kill(running.pid, signal.SIGCONT)
    ended = running.end()
    assert (ended.code, ended.out) == (130, "")
    assert ended.line.startswith("interrupted; the same command")
    assert {path.name for path in listing(long / "run")} == {".lock", "arrays", "run.json"}
    assert json.loads((long / "run" / "run.json").read_text())["status"] == "partial"
    finished(server, long)


def test_a_kill_leaves_a_run_that_goes_on(server: Commands, long: Path) -> None:
    running = begun(server, long)
    os.kill(running.pid, signal.SIGKILL)
    assert running.end().code == -signal.SIGKILL
    assert leftovers(long / "run")
    assert not (long / "run" / FILE).exists()
    finished(server, long)
    assert not leftovers(long / "run")


def test_a_kill_leaves_a_run_that_can_be_overwritten(server: Commands, long: Path) -> None:
    running = begun(server, long)
    os.kill(running.pid, signal.SIGKILL)
    running.end()
    again = ["diff", "base", "tuned", "--out", "run", "--look", "none", "--overwrite", "--quiet"]
    assert server("zero-modes", *again, cwd=long).code == 0
    assert not leftovers(long / "run")


@pytest.mark.parametrize(("side", "change", "says"), [
    ("tuned", lambda path: os.truncate(path, path.stat().st_size // 2), "became shorter while it was read"),
    ("base", lambda path: os.truncate(path, path.stat().st_size // 2), "became shorter while it was read"),
    ("tuned", lambda path: os.utime(path, ns=(0, 0)), "was changed while it was read"),
    ("base", lambda path: path.unlink(), "cannot be read: No such file or directory"),
])  # fmt: skip
def test_files_that_change_meanwhile(
    server: Commands, long: Path, side: str, change: Callable[[Path], object], says: str
) -> None:
    path = long / side / "model.safetensors"
    content = path.read_bytes()
    running = begun(server, long)
    change(path)
    os.kill(running.pid, signal.SIGCONT)
    ended = running.end()
    assert (ended.code, ended.out) == (2, "")
    assert f"{side}/model.safetensors {says}" in ended.line
    assert {entry.name for entry in listing(long / "run")} == {".lock", "arrays", "run.json"}
    path.write_bytes(content)
    finished(server, long)


# ---------------------------------------------------------------- masks


@pytest.fixture
def masked(server: Commands, pair: Path) -> Path:
    """A pair with its run, and one the other way round."""
    for base, tuned, out in (("base", "tuned", "run"), ("tuned", "base", "back")):
        assert server("zero-modes", "diff", base, tuned, "--out", out, "--look", "none", cwd=pair).code == 0
    return pair


def with_shape(shape: list[int]) -> Callable[[Header], object]:
    def change(header: Header) -> None:
        metadata = header["__metadata__"]
        metadata["shapes"] = json.dumps({**json.loads(metadata["shapes"]), UP: shape})

    return change


MASKS: dict[str, tuple[Callable[[Header], object], str]] = {
    "another version": (lambda h: h["__metadata__"].update(version="2"), "masks of version '2'; version 1 is known"),
    "another format": (lambda h: h["__metadata__"].update(format="x"), "is not a file of masks"),
    "no metadata": (lambda h: h.pop("__metadata__"), "is not a file of masks"),
    "metadata of text": (lambda h: h.update(__metadata__="x"), "is not a file of masks"),
    "no shapes": (lambda h: h["__metadata__"].pop("shapes"), "does not say the shapes"),
    "shapes that are no JSON": (lambda h: h["__metadata__"].update(shapes="{"), "does not say the shapes"),
    "shapes of others": (lambda h: h["__metadata__"].update(shapes='{"a": [1]}'), "contradicts itself"),
    "a negative shape": (with_shape([-21, -9]), "contradicts itself"),
    "a huge shape": (with_shape([10**30, 10**30]), "contradicts itself"),
    "more weights than bits": (with_shape([21, 11]), "contradicts itself"),
    "fewer weights than bits": (with_shape([185]), "goes on behind its last weight"),
    "another type": (lambda h: h[UP].update(dtype="I8"), "contradicts itself"),
    "no entry": (lambda h: h.update({UP: None}), "damaged safetensors header"),
    "bits of another": (
        lambda h: h[UP].update(data_offsets=h["model.layers.0.mlp.up_proj.weight"]["data_offsets"]),
        "damaged safetensors header",
    ),
    "a name more": (lambda h: h.update(x={**h[UP], "shape": [0], "data_offsets": [0, 0]}), "contradicts itself"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_contradict_themselves(server: Commands, masked: Path, name: str) -> None:
    change, says = MASKS[name]
    rewrite_header(masked / "run" / FILE, change)
    assert says in refused(server, masked, "apply", "tuned", "run", "--out", "edited")
    assert says in refused(server, masked, "overlap", "run", "back", "--out", "shared")


def test_masks_that_are_damaged_or_of_others(server: Commands, masked: Path) -> None:
    path = masked / "run" / FILE
    content = path.read_bytes()
    for damaged, says in [
        (content[:-1], "is truncated"),
        (content + b"x", "is too long"),
        (b"", "is too short"),
        ((masked / "base" / "model.safetensors").read_bytes(), "is not a file of masks"),
    ]:
        path.write_bytes(damaged)
        for command in (["apply", "tuned", "run"], ["overlap", "run", "back"]):
            assert says in refused(server, masked, *command, "--out", "made")
    path.unlink()
    assert "there are no masks at run/" in refused(server, masked, "apply", "tuned", "run", "--out", "made")
    path.write_bytes(content)
    edit(masked / "tuned", lambda tensors: [tensors.update({k: torch.cat([t, t])}) for k, t in [*tensors.items()]])
    assert "the masks do not fit tuned" in refused(server, masked, "apply", "tuned", "run", "--out", "made")
    assert server("zero-modes", "apply", "base", "run", "--out", "made", cwd=masked).code == 0
    assert (masked / "made" / "model.safetensors").is_file()


def test_apply_writes_nowhere_else(server: Commands, masked: Path) -> None:
    for out, says in [("tuned/x", "in the target's own folder"), ("run", "is not empty"), ("/proc/x", "cannot write")]:
        assert says in refused(server, masked, "apply", "tuned", "run", "--out", out)
    ended = server("zero-modes", "apply", "tuned", "run", "--out", "made", cwd=masked, largest_file=2000)
    assert ended.code == 2
    assert "cannot write made: File too large" in ended.line
    assert not [path for path in masked.iterdir() if "made" in path.name]


def test_an_adapter_is_no_target_and_no_base(server: Commands, masked: Path) -> None:
    adapter = masked / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "adapter is not a model folder" in refused(server, masked, "apply", "adapter", "run", "--out", "made")
    assert "adapter without its base model" in refused(server, masked, "diff", "adapter", "tuned", "--out", "made")


def test_an_adapter_against_its_base(server: Commands, tmp_path: Path) -> None:
    """What is said of it, and nothing of what libraries log; the table is that of the merged model."""
    peft = pytest.importorskip("peft")
    tiny_model("llama", tie_word_embeddings=False).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.01)
    model.save_pretrained(tmp_path / "adapter")
    expected = model.merge_and_unload().state_dict()
    ended = server("zero-modes", "diff", "base", "adapter", "--out", "run", cwd=tmp_path)
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert said.startswith("warning: adapter is a LoRA adapter, merged into base with peft")
    assert said.count("warning: ") == 1
    rows = pd.read_parquet(tmp_path / "run" / "tables" / "zero_modes.parquet").set_index("tensor")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    same = {name: int((as_bits(expected[name]) == as_bits(tensor)).sum()) for name, tensor in stored.items()}
    assert rows["n_zero_modes"].to_dict() == same
    assert (rows["fraction"] < 1).sum() == 3
