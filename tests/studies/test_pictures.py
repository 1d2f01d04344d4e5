"""What `zero-modes diff` looks at: numbers from whole tensors, numpy.fft and checkpoints that `apply` wrote."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

from lesion.checkpoints.compare import Options
from lesion.checkpoints.edited import apply
from lesion.checkpoints.masks import Masks
from lesion.checkpoints.opened import open_checkpoint
from lesion.errors import InputError, InterventionError, LesionError, ModelError
from lesion.studies.setting import Outcome
from lesion.studies.zero_modes import diff, pictures
from lesion.studies.zero_modes.looking import parse_look, plan
from tests.checkpoints.pairs import write
from tests.support import tiny_model

SEEDS = (4, 5, 6)
Matrix = NDArray[np.float64]


def save_pair(folder: Path, family: str, share: float = 0.3, **sizes: Any) -> tuple[str, str]:
    """A tiny model in bfloat16, and one in which all but some of the weights were moved."""
    tiny_model(family, **sizes).to(torch.bfloat16).save_pretrained(folder / "base")
    shutil.copytree(folder / "base", folder / "tuned")
    tensors = load_file(folder / "base" / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for tensor in tensors.values():
        tensor.view(torch.int16)[torch.rand(tensor.shape, generator=generator) > share] ^= 1
    save_file(tensors, folder / "tuned" / "model.safetensors", metadata={"format": "pt"})
    return str(folder / "base"), str(folder / "tuned")


def looked(pair: tuple[str, str], out: Path, *look: str) -> Outcome:
    return diff(*pair, out=out, look=look, options=Options(seed=SEEDS[0]))


def rows(outcome: Outcome, table: str, **where: Any) -> pd.DataFrame:
    found = outcome.tables[table]
    for name, value in where.items():
        found = found[found[name].isna()] if value is None else found[found[name] == value]
    return found


def stored(pair: tuple[str, str]) -> dict[str, Tensor]:
    return load_file(Path(pair[1]) / "model.safetensors")


def same_bits(pair: tuple[str, str], name: str) -> Tensor:
    base, tuned = (load_file(Path(side) / "model.safetensors")[name].view(torch.int16) for side in pair)
    return base == tuned


def drawn_by_apply(pair: tuple[str, str], run: Path, kind: Any, seed: int, name: str, scope: str) -> Tensor:
    """Where the edited checkpoint is 0: its weights were not."""
    out = run.parent / f"edited-{kind}-{seed}-{scope.replace(':', '-').replace('/', '-')}"
    if not out.exists():
        apply(Path(pair[1]), Masks.load(run), kind, scope, out, seed=seed)
    assert not (stored(pair)[name] == 0).any()
    return load_file(out / "model.safetensors")[name] == 0


def spectrum(weight: Matrix, of: str, averaged: int) -> Matrix:
    means = (np.abs(weight) if of == "mean_abs" else weight).mean(axis=averaged)
    found: Matrix = np.abs(np.fft.fft(means - means.mean()))[1 : len(means) // 2 + 1]
    return found


@pytest.fixture
def llama(tmp_path: Path) -> tuple[str, str]:
    return save_pair(tmp_path, "llama")


# ---------------------------------------------------------------- spectra


@pytest.mark.parametrize(("component", "averaged", "heads"), [("q", 1, 8), ("k", 1, 4), ("v", 1, 2), ("o", 0, 4)])
def test_spectra_of_all_variants(
    llama: tuple[str, str], tmp_path: Path, component: str, averaged: int, heads: int
) -> None:
    """The tiny LLaMA has four heads and two of keys (grouped-query attention)."""
    outcome = looked(llama, tmp_path / "run", "group:QK", "group:OV")
    name = f"model.layers.1.self_attn.{component}_proj.weight"
    weight = stored(llama)[name].double().numpy()
    masks: dict[tuple[str, int | None], Matrix] = {("zero_modes", None): same_bits(llama, name).numpy().astype(float)}
    for kind, of in (("random", "random"), ("random_matched", "matched")):
        for seed in SEEDS:
            drawn = drawn_by_apply(llama, tmp_path / "run", kind, seed, name, "all")
            masks[of, seed] = drawn.numpy().astype(float)
    kept = {("original", None): np.ones(weight.shape)} | masks
    ablated = {"zero_modes": "ablated", "random": "random_ablated", "matched": "matched_ablated"}
    kept |= {(ablated[of], seed): 1 - mask for (of, seed), mask in masks.items()}
    spectra = rows(outcome, "zero_modes_spectra", tensor=name)
    assert len(spectra) == 2 * len(kept) * (weight.shape[1 - averaged] // 2)
    seen = []
    for (weights, seed), mask in kept.items():
        for of in ("mean", "mean_abs"):
            found = rows(outcome, "zero_modes_spectra", tensor=name, weights=weights, seed=seed, of=of)
            expected = spectrum(weight * mask, of, averaged)
            assert found["frequency"].tolist() == list(range(1, len(expected) + 1))
            np.testing.assert_allclose(found["amplitude"], expected, atol=1e-12)  # numbers of size 1 in float64
            seen.append(tuple(expected))
            row = rows(outcome, "zero_modes_harmonics", tensor=name, weights=weights, seed=seed, of=of).iloc[0]
            assert row["fundamental"] == heads
            assert row["amplitude_at_fundamental"] == pytest.approx(expected[heads - 1])
            power = 2 * expected**2
            power[-1] /= 2
            assert row["share_at_harmonics"] == pytest.approx(power[heads - 1 :: heads].sum() / power.sum())
    assert len(set(seen)) == len(seen)
    reason = rows(outcome, "zero_modes_harmonics", tensor=name)["fundamental_reason"].iloc[0]
    assert ("two blocks a head" in reason) == (component in "qk")


@pytest.mark.parametrize("weights", ["original", "ablated", "zero_modes"])
def test_planted_heads_are_found(tmp_path: Path, weights: str) -> None:
    """|w| rises along each half of each head, and zero modes are a column of the matrix, which every head has."""
    pair = save_pair(tmp_path, "llama", hidden_size=32)
    name = "model.layers.0.self_attn.q_proj.weight"
    for side in pair:
        tensors = load_file(Path(side) / "model.safetensors")
        n_outputs = len(tensors[name])
        sizes = (1 + torch.arange(n_outputs) % 8)[:, None] * torch.ones(32)
        signs = torch.ones(32).masked_fill(torch.arange(32) % 2 == 0, -1.0)
        tensors[name] = (sizes * signs).bfloat16()
        if side == pair[1]:
            tensors[name][:, 6:] *= 2
        save_file(tensors, Path(side) / "model.safetensors", metadata={"format": "pt"})
    outcome = looked(pair, tmp_path / "run", "0/q,1/q")
    found = rows(outcome, "zero_modes_harmonics", layer=0, of="mean_abs", weights=weights).iloc[0]
    assert found["fundamental"] == 8
    assert found["share_at_harmonics"] == pytest.approx(1.0, abs=1e-9)
    assert found["over_expected"] == pytest.approx(63 / 7)
    unplanted = rows(outcome, "zero_modes_harmonics", layer=1, of="mean_abs", weights=weights).iloc[0]
    assert unplanted["share_at_harmonics"] < 0.5


def test_halves_of_heads_only_where_rotary_positions_make_them(tmp_path: Path) -> None:
    for family, frequency, reason in (
        ("llama", 8, "two blocks a head"),
        ("gptj", 4, "neighbouring"),
        ("phi", 4, "0.5 of each head"),
        ("opt", 4, "no rotary"),
        ("bert", 4, "no rotary"),
    ):
        outcome = looked(save_pair(tmp_path / family, family), tmp_path / family / "run", "component:q")
        found = outcome.tables["zero_modes_harmonics"]
        assert set(found["fundamental"]) == {frequency}, family
        assert found["fundamental_reason"].str.contains(reason).all(), family


@pytest.mark.parametrize(("family", "fused"), [
    ("gpt2", "transformer.h.1.attn.c_attn.weight"),
    ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value.weight"),
    ("falcon-40b", "transformer.h.1.self_attention.query_key_value.weight"),
])  # fmt: skip
def test_fused_matrices_are_looked_at_as_their_parts(tmp_path: Path, family: str, fused: str) -> None:
    """Rows of q, k and v are found by writing out where each head's rows lie."""
    pair = save_pair(tmp_path, family)
    outcome = looked(pair, tmp_path / "run", "auto")
    whole = stored(pair)[fused].double()
    weight = (whole.T if family == "gpt2" else whole).numpy()
    n_heads, n_kv = 4, 2 if family == "falcon-40b" else 4
    d_head = len(weight) // (n_heads + 2 * n_kv)
    order: dict[str, list[int]] = {"q": [], "k": [], "v": []}
    slots = [*"qqqqkkkkvvvv"] if family == "gpt2" else [*("q" * (n_heads // n_kv) + "kv")] * n_kv
    for slot, part in enumerate(slots):
        order[part] += range(slot * d_head, (slot + 1) * d_head)
    for part, indices in order.items():
        found = rows(outcome, "zero_modes_spectra", tensor=fused, component=part, weights="original", of="mean_abs")
        np.testing.assert_allclose(found["amplitude"], spectrum(weight[indices], "mean_abs", 1), atol=1e-12)
        assert f"{fused}/{part}/mask" in load_arrays(tmp_path / "run" / "arrays" / "pictures.safetensors")
        drawn = drawn_by_apply(pair, tmp_path / "run", "random", SEEDS[1], fused, f"component:{part}")
        kept = drawn.T.numpy() if family == "gpt2" else drawn.numpy()
        taken = (weight * kept)[indices]
        found = rows(
            outcome, "zero_modes_spectra", tensor=fused, component=part, weights="random", seed=SEEDS[1], of="mean"
        )
        np.testing.assert_allclose(found["amplitude"], spectrum(taken, "mean", 1), atol=1e-12)
    assert set(rows(outcome, "zero_modes_spectra", tensor=fused)["component"]) == {"q", "k", "v"}


# ---------------------------------------------------------------- neurons


@pytest.mark.parametrize(("family", "component", "name", "neurons"), [
    ("llama", "gate", "model.layers.0.mlp.gate_proj.weight", 0),
    ("llama", "down", "model.layers.0.mlp.down_proj.weight", 1),
    ("gpt2", "fc1", "transformer.h.0.mlp.c_fc.weight", 1),
    ("gpt2", "fc2", "transformer.h.0.mlp.c_proj.weight", 0),
    ("bert", "fc1", "bert.encoder.layer.0.intermediate.dense.weight", 0),
    ("bert", "fc2", "bert.encoder.layer.0.output.dense.weight", 1),
])  # fmt: skip
def test_neurons(tmp_path: Path, family: str, component: str, name: str, neurons: int) -> None:
    """`neurons` is the dimension, as stored, that counts them: 80 of them, of 32 weights."""
    pair = save_pair(tmp_path, family)
    outcome = looked(pair, tmp_path / "run", f"0/{component}")
    weight, mask = stored(pair)[name].double(), same_bits(pair, name)
    sizes, of_neuron = weight.abs(), 1 - neurons
    found = rows(outcome, "zero_modes_neurons", tensor=name)
    assert len(found) == 80
    np.testing.assert_allclose(found["mean_abs"], sizes.mean(of_neuron))
    np.testing.assert_allclose(found["mean_abs_ablated"], (sizes * ~mask).mean(of_neuron), atol=1e-15)
    np.testing.assert_allclose(found["change"], (sizes * mask).sum(of_neuron) / sizes.sum(of_neuron), atol=1e-15)
    assert found["n_zero_modes"].tolist() == mask.sum(of_neuron).tolist()
    np.testing.assert_allclose(found["fraction"], mask.double().mean(of_neuron))
    np.testing.assert_allclose(found["share_above_mean"], (sizes > sizes.mean()).double().mean(of_neuron))
    top = rows(outcome, "zero_modes_neurons_top", tensor=name).iloc[0]
    assert top["neuron"] == found["change"].argmax()
    assert top["change"] == found["change"].max()
    assert top["change_median"] == pytest.approx(found["change"].median())
    for kind, of in (("random", "random"), ("random_matched", "matched")):
        drawn = [drawn_by_apply(pair, tmp_path / "run", kind, seed, name, "all") for seed in SEEDS]
        changes = np.stack([((sizes * one).sum(of_neuron) / sizes.sum(of_neuron)).numpy() for one in drawn])
        np.testing.assert_allclose(found[f"change_{of}"], changes.mean(0), atol=1e-15)
        np.testing.assert_allclose(found[f"change_{of}_sd"], changes.std(0, ddof=1), atol=1e-15)
        np.testing.assert_allclose(found[[f"change_{of}_{draw}" for draw in (1, 2, 3)]].T, changes, atol=1e-15)
        assert (changes[0] != changes[1]).any()
        assert not {f"change_{of}_1"} & set(top.index)
        assert top[f"largest_{of}"] == pytest.approx(changes.max(1).mean())
        assert top[f"largest_{of}_sd"] == pytest.approx(changes.max(1).std(ddof=1))
    assert not np.allclose(found["change_random"], found["change_matched"])


def test_a_neuron_of_zero_modes_is_the_most_affected(llama: tuple[str, str], tmp_path: Path) -> None:
    base, tuned = (Path(side) / "model.safetensors" for side in llama)
    before, after = load_file(base), load_file(tuned)
    gate, down = (f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "down"))
    after[gate][17], after[down][:, 23] = before[gate][17], before[down][:, 23]
    save_file(after, tuned, metadata={"format": "pt"})
    top = (
        looked(llama, tmp_path / "run", "group:MLP").tables["zero_modes_neurons_top"].set_index(["layer", "component"])
    )
    for component, neuron in (("gate", 17), ("down", 23)):
        assert top.loc[(1, component), "neuron"] == neuron
        assert top.loc[(1, component), "change"] == 1.0
        assert top.loc[(1, component), "fraction"] == 1.0
        assert top.loc[(1, component), "largest_matched"] < 0.9
    assert top.loc[(1, "up"), "change"] < 0.9


# ---------------------------------------------------------------- pictures and spectra in two dimensions


def test_pictures_are_the_matrices(llama: tuple[str, str], tmp_path: Path) -> None:
    """Matrices this small are pictured weight by weight."""
    outcome = looked(llama, tmp_path / "run", "0/q", "2/down")
    arrays = load_arrays(tmp_path / "run" / "arrays" / "pictures.safetensors")
    images = outcome.tables["zero_modes_images"].set_index("image")
    assert set(arrays) == set(images.index)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight"):
        sizes = stored(llama)[name].double().abs()
        expected = {
            "binarised": sizes > sizes.mean(),
            "mask": same_bits(llama, name),
            "random": drawn_by_apply(llama, tmp_path / "run", "random", SEEDS[0], name, "all"),
            "matched": drawn_by_apply(llama, tmp_path / "run", "random_matched", SEEDS[0], name, "all"),
        }
        for of, ones in expected.items():
            assert torch.equal(torch.from_numpy(arrays[f"{name}/{of}"]), ones.byte() * 255), of
            assert images.loc[f"{name}/{of}", ["value_at_0", "value_at_255"]].tolist() == [0.0, 1.0]
            row = rows(outcome, "zero_modes_spectra_2d", tensor=name, of=of).iloc[0]
            values = ones.double().numpy()
            assert row["share_between_outputs"] == pytest.approx(values.mean(1).var() / values.var(), rel=1e-4)
            assert row["share_between_inputs"] == pytest.approx(values.mean(0).var() / values.var(), rel=1e-4)
            assert row["share_on_axes"] == pytest.approx(row["share_between_outputs"] + row["share_between_inputs"])
            amplitude = np.abs(np.fft.fft2(values - values.mean()))
            on_axes = amplitude[0].sum() + amplitude[1:, 0].sum()
            assert row["amplitude_share_on_axes"] == pytest.approx(on_axes / amplitude.sum(), rel=1e-4)
        shape = arrays[f"{name}/spectrum_2d"].shape
        assert shape == tuple(images.loc[f"{name}/spectrum_2d", ["height", "width"]])
    seeds = rows(outcome, "zero_modes_spectra_2d", layer=0)[["of", "seed"]].astype(object).fillna(-1)
    assert seeds.values.tolist() == [
        *(["binarised", -1], ["mask", -1]),
        *(["random", seed] for seed in SEEDS),
        *(["matched", seed] for seed in SEEDS),
    ]


def test_faint_masks_are_scaled_together(tmp_path: Path) -> None:
    """A column of 128 is the same: a quarter of each cell on it, which is white, as would be a quarter drawn."""
    base = {
        "model.layers.0.mlp.down_proj.weight": torch.randn((1024, 1024), generator=torch.Generator().manual_seed(0))
    }
    tuned = {name: value + 1 for name, value in base.items()}
    for name, value in tuned.items():
        value[:, ::128] = base[name][:, ::128]
    config = {"model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 1}
    pair = write(tmp_path / "base", base, config=config), write(tmp_path / "tuned", tuned, config=config)
    outcome = looked(pair, tmp_path / "run", "auto")
    images = outcome.tables["zero_modes_images"].set_index("of")
    arrays = load_arrays(tmp_path / "run" / "arrays" / "pictures.safetensors")
    assert arrays[images.loc["mask", "image"]].shape == (256, 256)
    highest = images.loc[["mask", "random", "matched"], "value_at_255"]
    assert highest.nunique() == 1
    assert highest.iloc[0] == 0.25
    columns = arrays[images.loc["mask", "image"]].max(axis=0)
    assert np.count_nonzero(columns == 255) == np.count_nonzero(columns) == 8
    assert rows(outcome, "zero_modes_spectra_2d", of="mask")["share_between_inputs"].item() == pytest.approx(1.0)
    assert rows(outcome, "zero_modes_spectra_2d", of="random")["share_between_inputs"].max() < 0.1


# ---------------------------------------------------------------- what is looked at


@pytest.mark.parametrize(("texts", "expected"), [
    (["auto"], ("auto",)),
    (["none"], ()),
    (["1/k, layer:3", "component:gate"], ("layer:1/k", "layer:3", "component:gate")),
    (["1/k", "layer:1/k"], ("layer:1/k",)),
])  # fmt: skip
def test_what_is_asked_for(texts: list[str], expected: tuple[str, ...]) -> None:
    assert parse_look(texts) == expected


@pytest.mark.parametrize(("texts", "says"), [
    (["none,auto"], "excludes auto"),
    (["everything"], "is no scope"),
    ([""], "is no scope"),
    (["head:1:2"], "not heads"),
    (["1/keys"], "no component 'keys'"),
])  # fmt: skip
def test_what_cannot_be_asked_for(texts: list[str], says: str) -> None:
    with pytest.raises(LesionError, match=says):
        parse_look(texts)


def names(pair: tuple[str, str], *look: str) -> list[str]:
    base, tuned = (open_checkpoint(side) for side in pair)
    return [part.name for part in plan(parse_look(look), tuned, base).parts]


def test_chosen_matrices(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, "llama", num_hidden_layers=5)
    parts = ("q", "k", "v", "o", "gate", "down")
    assert names(pair, "auto") == [f"{layer}/{part}" for layer in (0, 1, 4) for part in parts]
    assert names(pair, "none") == []
    assert len(names(pair, "all")) == 5 * 7
    assert names(pair, "2/k,3/up") == ["2/k", "3/up"]
    assert names(pair, "layers:1-2/QK") == ["1/q", "1/k", "2/q", "2/k"]
    assert names(pair, "layer:3") == [f"3/{part}" for part in ("q", "k", "v", "o", "gate", "up", "down")]
    with pytest.raises(InterventionError, match="no layer 9"):
        names(pair, "9/k")
    with pytest.raises(InterventionError, match="no fc1"):
        names(pair, "component:fc1")
    with pytest.raises(InputError, match="no projection matrix"):
        names(pair, "component:norm")


def test_of_experts_auto_looks_at_one_and_says_so(tmp_path: Path) -> None:
    base, tuned = (open_checkpoint(side) for side in save_pair(tmp_path, "mixtral"))
    found = plan(("auto",), tuned, base)
    assert len({part.name for part in found.parts}) == len(found.parts) == 3 * 6
    assert all("experts.0." in part.tensor for part in found.parts if part.component in ("gate", "down"))
    assert any("leaves out 18 matrices" in line for line in found.warnings)  # 3 blocks, 3 other experts, gate and down
    gates = plan(("layer:0/gate",), tuned, base)
    assert len(gates.parts) == 4
    assert gates.warnings == ()


# ---------------------------------------------------------------- the run


def test_a_run_records_what_was_looked_at(llama: tuple[str, str], tmp_path: Path) -> None:
    first = looked(llama, tmp_path / "run", "1/k", "0/gate")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["looked_at"] == ["0/gate", "1/k"]
    assert manifest["arguments"]["look"] == ["layer:1/k", "layer:0/gate"]
    assert manifest["seeds"] == list(SEEDS)
    again = looked(llama, tmp_path / "run", "1/k", "0/gate")
    assert again.resumed_complete
    for name in pictures.COLUMNS:
        pd.testing.assert_frame_equal(again.tables[name], first.tables[name])
    with pytest.raises(LesionError, match="another run"):
        looked(llama, tmp_path / "run", "1/q")
    nothing = looked(llama, tmp_path / "nothing", "none")
    assert not set(nothing.tables) & set(pictures.COLUMNS)
    assert json.loads((tmp_path / "nothing" / "run.json").read_text())["looked_at"] == []


def test_drawing_ahead_changes_nothing(llama: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = looked(llama, tmp_path / "one", "auto")
    monkeypatch.setattr(pictures, "AHEAD", 0)
    second = looked(llama, tmp_path / "two", "auto")
    for name in pictures.COLUMNS:
        pd.testing.assert_frame_equal(second.tables[name], first.tables[name], check_exact=True)
    other = diff(*llama, out=tmp_path / "three", look=["auto"], options=Options(seed=9))
    assert not other.tables["zero_modes_spectra"].equals(first.tables["zero_modes_spectra"])


def test_without_a_run_folder_nothing_is_looked_at(llama: tuple[str, str]) -> None:
    assert not set(diff(*llama).tables) & set(pictures.COLUMNS)
    assert not set(diff(*llama, look=["none"]).tables) & set(pictures.COLUMNS)
    with pytest.raises(InputError, match="run folder"):
        diff(*llama, look=["auto"])


def test_a_bad_wish_leaves_no_folder(llama: tuple[str, str], tmp_path: Path) -> None:
    for wish in ("9/k", "nonsense"):
        with pytest.raises(LesionError):
            looked(llama, tmp_path / "run", wish)
        assert not (tmp_path / "run").exists()


def test_rounded_weights_are_looked_at_where_both_sides_were_rounded(tmp_path: Path) -> None:
    pair = save_pair(tmp_path, "llama")
    for side in pair:
        path = Path(side) / "model.safetensors"
        exact = {name: value.float() * (1 + 1e-4) for name, value in load_file(path).items()}
        save_file(exact, path, metadata={"format": "pt"})
    outcome = diff(*pair, out=tmp_path / "run", look=["0/q"], options=Options(cast="bf16"))
    weight = stored(pair)["model.layers.0.self_attn.q_proj.weight"]
    found = rows(outcome, "zero_modes_spectra", weights="original", of="mean")["amplitude"]
    np.testing.assert_allclose(found, spectrum(weight.bfloat16().double().numpy(), "mean", 1), atol=1e-12)
    assert not np.allclose(found, spectrum(weight.double().numpy(), "mean", 1), atol=1e-9)


def test_what_is_not_finite_is_left_out_with_a_warning(llama: tuple[str, str], tmp_path: Path) -> None:
    path = Path(llama[1]) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.k_proj.weight"][3, 3] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    outcome = looked(llama, tmp_path / "run", "layers:0-1/QK")
    assert any("0/k" in line and "not finite" in line for line in outcome.warnings)
    assert set(outcome.tables["zero_modes_spectra"]["tensor"].unique()) == {
        f"model.layers.{place}_proj.weight" for place in ("0.self_attn.q", "1.self_attn.q", "1.self_attn.k")
    }


def test_without_zero_modes_shares_are_nan_with_a_warning(tmp_path: Path) -> None:
    outcome = looked(save_pair(tmp_path, "llama", share=-1.0), tmp_path / "run", "0/q", "0/gate")
    assert any("0/q, 0/gate: no zero modes" in line for line in outcome.warnings)
    assert rows(outcome, "zero_modes_harmonics", weights="zero_modes")["share_at_harmonics"].isna().all()
    assert rows(outcome, "zero_modes_harmonics", weights="ablated")["share_at_harmonics"].notna().all()
    assert rows(outcome, "zero_modes_spectra_2d", of="mask")["share_on_axes"].isna().all()
    assert (outcome.tables["zero_modes_neurons"]["change"] == 0).all()


def test_what_has_no_counterpart_is_left_out_with_a_warning(llama: tuple[str, str], tmp_path: Path) -> None:
    path = Path(llama[0]) / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    outcome = looked(llama, tmp_path / "run", "group:QK")
    assert any(line == "0/q: no counterpart in BASE: not looked at" for line in outcome.warnings)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["looked_at"] == ["0/k", "1/q", "1/k", "2/q", "2/k"]


def test_a_configuration_that_names_no_family(tmp_path: Path) -> None:
    """Old ones say how many heads there are; where not even that is said, nothing is looked at unless asked for."""
    pair = save_pair(tmp_path, "bert")
    for side in pair:
        path = Path(side) / "config.json"
        path.write_text(json.dumps({"num_attention_heads": 4}))
    found = looked(pair, tmp_path / "run", "auto").tables["zero_modes_harmonics"]
    assert set(found["fundamental"]) == {4}
    assert found["fundamental_reason"].str.contains("no model_type").equals(found["component"].isin(["q", "k"]))
    for side in pair:
        (Path(side) / "config.json").write_text("{}")
    outcome = looked(pair, tmp_path / "other", "auto")
    assert any("neither model_type nor num_attention_heads" in line for line in outcome.warnings)
    assert not set(outcome.tables) & set(pictures.COLUMNS)
    with pytest.raises(ModelError, match="neither model_type nor"):
        looked(pair, tmp_path / "third", "0/q")


def test_a_folder_without_a_configuration_has_that_of_the_base(llama: tuple[str, str], tmp_path: Path) -> None:
    (Path(llama[1]) / "config.json").unlink()
    found = looked(llama, tmp_path / "run", "0/q").tables["zero_modes_harmonics"]
    assert set(found["fundamental"]) == {8}
    (Path(llama[0]) / "config.json").unlink()
    with pytest.raises(ModelError, match="neither model_type nor"):
        looked(llama, tmp_path / "other", "0/q")


def test_heads_that_do_not_fit_are_said(llama: tuple[str, str], tmp_path: Path) -> None:
    path = Path(llama[1]) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_key_value_heads": 3}))
    outcome = looked(llama, tmp_path / "run", "0/k", "0/q")
    assert rows(outcome, "zero_modes_harmonics", component="k")["fundamental"].isna().all()
    assert rows(outcome, "zero_modes_harmonics", component="q")["fundamental"].notna().all()
    assert any(line.startswith("0/k: 3 heads do not fit 32 dimensions") for line in outcome.warnings)
    assert len(rows(outcome, "zero_modes_spectra", component="k"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": 7}))
    with pytest.raises(ModelError, match="contradicts itself"):
        looked(llama, tmp_path / "other", "0/q")
    assert any("contradicts itself" in line for line in looked(llama, tmp_path / "other", "auto").warnings)
