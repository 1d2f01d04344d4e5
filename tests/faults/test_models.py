"""Faults 2, 7, 10, 14-18, 27 and 33: model folders that are hostile, or change after or while a run reads them."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

import lesion
from lesion.errors import InputError, LesionError, ModelError, RunFolderError
from lesion.results import RunView
from lesion.studies.setting import weights_check
from tests.support import tiny_model

UP = "model.layers.1.mlp.up_proj.weight"
Header = dict[str, Any]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "base"))


@pytest.fixture
def asked(text_file: Path, tmp_path: Path) -> dict[str, Any]:
    reading = lesion.Reading(tokens=200, context=32)
    options = {"interventions": ["drop"], "layers": [0, 2], "out": tmp_path / "run", "reading": reading}
    return {"data": str(text_file), **options}


def rewrite_header(path: Path, change: Callable[[Header], object]) -> None:
    """Replaces the header of a safetensors file by what `change` makes of it, or gives back as bytes."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    given = change(header)
    written = given if isinstance(given, bytes) else json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + content[8 + length :])


def twice(header: Header) -> bytes:
    again = json.dumps({UP: {**header[UP], "data_offsets": [0, 10240]}})
    return json.dumps(header).encode()[:-1] + b"," + again.encode()[1:]


HOSTILE_HEADERS: dict[str, Callable[[Header], object]] = {
    "overlapping": lambda h: h[UP].update(data_offsets=h["model.layers.0.mlp.up_proj.weight"]["data_offsets"]),
    "a hole": lambda h: h[UP].update(data_offsets=[h[UP]["data_offsets"][0], h[UP]["data_offsets"][1] - 4]),
    "huge shape": lambda h: h[UP].update(shape=[2**40, 2**40]),
    "shape that overflows": lambda h: h[UP].update(shape=[2**62, 32]),
    "negative shape": lambda h: h[UP].update(shape=[-80, 32]),
    "shape of text": lambda h: h[UP].update(shape="80"),
    "negative offset": lambda h: h[UP].update(data_offsets=[-8, 10]),
    "fractional offset": lambda h: h[UP].update(data_offsets=[0.5, 10]),
    "offset of text": lambda h: h[UP].update(data_offsets=["0", "10"]),
    "offset of 400 digits": lambda h: h[UP].update(data_offsets=[0, 10**400]),
    "unknown dtype": lambda h: h[UP].update(dtype="F99"),
    "no entry": lambda h: h.update({UP: None}),
    "metadata of numbers": lambda h: h.update(__metadata__={"format": 5}),
    "one name twice": twice,
}


@pytest.mark.parametrize("change", HOSTILE_HEADERS.values(), ids=HOSTILE_HEADERS.keys())
def test_hostile_headers(folder: Path, change: Callable[[Header], object]) -> None:
    rewrite_header(folder / "model.safetensors", change)
    with pytest.raises(ModelError, match=str(folder)) as caught:
        lesion.load(folder)
    assert "\n" not in str(caught.value)
    assert re.search("damaged|truncated|too long|shape|cannot load", str(caught.value))


MEMORY = """
import resource, sys
import lesion
lesion.load("zoo:python-8l")  # everything is imported, and what a whole model takes is taken
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in sys.argv[1:]:
    try:
        lesion.load(folder)
    except lesion.LesionError as error:
        print("refused")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_hostile_headers_take_little_memory(tiny_folder: Path, tmp_path: Path) -> None:
    """Some tens of bytes for each byte of the header: a list of Python holds 8 bytes where the file has 2."""
    changes: list[Callable[[Header], object]] = [
        lambda header: header[UP].update(shape=[2**40, 2**40]),
        lambda header: b"[" * 10_000_000,
        lambda header: b'{"a":{"dtype":"F32","shape":[' + b"0," * 2_000_000 + b'0],"data_offsets":[0,0]}}',
    ]
    folders = [shutil.copytree(tiny_folder, tmp_path / str(number)) for number in range(len(changes))]
    for folder, change in zip(folders, changes, strict=True):
        rewrite_header(folder / "model.safetensors", change)
    largest = max((folder / "model.safetensors").stat().st_size for folder in folders)
    command = [sys.executable, "-c", MEMORY, *map(str, folders)]
    *said, kib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert said == ["refused"] * 3
    assert int(kib) * 1024 < 20 * largest


def test_a_hostile_tensor_name_is_refused(folder: Path) -> None:
    name = "a\0<script>alert(1)</script>\x1b[2J"
    rewrite_header(
        folder / "model.safetensors",
        lambda header: header.update({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    )
    with pytest.raises(ModelError, match="has no place for"):
        lesion.load(folder)


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x01
    path.write_bytes(content)


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_flipped_bit_is_another_model(folder: Path, asked: dict[str, Any]) -> None:
    lesion.layers(str(folder), **asked)
    flip_a_bit(folder)
    with pytest.raises(RunFolderError) as caught:
        lesion.layers(str(folder), **asked)
    assert f"belongs to another run of {folder} (model: " in str(caught.value)
    assert "configuration" not in str(caught.value)
    flip_a_bit(folder)
    assert lesion.layers(str(folder), **asked).resumed_complete


def test_a_changed_configuration_is_named(folder: Path, asked: dict[str, Any]) -> None:
    set_config(folder, rms_norm_eps=1e-6)
    lesion.layers(str(folder), **asked)
    assert RunView.open(asked["out"]).manifest["model"]["configuration"]["rms_norm_eps"] == 1e-6
    set_config(folder, rms_norm_eps=1e-3)
    with pytest.raises(RunFolderError, match=r"configuration\.rms_norm_eps: 1e-06 → 0\.001"):
        lesion.layers(str(folder), **asked)


def test_a_tokenizer_of_the_same_size_is_told_apart(folder: Path, asked: dict[str, Any]) -> None:
    """Its hash is in the run; where the ids change, the same command is refused, and the tokenizer is named."""
    lesion.layers(str(folder), **asked)
    recorded = RunView.open(asked["out"]).manifest["data"]["tokenizer_fingerprint"]
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["t"] = vocabulary["t"], vocabulary["a"]
    path.write_text(json.dumps(content))
    assert lesion.load(folder).tokenizer.vocab_size == 320
    with pytest.raises(RunFolderError, match=rf"data: .*tokenizer: {recorded[:12]}… → "):
        lesion.layers(str(folder), **asked)
    assert lesion.layers(str(folder), **asked, overwrite=True).path == asked["out"]
    assert RunView.open(asked["out"]).manifest["data"]["tokenizer_fingerprint"] != recorded


def test_a_tokenizer_that_knows_more_than_the_model(folder: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    """Ids that have no embedding are found while the text is read, before anything runs."""
    tiny_model("llama", vocab_size=100).save_pretrained(folder)
    with pytest.raises(InputError, match=r"token id \d+, but the model knows only 100 ids; the tokenizer .* has 320"):
        lesion.layers(str(folder), **asked)
    assert not asked["out"].exists()


def test_code_that_comes_with_a_tokenizer_is_not_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tokenizer: pass\n")
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    settings["tokenizer_class"] = "Tokenizer"
    path.write_text(json.dumps(settings))

    def ask(*arguments: object) -> str:
        raise AssertionError("nobody is asked")

    monkeypatch.setattr("builtins.input", ask)
    try:
        lesion.load(folder)
    except LesionError as error:
        assert "\n" not in str(error)  # noqa: PT017  (to refuse it is as good as to pass over it)
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_elsewhere(text_file: Path, loaded: Any) -> None:
    """Edits of weights on the meta device would change nothing, in silence."""
    network = tiny_model("llama", vocab_size=320)
    network.model.layers[2].to("meta")
    with pytest.raises(ModelError, match=r"9 weights .* meta device, model\.layers\.2\."):
        lesion.layers(network, str(text_file), tokenizer=loaded.tokenizer)


def overwrite(folder: Path) -> None:
    """In place, as a copy tool does: whoever still reads the file reads other weights."""
    tensors = load_file(folder / "model.safetensors")
    save_file({key: value * 2 for key, value in tensors.items()}, folder / "other", metadata={"format": "pt"})
    content = (folder / "other").read_bytes()
    (folder / "other").unlink()
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(content)


def test_weights_that_are_overwritten_while_they_are_used(
    folder: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards from then on are not kept, and with the old weights the run goes on to the old tables."""
    monkeypatch.setattr("lesion.engine.plan.SHARD_OPERATIONS", {"cpu": 1})
    asked = {**asked, "batch_size": 2}
    whole = lesion.layers(str(folder), **{**asked, "out": None}).tables["layers"]
    original = (folder / "model.safetensors").read_bytes()

    def change(done: int, total: int) -> None:
        if done > total / 2 and (folder / "model.safetensors").read_bytes() == original:
            overwrite(folder)

    with pytest.raises(ModelError, match="were changed while they were in use"):
        lesion.layers(str(folder), **asked, progress=change)
    kept = len(list((asked["out"] / "shards").glob("*.safetensors")))
    assert kept > 0
    with pytest.raises(RunFolderError, match="another run"):
        lesion.layers(str(folder), **asked)
    (folder / "model.safetensors").write_bytes(original)
    resumed = lesion.layers(str(folder), **asked).tables["layers"]
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)


def test_weights_that_are_only_touched(folder: Path) -> None:
    """Another time of change is no other content; a file that is gone is."""
    check = weights_check(lesion.load(folder))
    assert check is not None
    check()
    os.utime(folder / "model.safetensors", ns=(0, 0))
    check()
    (folder / "model.safetensors").rename(folder / "moved")
    with pytest.raises(LesionError):
        check()
    assert weights_check(lesion.anatomy.adopt(tiny_model("llama"), None)) is None


TRUNCATE = """
import os, sys
import lesion
from lesion.engine import plan
plan.SHARD_OPERATIONS = {"cpu": 1}
def progress(done, total):
    if done > total / 2:
        os.truncate(sys.argv[1] + "/model.safetensors", 5000)
reading = lesion.Reading(tokens=200, context=32)
lesion.layers(sys.argv[1], sys.argv[2], interventions=["drop"], layers=[0, 2], batch_size=2, out=sys.argv[3],
              reading=reading, progress=progress)
"""


def test_weights_that_are_cut_off_while_they_are_used(
    folder: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the run, whether or not the weights were still read from the file; what was done before is kept."""
    monkeypatch.setattr("lesion.engine.plan.SHARD_OPERATIONS", {"cpu": 1})
    asked = {**asked, "batch_size": 2}
    original = (folder / "model.safetensors").read_bytes()
    command = [sys.executable, "-c", TRUNCATE, str(folder), asked["data"], str(asked["out"])]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    kept = len(list((asked["out"] / "shards").glob("*.safetensors")))
    assert kept > 0
    assert RunView.open(asked["out"]).manifest["status"] != "complete"
    with pytest.raises(ModelError, match="is truncated"):
        lesion.layers(str(folder), **asked)
    (folder / "model.safetensors").write_bytes(original)
    resumed = lesion.layers(str(folder), **asked).tables["layers"]
    whole = lesion.layers(str(folder), **{**asked, "out": None}).tables["layers"]
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
