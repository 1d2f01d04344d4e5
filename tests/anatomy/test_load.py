"""A model folder that is not whole, not supported or not trustworthy gets one clear line."""

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import DeiTForImageClassificationWithTeacher, LlamaForCausalLM

from lesion.anatomy import adopt, files, load, resolve
from lesion.anatomy.files import fingerprint, weight_files
from lesion.errors import InputError, ModelError
from tests.support import TINY, Pictures, tiny_model


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, edit: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder: Path) -> list[Path]:
    """The same weights in two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    homes = {key: names[index % 2] for index, key in enumerate(sorted(tensors))}
    for name in names:
        save_file({k: v for k, v in tensors.items() if homes[k] == name}, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return [folder / name for name in names]


def refused(folder: Path, says: str, **options: Any) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)


def test_a_whole_folder_loads_as_transformers_does(folder: Path) -> None:
    model = load(folder)
    ids = torch.arange(40).unsqueeze(0)
    expected = tiny_model("llama", vocab_size=320)(ids).logits
    assert torch.equal(model.anatomy.model(ids).logits, expected)
    assert not model.anatomy.model.training
    assert model.tokenizer.bos_token == "<s>"
    assert model.anatomy.dtype == torch.float32
    assert load(folder, dtype="bfloat16").anatomy.dtype == torch.bfloat16


def test_sharded_weights_load_the_same(folder: Path) -> None:
    single = load(folder).anatomy.model.state_dict()
    shard(folder)
    assert all(torch.equal(value, single[key]) for key, value in load(folder).anatomy.model.state_dict().items())


@pytest.mark.parametrize(("text", "says"), [
    (None, r"no config\.json"),
    ("{", "not valid JSON"),
    ("[]", "no model_type"),
    ('{"hidden_size": 3}', "no model_type"),
    ('{"model_type": "mamba"}', "family 'mamba', which is not known; known: bert"),
    ('{"model_type": "llama", "auto_map": {"AutoModel": "evil.Model"}}', "code of its own.*--ignore-remote-code"),
    ('{"model_type": "gemma3"}', "cannot be studied: it reads images beside text.*gemma3_text"),
    ('{"model_type": "llama", "quantization_config": {}}', "packed .quantised. by None"),
    ('{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}', "by gptq.*only those of bitsandbytes"),
    ('{"model_type": "llama", "quantization_config": 4}', "quantization_config is 4"),
])  # fmt: skip
def test_configurations(folder: Path, text: str | None, says: str) -> None:
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    refused(folder, says)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, r"has no weights: neither model\.safetensors nor")
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "adapter without its base model")


@pytest.mark.parametrize(("damage", "says"), [
    (lambda data: data[: len(data) // 2], "is truncated: its header describes"),
    (lambda data: b"", "too short"),
    (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git-LFS pointer"),
    (lambda data: b"\xff" * 8 + data[8:], "header claims"),
    (lambda data: data[:8] + b"x" + data[9:], "damaged safetensors header"),
    (lambda data: data + b"rest", "too long"),
])  # fmt: skip
def test_damaged_weights(folder: Path, damage: Any, says: str) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refused(folder, says)


def test_shards(folder: Path) -> None:
    shard(folder)[1].unlink()
    refused(folder, r"lacks 1 of 2 weight files: model-00002-of-00002\.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    refused(folder, "points outside")
    index.write_text("{}")
    refused(folder, "not a valid index")


def test_missing_unexpected_and_misshapen_tensors(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    refused(folder, r"lacks 1 tensors.*model\.layers\.1\.mlp\.up_proj\.weight")
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(80, 31)}))
    refused(folder, r"disagree on shapes.*up_proj")
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(80, 32)}))
    load(folder)
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.1.mlp.side_proj.weight": torch.zeros(3)}))
    refused(folder, r"holds 1 tensors that its configuration has no place for.*side_proj")


@pytest.mark.parametrize(("field", "value", "says"), [
    ("num_hidden_layers", 10**8, "num_hidden_layers = 100000000, but in its weights there are 30 tensors"),
    ("hidden_size", 10**9, "hidden_size = 1000000000, but in its weights the longest side of any tensor is 320"),
    ("vocab_size", 10**9, "vocab_size = 1000000000"),
    ("num_labels", 10**9, "num_labels = 1000000000"),
    ("intermediate_size", 10**9, r"describes a model of 2.88e\+11 numbers, but its files hold"),
    ("head_dim", 10**9, "describes a model of"),
])  # fmt: skip
def test_sizes_that_no_weights_are_there_for(
    folder: Path, field: str, value: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of such a size is ever made: transformers is not asked to build it."""
    set_config(folder, **{field: value})
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lambda *arguments, **keywords: pytest.fail("was built"))
    refused(folder, says)


def test_tables_that_no_weights_are_there_for(folder: Path, tmp_path: Path) -> None:
    """GPT-J computes a table of sines for each position, which is in no file."""
    network = tiny_model("gptj", vocab_size=320)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "gptj").mkdir(exist_ok=True)
        shutil.copy(folder / name, tmp_path / "gptj" / name)
    network.save_pretrained(tmp_path / "gptj")
    assert load(tmp_path / "gptj").anatomy.n_positions == 64
    set_config(tmp_path / "gptj", n_positions=10**9)
    refused(tmp_path / "gptj", r"describes a model of 1.2e\+10 numbers")


def test_absurd_sizes_beside_a_pickle(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    load(folder, allow_pickle=True)
    set_config(folder, num_hidden_layers=10**8)
    refused(folder, "there are 30 tensors in all", allow_pickle=True)


@pytest.mark.parametrize(("layers", "says"), [(2, "no place for"), (4, "lacks 9 tensors")])
def test_more_or_fewer_layers_than_the_weights(folder: Path, layers: int, says: str) -> None:
    set_config(folder, num_hidden_layers=layers)
    refused(folder, says)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_weight_that_is_not_finite(folder: Path, value: float) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"][5, 7] = value

    edit_weights(folder, edit)
    refused(folder, rf"model\.layers\.2\.mlp\.up_proj\.weight\[5, 7\] is {value}")


def test_pickles_are_read_only_when_asked_for(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    refused(folder, "--allow-pickle")
    loaded = load(folder, allow_pickle=True).anatomy.model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in tensors.items())


def test_a_pickle_that_runs_code_is_never_run(folder: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload()}, folder / "pytorch_model.bin")
    refused(folder, "pickles more than tensors", allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    refused(folder, "has no tokenizer")


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    for name, says in {
        "zoo:lion": "zoo has no model 'lion'; it has",
        "./nowhere": "no model folder at",
        str(tmp_path / "absent"): "no model folder at",
        "nobody/nothing": "the hub cannot be asked for it",
        "not a name": "not a hub id",
    }.items():
        with pytest.raises(ModelError, match=says):
            resolve(name)
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="is a file"):
        resolve(str(tmp_path / "file"))


def test_devices_and_dtypes(folder: Path) -> None:
    devices = {("device", name): "not a device" for name in ("tpu9", "meta", "mps", "xpu")}
    for options, says in {**devices, ("dtype", "int8"): "not known"}.items():
        with pytest.raises(InputError, match=says):
            load(folder, **dict([options]))


def test_the_fingerprint_follows_every_byte(folder: Path) -> None:
    before = load(folder).fingerprint
    assert fingerprint(folder, weight_files(folder, allow_pickle=False)) == before
    set_config(folder, rope_theta=5e5)
    assert fingerprint(folder, weight_files(folder, allow_pickle=False)) != before

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"][0, 0] += 1

    set_config(folder, rope_theta=1e4)
    changed = fingerprint(folder, weight_files(folder, allow_pickle=False))
    edit_weights(folder, edit)
    assert fingerprint(folder, weight_files(folder, allow_pickle=False)) != changed
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_one_bit_anywhere_is_another_model(folder: Path) -> None:
    """A checkpoint in which a few weights were changed must not pass for the one it was made from."""
    weights, content = folder / "model.safetensors", bytearray(4_000_000)
    weights.write_bytes(content)
    before = fingerprint(folder, [weights])
    for place in range(9, len(content), 399_000):
        content[place] ^= 1
        weights.write_bytes(content)
        assert fingerprint(folder, [weights]) != before
        content[place] ^= 1
    weights.write_bytes(content)
    assert fingerprint(folder, [weights]) == before


def test_a_model_in_memory_has_a_fingerprint_of_its_own() -> None:
    network = tiny_model("gpt2")
    model = adopt(network, None)
    before = model.fingerprint
    assert before == adopt(tiny_model("gpt2"), None).fingerprint
    with torch.no_grad():
        network.transformer.wpe.weight[3, 3] += 1e-6
    assert model.fingerprint != before
    assert adopt(tiny_model("gpt2", layer_norm_epsilon=1e-3), None).fingerprint != before


def test_the_weights_that_are_checked_are_those_that_are_loaded(folder: Path) -> None:
    """Where both are there, transformers takes the single file; an index beside it has no say."""
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    assert weight_files(folder, allow_pickle=False) == [folder / "model.safetensors"]
    load(folder)
    set_config(folder, transformers_weights="other.safetensors")
    refused(folder, "names other weights")


def test_packed_weights_are_not_read_as_numbers(folder: Path) -> None:
    def pack(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)

    edit_weights(folder, pack)
    refused(folder, "lm_head.weight as I8: packed")


@pytest.mark.parametrize(("field", "value", "says"), [
    ("num_hidden_layers", "six", "num_hidden_layers.*expected int"),
    ("num_attention_heads", 0, "cannot load"),
    ("num_key_value_heads", 0, "cannot load"),
    ("head_dim", 0, "cannot load"),
    ("pad_token_id", 5000, "Padding_idx"),
    ("rope_parameters", "x", "cannot load"),
])  # fmt: skip
def test_a_configuration_of_the_wrong_kind(folder: Path, field: str, value: object, says: str) -> None:
    set_config(folder, **{field: value})
    refused(folder, says)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"model_type": "llama", "n": ' + b"9" * 5000 + b"}"])
def test_json_that_python_gives_up_on(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, "not valid JSON")


def test_a_header_that_python_gives_up_on(folder: Path) -> None:
    header = b"[" * 100_000
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(folder, "damaged safetensors header")


def test_an_empty_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").touch()
    refused(folder, "cannot load", allow_pickle=True)


@pytest.mark.parametrize("name", ["x" * 300, "/" + "x" * 300, "~nobody-of-this-name/model"])
def test_names_that_cannot_be_looked_up(name: str) -> None:
    with pytest.raises(ModelError, match="cannot be looked up"):
        resolve(name)


def as_pickle(folder: Path) -> list[Path]:
    """The same weights in a pickle."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return [folder / "pytorch_model.bin"]


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not say which files are mapped")
@torch.inference_mode()
@pytest.mark.parametrize("write", [lambda folder: [folder / "model.safetensors"], shard, as_pickle])
def test_a_loaded_model_does_not_depend_on_its_file_any_more(folder: Path, write: Any) -> None:
    """A file overwritten during a run must not change the model, and one that is cut off must not end the process."""
    ids, files = torch.arange(40).unsqueeze(0), write(folder)
    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert any(map(is_mapped, files))  # or there would be nothing to guard against
    expected = plain(ids).logits.clone()
    del plain
    gc.collect()  # modules refer to each other
    assert not any(map(is_mapped, files))
    model = load(folder, allow_pickle=True).anatomy.model
    assert not any(map(is_mapped, files))
    for path in files:
        content = path.read_bytes()
        path.write_bytes(b"\0" * len(content))
    assert torch.equal(model(ids).logits, expected)
    for path in files:
        path.write_bytes(b"")
    assert torch.equal(model(ids).logits, expected)


def test_tied_weights_stay_tied(folder: Path) -> None:
    network = tiny_model("llama", vocab_size=320, tie_word_embeddings=True)
    network.save_pretrained(folder)
    model = load(folder).anatomy.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.num_parameters() == sum(parameter.numel() for parameter in model.parameters())


def test_deit_with_two_heads_is_refused_by_name(tmp_path: Path) -> None:
    network = tiny_model("deit")
    network.save_pretrained(tmp_path)
    assert load(tmp_path).anatomy.n_positions == 66
    DeiTForImageClassificationWithTeacher(network.config).save_pretrained(tmp_path)
    refused(tmp_path, "mean of two heads.*only DeiTForImageClassification is known")


@pytest.mark.parametrize("name", sorted({family.model_type for family, _ in TINY.values()}))
def test_every_family_comes_back_from_its_folder(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    """Names on disk, fused experts, tied heads: what is saved and loaded gives the same logits, bit for bit."""
    network = tiny_model(next(tiny for tiny, (family, _) in TINY.items() if family.model_type == name))
    network.save_pretrained(tmp_path)
    for path in tiny_folder.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    model = load(tmp_path)
    batch = Pictures(2).batch([0, 1]) if model.anatomy.objective == "image" else None
    inputs = batch.model_inputs() if batch else {"input_ids": torch.arange(5, 45).unsqueeze(0)}
    with torch.inference_mode():
        assert torch.equal(model.anatomy.model(**inputs).logits, network(**inputs).logits)
    assert model.describe()["family"] == name


@pytest.mark.parametrize(("name", "tensor"), [
    ("gpt2", "transformer.h.0.attn.masked_bias"),
    ("gptj", "transformer.h.1.attn.bias"),
    ("gptj", "transformer.h.1.attn.masked_bias"),
    ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias"),
    ("falcon-7b", "transformer.h.0.self_attention.rotary_emb.inv_freq"),
])  # fmt: skip
def test_tables_that_older_checkpoints_hold(name: str, tensor: str, tiny_folder: Path, tmp_path: Path) -> None:
    tiny_model(name).save_pretrained(tmp_path)
    for path in tiny_folder.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update({tensor: torch.ones(4)}))
    load(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update({"table_of_ours": torch.ones(4)}))
    refused(tmp_path, "no place for: table_of_ours")


def test_code_that_comes_with_a_model_can_be_passed_over(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(ModelError, match="--ignore-remote-code"):
        load(folder)
    assert type(load(folder, ignore_remote_code=True).anatomy.model).__module__.startswith("transformers.")


def test_what_cannot_be_asked_is_refused_before_weights_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def refuse(n_layers: int) -> None:
        asked.append(n_layers)
        raise InputError("no such layer")

    monkeypatch.setattr("transformers.LlamaForCausalLM.from_pretrained", None)
    with pytest.raises(InputError, match="no such layer"):
        load(folder, expects=refuse)
    assert asked == [3]


def test_weights_that_change_while_they_are_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = files.fingerprint

    def meanwhile(path: Path, weights: list[Path]) -> str:
        weights[0].touch()
        return fingerprint(path, weights)

    monkeypatch.setattr(files, "fingerprint", meanwhile)
    with pytest.raises(ModelError, match="changed while they were read"):
        load(folder)


def test_links(folder: Path, tmp_path: Path) -> None:
    """A folder may be a link, a file in it only to the folder itself or to the blobs of the hub's cache."""
    (tmp_path / "linked").symlink_to(folder)
    expected = load(folder).fingerprint
    assert load(tmp_path / "linked").fingerprint == expected
    weights = folder / "model.safetensors"
    weights.rename(folder / "kept")
    weights.symlink_to("kept")
    assert load(folder).fingerprint == expected
    weights.unlink()
    (folder / "kept").rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"link out of its folder, to .*elsewhere"):
        load(folder)
    cache = tmp_path / "models--owner--name"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "blobs").mkdir()
    (tmp_path / "elsewhere").rename(cache / "blobs" / "abc")
    weights.unlink()
    folder.rename(cache / "snapshots" / "commit")
    (cache / "snapshots" / "commit" / "model.safetensors").symlink_to("../../blobs/abc")
    assert load(cache / "snapshots" / "commit").fingerprint == expected
