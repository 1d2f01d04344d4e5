"""Edited checkpoints: the folder equals the model edited in memory, bit for bit, and is one that transformers loads."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lesion.checkpoints import edited
from lesion.checkpoints.edited import RECORD, Applied, apply
from lesion.checkpoints.masks import Masks, MaskWriter
from lesion.checkpoints.scopes import Heads, Structure, parse_scope
from lesion.checkpoints.selection import KINDS, RANDOM, Kind, exponents
from lesion.errors import InputError, InterventionError, LesionError, ModelError
from tests.support import tiny_model

FAMILIES = ["llama", "gpt2", "gpt_neox", "bert", "bloom", "falcon-40b", "qwen3", "mixtral"]
Q = "model.layers.1.self_attn.q_proj.weight"


def save(folder: Path, family: str = "llama", *, dtype: torch.dtype = torch.bfloat16, shards: bool = False) -> Path:
    model: Any = tiny_model(family).to(dtype)
    model.save_pretrained(folder, max_shard_size="20KB" if shards else "5GB")
    (folder / "tokenizer.json").write_text('{"of": "the model"}')
    return folder


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def save_masks(path: Path, tensors: dict[str, Tensor], share: float = 0.3, rename: Callable[[str], str] = str) -> Masks:
    """Masks in which large weights are likelier zero modes, as they are in real pairs."""
    generator = torch.Generator().manual_seed(5)
    made = {
        rename(n): torch.rand(t.shape, generator=generator) < share * t.abs().float() / 0.2 for n, t in tensors.items()
    }
    with MaskWriter(
        path, {name: tuple(mask.shape) for name, mask in made.items()}, {"base": "b", "tuned": "t"}
    ) as writer:
        for name, mask in made.items():
            writer.write(name, np.packbits(mask.flatten().numpy(), bitorder="little"))
    return Masks.load(path)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def in_scope(folder: Path, text: str, include: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """True where the scope takes a weight, by tensor."""
    tensors = stored(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    structure = Structure(shapes, lambda: Heads.of(config), config.model_type)
    regions = {name: parse_scope(text).region(name, structure, include) for name in tensors}
    return {n: r.put(r.take(torch.ones(shapes[n], dtype=torch.bool)), shapes[n]) for n, r in regions.items() if r}


def loaded(folder: Path) -> Any:
    """The model as plain transformers loads it, with nothing missing and nothing left over."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    kind = transformers.AutoModelForMaskedLM if "MaskedLM" in name else transformers.AutoModelForCausalLM
    model, info = kind.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Path, Masks]:
    folder = save(tmp_path / "target", shards=True)
    return folder, save_masks(tmp_path / "masks.safetensors", stored(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_is_the_model_edited_in_memory(tmp_path: Path, family: str) -> None:
    target = save(tmp_path / "target", family)
    before = stored(target)
    masks = save_masks(tmp_path / "masks.safetensors", before)
    applied = apply(target, masks, "zero_modes", "all", tmp_path / "out")
    after = stored(tmp_path / "out")
    scope = in_scope(target, "all")
    assert list(after) == list(before)
    assert set(applied.counts) == set(scope)
    for name, tensor in before.items():
        where = scope.get(name, torch.zeros((), dtype=torch.bool)) & masks[name]
        assert bits(after[name]) == bits(tensor.masked_fill(where, 0.0)), name
        assert (bits(after[name]) != bits(tensor)) is (name in scope)
        assert applied.counts.get(name, 0) == int(where.sum())
    assert applied.n_weights_set == sum(applied.counts.values()) > 0
    model, plain = loaded(tmp_path / "out"), loaded(target)
    with torch.no_grad():
        for name in before:
            if name in plain.state_dict() and name in scope:
                plain.state_dict()[name].masked_fill_(masks[name], 0.0)
    ids = torch.arange(5, 25).reshape(2, 10)
    if family != "mixtral":  # whose experts lie in other tensors in memory than on disk
        assert torch.equal(model(ids).logits, plain(ids).logits)
    assert not torch.equal(model(ids).logits, loaded(target)(ids).logits)
    if family != "bert":
        assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shards", [False, True], ids=["single", "sharded"])
def test_files_headers_and_everything_else_stay(tmp_path: Path, shards: bool, dtype: torch.dtype) -> None:
    target = save(tmp_path / "target", shards=shards, dtype=dtype)
    out = tmp_path / "out"
    masks = save_masks(tmp_path / "masks.safetensors", stored(target))
    apply(target, masks, "complement", "layer:1", out)
    assert sorted(path.name for path in out.iterdir()) == sorted([*(p.name for p in target.iterdir()), RECORD])
    assert len(list(out.glob("*.safetensors"))) > 2 if shards else (out / "model.safetensors").is_file()
    for path in target.iterdir():
        old, new = path.read_bytes(), (out / path.name).read_bytes()
        if path.suffix != ".safetensors":
            assert new == old
            continue
        length = 8 + int.from_bytes(old[:8], "little")
        assert new[:length] == old[:length]
        assert len(new) == len(old)
        with safe_open(out / path.name, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    loaded(out)


@pytest.mark.parametrize("scope", ["all", "layers:0-1", "component:down", "layer:1/QK", "head:2:3"])
def test_zero_modes_and_complement_divide_the_scope(llama: tuple[Path, Masks], tmp_path: Path, scope: str) -> None:
    target, masks = llama
    before, here = stored(target), in_scope(target, scope)
    done: dict[Kind, Applied] = {kind: apply(target, masks, kind, scope, tmp_path / kind) for kind in KINDS[:3]}
    tensors = {kind: stored(tmp_path / kind) for kind in done}
    for name, where in here.items():
        assert bits(tensors["zero_modes"][name]) == bits(before[name].masked_fill(where & masks[name], 0.0))
        assert bits(tensors["complement"][name]) == bits(before[name].masked_fill(where & ~masks[name], 0.0))
        assert bits(tensors["keep_only"][name]) == bits(tensors["complement"][name])
        assert done["zero_modes"].counts[name] + done["complement"].counts[name] == int(where.sum())
        assert done["zero_modes"].n_in_scope[name] == int(where.sum())
    assert all(bits(tensors[kind][name]) == bits(before[name]) for kind in done for name in before.keys() - here.keys())
    assert 0 < done["zero_modes"].n_weights_set < done["complement"].n_weights_set


@pytest.mark.parametrize("scope", ["all", "head:0:2"])
@pytest.mark.parametrize("kind", RANDOM)
def test_random_weights_are_as_many_in_every_matrix(
    llama: tuple[Path, Masks], tmp_path: Path, kind: Kind, scope: str
) -> None:
    target, masks = llama
    before, here = stored(target), in_scope(target, scope)
    apply(target, masks, kind, scope, tmp_path / "one", seed=1)
    applied = apply(target, masks, kind, scope, tmp_path / "again", seed=1)
    apply(target, masks, kind, scope, tmp_path / "other", seed=2)
    one, again, other = (stored(tmp_path / name) for name in ("one", "again", "other"))
    for name, where in here.items():
        modes = where & masks[name]
        changed = one[name] != before[name]
        assert not (changed & ~where).any()
        assert applied.counts[name] == int(modes.sum())
        assert int((changed | (before[name] == 0) & where).sum()) >= applied.counts[name] >= int(changed.sum())
        if kind == "random_matched":
            old, wanted = exponents(before[name])[changed], exponents(before[name])[modes & (before[name] != 0)]
            assert torch.equal(old.sort().values, wanted.sort().values)
    assert all(bits(one[name]) == bits(again[name]) for name in one)
    assert any(bits(one[name]) != bits(other[name]) for name in one)


def test_the_draw_of_a_tensor_does_not_depend_on_the_others(llama: tuple[Path, Masks], tmp_path: Path) -> None:
    """Neither on the scope, nor on which file it is in."""
    target, masks = llama
    single = save(tmp_path / "single")
    apply(target, masks, "random", "all", tmp_path / "all", seed=4)
    apply(single, masks, "random", "component:q", tmp_path / "q", seed=4)
    assert bits(stored(tmp_path / "all")[Q]) == bits(stored(tmp_path / "q")[Q]) != bits(stored(target)[Q])


def test_disjoint_draws_avoid_the_zero_modes_and_say_where_too_few_are_left(tmp_path: Path) -> None:
    target = save(tmp_path / "target")
    before = stored(target)
    few = save_masks(tmp_path / "few.safetensors", before, share=0.1)
    applied = apply(target, few, "random", "all", tmp_path / "random", seed=0, disjoint=True)
    after = stored(tmp_path / "random")
    assert all(not ((after[name] != before[name]) & few[name]).any() for name in before)
    assert applied.notes == ()
    many = save_masks(tmp_path / "many.safetensors", before, share=0.6)
    matched = apply(target, many, "random_matched", "all", tmp_path / "matched", seed=0, disjoint=True)
    n_modes = sum(many.count(name) for name in matched.counts)
    missing = n_modes - matched.n_weights_set
    assert missing > 0
    assert matched.notes == (f"{missing:,} of {n_modes:,} weights have no match: too few others of their exponent",)
    most = save_masks(tmp_path / "most.safetensors", before, share=2.0)
    with pytest.raises(InterventionError, match=r"model\.\S+: [\d,]+ of [\d,]+ weights are zero modes"):
        apply(target, most, "random", "all", tmp_path / "out", seed=0, disjoint=True)
    assert not (tmp_path / "out").exists()


def test_the_mean_is_that_of_the_whole_matrix(llama: tuple[Path, Masks], tmp_path: Path) -> None:
    target, masks = llama
    apply(target, masks, "zero_modes", "head:1:2", tmp_path / "out", value="mean")
    before, after = stored(target)[Q], stored(tmp_path / "out")[Q]
    mean = torch.tensor(before.double().numpy().mean()).to(torch.bfloat16)
    where = in_scope(target, "head:1:2")[Q] & masks[Q]
    assert (after[where] == mean).all()
    assert mean != 0
    assert bits(after[~where]) == bits(before[~where])


def test_the_mean_is_worked_out_in_float64_and_rounded_once() -> None:
    weight = torch.tensor([1e8, 1.0, -1e8, 7.0])  # float32 sums lose the 1
    assert edited.edited(weight, torch.tensor([True, False, False, False]), "mean").tolist() == [2.0, 1.0, -1e8, 7.0]
    with pytest.raises(ModelError, match="the mean of a tensor of shape"):
        edited.edited(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]), "mean")


def test_bits_that_are_not_chosen_stay_whatever_they_are() -> None:
    """Negative zero, NaN with a payload, subnormals."""
    weight = torch.tensor([-(2**31), 0x7FC01234, 0x7F801234, 1, 0x3F800000], dtype=torch.int32).view(torch.float32)
    last = torch.tensor([False, False, False, False, True])
    after = edited.edited(weight, last, "zero").view(torch.int32)
    assert after.tolist() == [-(2**31), 0x7FC01234, 0x7F801234, 1, 0]


def test_embeddings_norms_and_biases_are_left_alone_unless_included(tmp_path: Path) -> None:
    target = save(tmp_path / "target", "gpt2")
    before = stored(target)
    masks = save_masks(tmp_path / "masks.safetensors", before)
    for include in ((), ("embed",), ("norm", "bias")):
        out = tmp_path / "-".join(("out", *include))
        apply(target, masks, "zero_modes", "all", out, include=include)
        after = stored(out)
        changed = {name for name in before if bits(before[name]) != bits(after[name])}
        assert changed == set(in_scope(target, "all", include))
        model = loaded(out)
        assert model.lm_head.weight is model.transformer.wte.weight
    for include, message in ((("unembed",), "tied unembedding is stored as embed"), (("other",), "'other' cannot be")):
        with pytest.raises(InterventionError, match=message):
            apply(target, masks, "zero_modes", "all", tmp_path / "refused", include=include)
    with pytest.raises(InterventionError, match="--include embed adds nothing to scope layer:1"):
        apply(target, masks, "zero_modes", "layer:1", tmp_path / "refused", include=("embed",))


@pytest.mark.parametrize("include", [("embed",), ("unembed",), ("embed", "unembed")], ids="-".join)
def test_tied_weights_that_are_stored_twice_are_set_once(tmp_path: Path, include: tuple[str, ...]) -> None:
    target = save(tmp_path / "target", "gpt2")
    path = target / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone()}, path, {"format": "pt"})
    masks = save_masks(tmp_path / "masks.safetensors", tensors)
    applied = apply(target, masks, "zero_modes", "all", tmp_path / "out", include=include)
    after = stored(tmp_path / "out")
    wanted = tensors["transformer.wte.weight"].masked_fill(masks["transformer.wte.weight"], 0.0)
    assert bits(after["transformer.wte.weight"]) == bits(wanted) == bits(after["lm_head.weight"])
    assert applied.counts["transformer.wte.weight"] == masks.count("transformer.wte.weight")
    assert "lm_head.weight" not in applied.counts
    model = loaded(tmp_path / "out")
    assert model.lm_head.weight is model.transformer.wte.weight


def test_equal_weights_that_are_not_tied_are_two(tmp_path: Path) -> None:
    model: Any = tiny_model("llama", tie_word_embeddings=False)
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
    target = tmp_path / "target"
    model.save_pretrained(target)
    masks = save_masks(tmp_path / "masks.safetensors", stored(target))
    applied = apply(target, masks, "zero_modes", "component:embed", tmp_path / "out", include=("embed",))
    after = stored(tmp_path / "out")
    assert set(applied.counts) == {"model.embed_tokens.weight"}
    assert bits(after["lm_head.weight"]) == bits(stored(target)["lm_head.weight"])
    assert bits(after["model.embed_tokens.weight"]) != bits(after["lm_head.weight"])


@pytest.mark.parametrize("rename", [lambda n: n.removeprefix("model."), lambda n: f"base.{n}"], ids=["less", "more"])
def test_a_prefix_more_or_less_is_the_same_tensor(tmp_path: Path, rename: Callable[[str], str]) -> None:
    target = save(tmp_path / "target")
    same = save_masks(tmp_path / "same.safetensors", stored(target))
    renamed = save_masks(tmp_path / "renamed.safetensors", stored(target), rename=rename)
    apply(target, same, "zero_modes", "all", tmp_path / "one")
    apply(target, renamed, "zero_modes", "all", tmp_path / "two")
    assert all(bits(one) == bits(stored(tmp_path / "two")[name]) for name, one in stored(tmp_path / "one").items())


def test_masks_that_do_not_fit_are_refused(llama: tuple[Path, Masks], tmp_path: Path) -> None:
    target, _ = llama
    tensors = stored(target)
    wider = save_masks(tmp_path / "wider.safetensors", {**tensors, Q: torch.zeros(64, 40)})
    with pytest.raises(ModelError, match=rf"{Q} is \(64, 32\), the mask {Q} is \(64, 40\)"):
        apply(target, wider, "zero_modes", "all", tmp_path / "out")
    apply(target, wider, "zero_modes", "layer:0", tmp_path / "elsewhere")
    fewer = save_masks(tmp_path / "fewer.safetensors", {name: t for name, t in tensors.items() if name != Q})
    with pytest.raises(ModelError, match=f"they have none of {Q}, which the scope takes"):
        apply(target, fewer, "zero_modes", "all", tmp_path / "out")
    apply(target, fewer, "zero_modes", "layer:0", tmp_path / "elsewhere too")
    elsewhere = {f"model.decoder.{name}": tensor for name, tensor in tensors.items()}
    other = save_masks(tmp_path / "other.safetensors", {**elsewhere, **tensors})
    apply(target, other, "zero_modes", "all", tmp_path / "exact")
    assert bits(stored(tmp_path / "exact")[Q]) == bits(tensors[Q].masked_fill(other[Q], 0.0))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("random", {}, "random needs a seed"),
        ("random_matched", {}, "random_matched needs a seed"),
        ("zero_modes", {"seed": 1}, "leave out a seed"),
        ("complement", {"disjoint": True}, "leave out --disjoint"),
        ("keep_only", {"value": "mean"}, "name the kind complement"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    llama: tuple[Path, Masks], tmp_path: Path, kind: Kind, options: dict[str, Any], message: str
) -> None:
    target, masks = llama
    with pytest.raises(InputError, match=message):
        apply(target, masks, kind, "all", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_where_nothing_may_be_written(llama: tuple[Path, Masks], tmp_path: Path) -> None:
    target, masks = llama
    full = tmp_path / "full"
    full.mkdir()
    (full / "note").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(target)
    cases = [
        (full, "is not empty"),
        (target, "is in the target's own folder"),
        (target / "inside", "is in the target's own folder"),
        (tmp_path / "link", "is in the target's own folder"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "no" / "such" / "folder", "cannot write"),
        (tmp_path / "file" / "out", "cannot write"),
    ]
    listing = sorted(tmp_path.rglob("*"))
    for out, message in cases:
        with pytest.raises(InputError, match=message):
            apply(target, masks, "zero_modes", "all", out)
    assert sorted(tmp_path.rglob("*")) == listing
    empty = tmp_path / "empty"
    empty.mkdir()
    apply(target, masks, "zero_modes", "all", empty)
    apply(target, masks, "zero_modes", "all", tmp_path / "new" / "out")
    assert sorted(p.name for p in empty.iterdir()) == sorted(p.name for p in (tmp_path / "new" / "out").iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "break"])
def test_nothing_half_written_is_left(
    llama: tuple[Path, Masks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    target, masks = llama
    listing = sorted(tmp_path.rglob("*"))
    calls = []

    def failing(weight: Tensor, chosen: Tensor, value: str) -> Tensor:
        calls.append(list(tmp_path.glob(".*.partial")))
        if len(calls) == 5:
            raise error
        return weight

    monkeypatch.setattr(edited, "edited", failing)
    with pytest.raises((InputError, KeyboardInterrupt)) as raised:
        apply(target, masks, "zero_modes", "all", tmp_path / "deep" / "out")
    assert isinstance(raised.value, KeyboardInterrupt) or "No space left on device" in str(raised.value)
    assert len(calls) == 5
    assert sorted(tmp_path.rglob("*")) == listing


def test_weights_that_change_while_they_are_read_are_refused(
    llama: tuple[Path, Masks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, masks = llama
    plain = edited.edited

    def touching(*arguments: Any) -> Tensor:
        os.utime(next(target.glob("*.safetensors")), (1, 1))
        return plain(*arguments)

    monkeypatch.setattr(edited, "edited", touching)
    with pytest.raises(ModelError, match="were changed while they were read"):
        apply(target, masks, "zero_modes", "all", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_sets_no_weight_is_refused(llama: tuple[Path, Masks], tmp_path: Path) -> None:
    target, masks = llama
    nothing = masks & ~masks
    with pytest.raises(InterventionError, match="zero_modes in scope all are no weights at all"):
        apply(target, nothing, "zero_modes", "all", tmp_path / "out")
    with pytest.raises(InterventionError, match="no layer 3"):
        apply(target, masks, "zero_modes", "layer:3", tmp_path / "out")
    with pytest.raises(InterventionError, match="'everything' is no scope"):
        apply(target, masks, "zero_modes", "everything", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert apply(target, nothing, "complement", "all", tmp_path / "out").n_weights_set > 0


def test_weights_in_other_formats_are_not_copied(llama: tuple[Path, Masks], tmp_path: Path) -> None:
    target, masks = llama
    for name in ("pytorch_model.bin", "model.onnx", "old.safetensors"):
        (target / name).write_bytes(b"old weights")
    (target / "original").mkdir()
    for name in ("model.py", ".gitattributes"):
        (target / name).write_text("# comes with the model")
    applied = apply(target, masks, "zero_modes", "all", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.py", ".gitattributes", "config.json", "tokenizer.json", "model.safetensors.index.json"} <= names
    assert not names & {"pytorch_model.bin", "model.onnx", "old.safetensors", "original"}
    assert applied.notes == ("not copied: model.onnx, old.safetensors, original and 1 more",)


def test_a_single_file_takes_the_place_of_shards_beside_it(llama: tuple[Path, Masks], tmp_path: Path) -> None:
    """transformers reads the single file where both are there; a copied index would name files that are not."""
    target, masks = llama
    shutil.copy(save(tmp_path / "single") / "model.safetensors", target)
    apply(target, masks, "zero_modes", "all", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("*model*")} == {"model.safetensors"}
    loaded(tmp_path / "out")


def test_the_record_says_what_was_done_and_goes_on(llama: tuple[Path, Masks], tmp_path: Path) -> None:
    target, masks = llama
    first = apply(target, masks, "zero_modes", "layer:1", tmp_path / "one")
    second = apply(tmp_path / "one", masks, "random", "layer:2", tmp_path / "two", seed=3)
    record = json.loads((tmp_path / "two" / RECORD).read_text())
    assert [entry["kind"] for entry in record] == ["zero_modes", "random"]
    assert [entry["n_weights_set"] for entry in record] == [first.n_weights_set, second.n_weights_set]
    assert [entry["seed"] for entry in record] == [None, 3]
    assert record[0]["masks"] == {"base": "b", "tuned": "t"}
    assert record[1]["n_weights_set_by_tensor"] == dict(second.counts)


def test_shared_keys_and_values_are_said(llama: tuple[Path, Masks], tmp_path: Path) -> None:
    target, masks = llama
    applied = apply(target, masks, "zero_modes", "head:1:0", tmp_path / "out")
    assert "those of heads 0 to 1, which share them" in applied.notes[0]
    assert apply(target, masks, "zero_modes", "layer:1", tmp_path / "other").notes == ()


@pytest.mark.parametrize("damage", ["integers", "packed", "pickle", "cut", "no config"])
def test_a_target_that_cannot_be_edited_is_refused(tmp_path: Path, damage: str) -> None:
    target = save(tmp_path / "target")
    tensors = stored(target)
    masks = save_masks(tmp_path / "masks.safetensors", tensors)
    path, config = target / "model.safetensors", target / "config.json"
    if damage == "integers":
        save_file({**tensors, Q: torch.ones(64, 32, dtype=torch.int8)}, path)
    elif damage == "packed":
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "gptq"}})
        )
    elif damage == "pickle":
        path.rename(target / "pytorch_model.bin")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        config.unlink()
    with pytest.raises(LesionError) as raised:
        apply(target, masks, "zero_modes", "all", tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
