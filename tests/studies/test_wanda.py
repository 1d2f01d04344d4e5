"""`lesion zero-modes wanda`: norms against plain transformers, rankings against exact fractions, and its run folder."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor, nn
from transformers import AutoTokenizer

import lesion
from lesion.checkpoints.components import place
from lesion.checkpoints.masks import MaskWriter
from lesion.data import load_text
from lesion.engine.runners import MemoryRunner
from lesion.errors import InputError, ModelError, RunFolderError
from lesion.studies.zero_modes.wanda import wanda
from tests.statistics.test_deciles import slow
from tests.studies.pair import Pair, moved, save_model, write_text
from tests.support import TINY

FAMILIES = ["llama", "gpt2", "gpt_neox", "opt", "phi", "falcon-7b", "falcon-40b", "bloom", "bert", "gemma2"]
BY = ["wanda", "magnitude", "activation"]


class WandaPair(Pair):
    """A pair, and the study."""

    def run(self, **options: object) -> lesion.Outcome:
        given = {"model": self.tuned, "masks": self.masks, "data": str(self.text), "reading": self.reading, **options}
        return wanda(**given)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, Tensor]:
        stored = load_file(self.tuned / "model.safetensors")
        return {name: tensor for name, tensor in stored.items() if place(name).is_projection}

    def is_transposed(self) -> bool:
        return self.name == "gpt2"

    def oriented(self, tensor: Tensor) -> np.ndarray:
        """As (out, in)."""
        found = (tensor.T if self.is_transposed() else tensor).numpy()
        return np.ascontiguousarray(found)

    def slow_norms(self) -> dict[str, np.ndarray]:
        """Plain transformers in float64, one document at a time, hooks of torch's own at the modules of the tensors."""
        family = TINY[self.name][0]
        architecture = getattr(transformers, family.architectures[0])
        model = architecture.from_pretrained(self.tuned, dtype=torch.float64, attn_implementation=family.attention)
        tokenizer = AutoTokenizer.from_pretrained(self.tuned)
        data = load_text(str(self.text), tokenizer, context=32, tokens=500, objective=family.objective)  # type: ignore[arg-type]
        squares: dict[str, Tensor] = {}

        def look(name: str, module: nn.Module) -> None:
            def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
                found = given[0].reshape(-1, given[0].shape[-1]).square().sum(0)
                squares[name] = squares.get(name, torch.zeros_like(found)) + found

            module.register_forward_pre_hook(hook)

        for name in self.tensors():
            look(name, model.get_submodule(name.removesuffix(".weight")))
        with torch.inference_mode():
            for index in range(len(data.lengths)):
                model.eval()(**data.batch([index]).model_inputs())
        return {name: found.sqrt().numpy() for name, found in squares.items()}


@pytest.fixture(scope="module", params=FAMILIES)
def family_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WandaPair:
    folder = tmp_path_factory.mktemp("pair")
    return WandaPair(str(request.param), folder, write_text(folder / "text.jsonl"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> WandaPair:
    folder = tmp_path_factory.mktemp("llama")
    return WandaPair("llama", folder, write_text(folder / "text.jsonl"))


def norms_in(folder: Path) -> dict[str, np.ndarray]:
    return load_arrays(folder / "arrays" / "input_norms.safetensors")


def test_against_brute_force(family_pair: WandaPair, tmp_path: Path) -> None:
    """Norms within float32's rounding; and, from the kept norms, every count of both tables exactly."""
    outcome = family_pair.run(out=tmp_path / "run")
    norms, expected, tensors = norms_in(tmp_path / "run"), family_pair.slow_norms(), family_pair.tensors()
    assert set(norms) == set(expected) == set(tensors)
    assert len(norms) >= 3 * 4
    for name, norm in norms.items():
        # float32 activations in batches against float64, one document at a time: some 1e-6 of the largest
        np.testing.assert_allclose(norm, expected[name], rtol=1e-5, atol=1e-6 * norm.max())
        assert norm.dtype == np.float64
        assert norm.std() > 0.01 * norm.mean()  # coordinates differ, so that a transposed matrix would be noticed
    rows = outcome.tables["zero_modes_wanda"]
    masks = lesion.Masks.load(family_pair.masks)
    for name, tensor in tensors.items():
        weights, marked = family_pair.oriented(tensor.float()), family_pair.oriented(masks[name])
        norm = norms[name].astype(np.float32)
        scores = {
            "wanda": np.abs(weights) * norm,
            "magnitude": np.abs(weights),
            "activation": np.broadcast_to(norm, weights.shape),
        }
        of_it = rows[rows["tensor"] == name]
        assert of_it["by"].tolist() == [by for by in BY for _ in range(10)]
        assert of_it["decile"].tolist() == list(range(1, 11)) * 3
        assert set(zip(of_it["layer"], of_it["component"], strict=True)) == {place(name)}
        for by in BY:
            found, counts = of_it[of_it["by"] == by], [float(part) for part in slow(scores[by], marked)]
            np.testing.assert_allclose(found["n_zero_modes"], counts, rtol=0, atol=1e-9)
            size = weights.shape[1]
            sizes = np.array([weights.shape[0] * (size * (k + 1) // 10 - size * k // 10) for k in range(10)])
            assert found["n_weights"].tolist() == sizes.tolist()
            np.testing.assert_allclose(found["fraction"], counts / sizes, rtol=1e-12)
            np.testing.assert_allclose(found["over_mean"], counts / sizes / marked.mean(), rtol=1e-12)
        check_neurons(outcome.tables["zero_modes_wanda_neurons"], name, scores["wanda"], marked)


def check_neurons(table: pd.DataFrame, name: str, scores: np.ndarray, marked: np.ndarray) -> None:
    found, component = table[table["tensor"] == name], place(name).component
    if component in ("q", "k", "v", "o", "qkv"):
        assert found.empty
        return
    axis = {"gate": 1, "up": 1, "fc1": 1, "down": 0, "fc2": 0}[component]
    expected = scores.astype(np.float64).sum(axis=axis)
    assert len(found) == len(expected) > 32
    assert found["neuron"].tolist() == list(range(len(expected)))
    np.testing.assert_allclose(found["score"], expected, rtol=1e-12)
    assert found["rank"].tolist() == stats.rankdata(-found["score"], method="min").tolist()
    assert found["n_zero_modes"].tolist() == marked.sum(axis=axis).tolist()
    np.testing.assert_allclose(found["fraction"], marked.mean(axis=axis), rtol=1e-12)


def test_sums_over_blocks_and_over_all_projections(pair: Pair) -> None:
    rows = pair.run().tables["zero_modes_wanda"]
    of_tensors, sums = rows[rows["tensor"].notna()], rows[rows["tensor"].isna()]
    assert sums["layer"].isna().all()
    assert sums["component"].unique().tolist() == ["q", "k", "v", "o", "gate", "up", "down", "projections"]
    keys = ["by", "decile"]
    for component, found in sums.groupby("component"):
        parts = of_tensors if component == "projections" else of_tensors[of_tensors["component"] == component]
        added = parts.groupby(keys)[["n_weights", "n_zero_modes"]].sum()
        joined = found.set_index(keys).join(added.add_suffix("_added"))
        assert len(joined) == 30
        assert (joined["n_weights"] == joined["n_weights_added"]).all()
        np.testing.assert_allclose(joined["n_zero_modes"], joined["n_zero_modes_added"], rtol=1e-12)
        shares = joined["n_zero_modes_added"] / joined["n_weights_added"]
        np.testing.assert_allclose(joined["fraction"], shares, rtol=1e-12)
    total = lesion.Masks.load(pair.masks)
    n_zero_modes = sum(total.count(name) for name in total if place(name).is_projection)
    for by in BY:
        one = sums[(sums["component"] == "projections") & (sums["by"] == by)]
        assert one["n_zero_modes"].sum() == pytest.approx(n_zero_modes, rel=1e-12)


def planted(folder: Path, marks: dict[str, np.ndarray]) -> Path:
    with MaskWriter(folder / "planted.safetensors", {name: mark.shape for name, mark in marks.items()}, {}) as writer:
        for name, mark in marks.items():
            writer.write(name, np.packbits(mark, bitorder="little"))
    return folder / "planted.safetensors"


def last_tenth(rows: pd.DataFrame, by: str) -> float:
    """Share of all zero modes that are in the last tenth."""
    found = rows[(rows["component"] == "projections") & (rows["by"] == by)]
    return float(found["n_zero_modes"].iloc[-1] / found["n_zero_modes"].sum())


def test_planted_zero_modes_are_found_where_they_are(pair: WandaPair, tmp_path: Path) -> None:
    """In the highest tenth by the slow norms: of each row's scores, of its sizes, and of the inputs."""
    norms, marks = pair.slow_norms(), {}
    for by in BY:
        for name, tensor in pair.tensors().items():
            weights = np.abs(tensor.float().numpy().astype(np.float64))
            weights += np.random.default_rng(0).random(weights.shape) * 1e-9  # equal sizes: one of them is chosen
            score = {"wanda": weights * norms[name], "magnitude": weights, "activation": 0 * weights + norms[name]}[by]
            edge = np.sort(score, axis=1)[:, [score.shape[1] * 9 // 10]]
            marks[name] = score >= edge
        rows = pair.run(masks=planted(tmp_path, marks)).tables["zero_modes_wanda"]
        share = {other: last_tenth(rows, other) for other in BY}
        # bfloat16 has equal weights, and heads that share their values have inputs of equal norm: at an edge they share
        assert share[by] > (0.99 if by == "activation" else 0.97)
        assert all(share[other] < 0.9 for other in BY if other != by)


def test_a_single_loud_input(pair: WandaPair, tmp_path: Path) -> None:
    """One coordinate of the norm before attention is a hundred times as loud: its column leads the rankings of q."""
    tensors = load_file(pair.tuned / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"][5] = 100.0
    loud = tmp_path / "loud"
    loud.mkdir()
    for file in pair.tuned.iterdir():
        (loud / file.name).write_bytes(file.read_bytes())
    save_file(tensors, loud / "model.safetensors", metadata={"format": "pt"})
    name = "model.layers.1.self_attn.q_proj.weight"
    mark = np.zeros(tuple(tensors[name].shape), dtype=bool)
    mark[:, 5] = True
    outcome = pair.run(model=loud, masks=planted(tmp_path, {name: mark}), out=tmp_path / "run")
    assert norms_in(tmp_path / "run")[name].argmax() == 5
    rows = outcome.tables["zero_modes_wanda"]
    assert (last_tenth(rows, "activation"), last_tenth(rows, "magnitude") < 0.5) == (1, True)
    assert last_tenth(rows, "wanda") > 0.8


def assert_same_tables(a: lesion.Outcome, b: lesion.Outcome) -> None:
    assert a.tables.keys() == b.tables.keys() == {"zero_modes_wanda", "zero_modes_wanda_neurons"}
    for name, table in a.tables.items():
        pd.testing.assert_frame_equal(table, b.tables[name], check_exact=True)


@pytest.mark.parametrize("how", [
    {"loading": lesion.Loading(stream=True)},
    {"executor": "local"},
], ids=["streamed", "another process"])  # fmt: skip
def test_other_ways_to_run_give_the_same_bits(pair: WandaPair, how: dict[str, object], tmp_path: Path) -> None:
    plain, other = pair.run(out=tmp_path / "plain"), pair.run(**how, out=tmp_path / "other")
    assert_same_tables(plain, other)
    ours, theirs = norms_in(tmp_path / "plain"), norms_in(tmp_path / "other")
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    streamed = json.loads((tmp_path / "other" / "run.json").read_text())["weights"]["streamed"]
    assert streamed == ("loading" in how)


def test_the_batch_size_changes_rounding_at_most(pair: WandaPair, tmp_path: Path) -> None:
    pair.run(out=tmp_path / "one", batch_size=1)
    pair.run(out=tmp_path / "many", batch_size=5)
    ours, theirs = norms_in(tmp_path / "one"), norms_in(tmp_path / "many")
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)
    pair.run(out=tmp_path / "less", reading=lesion.Reading(tokens=100, context=32))
    assert all((norms_in(tmp_path / "less")[name] < 0.9 * ours[name]).all() for name in ours)


def test_an_interrupted_run_goes_on_to_the_same_tables(
    pair: WandaPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesion.engine.plan.SHARD_OPERATIONS", {"cpu": 1})
    whole = pair.run(batch_size=2)

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    ran: list[list[int]] = []
    run_batch = MemoryRunner._work
    monkeypatch.setattr(MemoryRunner, "_work", lambda self, batch: (ran.append(batch), run_batch(self, batch))[1])
    counts = []
    for options in ({"progress": stop}, {"on_weights": stop}, {}):
        ran.clear()
        again = {"batch_size": 2, "out": tmp_path / "run", "resume": bool(counts), **options}
        if options:
            with pytest.raises(KeyboardInterrupt):
                pair.run(**again)
            assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "partial"
        else:
            assert_same_tables(pair.run(**again), whole)
        counts.append(len(ran))
    assert counts[0] > 1
    assert counts[1] > 1
    assert counts[2] == 0  # all activations had been seen; only the ranking was done again
    assert not (tmp_path / "run" / "shards").exists()


def test_a_run_folder(pair: WandaPair, tmp_path: Path) -> None:
    first = pair.run(out=tmp_path, name_folder=True, command="lesion zero-modes wanda …")
    assert first.path is not None
    assert first.path.name.startswith("zero-modes-wanda-tuned-")
    manifest = json.loads((first.path / "run.json").read_text())
    assert (manifest["study"], manifest["status"]) == ("zero-modes wanda", "complete")
    assert manifest["masks"]["path"] == str(pair.masks)
    assert manifest["counts"]["n_tokens_seen"] == manifest["counts"]["n_tokens"] > 300
    assert manifest["counts"]["n_tensors"] == 21
    again = pair.run(out=tmp_path, name_folder=True)
    assert (again.resumed_complete, again.path) == (True, first.path)
    for name, table in first.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table, check_dtype=False)
    inverted = tmp_path / "inverted.safetensors"
    (~lesion.Masks.load(pair.masks)).save(inverted)
    with pytest.raises(RunFolderError, match=r"another run.*masks"):
        pair.run(out=first.path, masks=inverted)
    other = pair.run(out=tmp_path, name_folder=True, masks=inverted)
    assert other.path != first.path
    assert any("the masks are not a pair's zero modes but not (" in line for line in other.warnings)


def test_what_a_reader_must_know_is_said(pair: WandaPair, tmp_path: Path) -> None:
    assert pair.run().warnings == []
    assert pair.run(model=pair.base).warnings == [
        f"{pair.base} is not the tuned checkpoint that the masks were made with"
    ]
    lesion.zero_modes.diff(str(pair.base), str(pair.tuned), out=tmp_path / "whole", verify=True, look=["none"])
    assert pair.run(masks=tmp_path / "whole").warnings == []
    single = save_model("llama", tmp_path / "single", dtype=torch.float32)
    other = moved(single, tmp_path / "other")
    options = lesion.checkpoints.compare.Options(cast="bf16")
    lesion.zero_modes.diff(str(single), str(other), out=tmp_path / "cast", options=options, look=["none"])
    assert any("rounded to bf16 first" in line for line in pair.run(model=other, masks=tmp_path / "cast").warnings)


def test_a_prefix_on_one_side(tmp_path: Path) -> None:
    """OpenAI's GPT-2 files lack `transformer.` in front; masks made of one kind fit the other."""
    pair = WandaPair("gpt2", tmp_path, write_text(tmp_path / "text.jsonl"))
    expected = pair.run()
    short = tmp_path / "short"
    short.mkdir()
    for file in pair.tuned.iterdir():
        (short / file.name).write_bytes(file.read_bytes())
    tensors = {
        name.removeprefix("transformer."): value for name, value in load_file(short / "model.safetensors").items()
    }
    assert "h.0.attn.c_attn.weight" in tensors
    save_file(tensors, short / "model.safetensors", metadata={"format": "pt"})
    found = pair.run(model=short)
    assert_same_tables(found, expected)
    assert found.tables["zero_modes_wanda"]["tensor"].iloc[0] == "transformer.h.0.attn.c_attn.weight"
    lesion.zero_modes.diff(str(pair.base), str(short), out=tmp_path / "of short", look=["none"])
    turned = pair.run(masks=tmp_path / "of short").tables["zero_modes_wanda"]
    assert turned["tensor"].iloc[0] == "h.0.attn.c_attn.weight"
    assert turned["n_zero_modes"].tolist() == expected.tables["zero_modes_wanda"]["n_zero_modes"].tolist()


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_are_left_out_by_name(name: str, tmp_path: Path) -> None:
    pair = WandaPair(name, tmp_path, write_text(tmp_path / "text.jsonl"))
    outcome = pair.run()
    assert any("projections of experts are in no number" in line and "experts.0." in line for line in outcome.warnings)
    rows = outcome.tables["zero_modes_wanda"]
    assert set(rows["component"]) == {"q", "k", "v", "o", "projections"}
    assert len(rows[rows["tensor"].notna()]) == 3 * 4 * 30
    assert outcome.tables["zero_modes_wanda_neurons"].empty
    masks = lesion.Masks.load(pair.masks)
    spread = {key: masks[key].numpy() for key in masks if ".experts." in key and place(key).is_projection}
    assert spread
    with pytest.raises(ModelError, match="all projections that the masks are of belong to experts"):
        pair.run(masks=planted(tmp_path, spread))


def test_what_does_not_fit_is_refused(pair: WandaPair, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(InputError, match="no masks of projection matrices"):
        pair.run(masks=planted(tmp_path, {"model.norm.weight": np.zeros(32, dtype=bool)}))
    wrong = {name: np.zeros((32, 80), dtype=bool)}
    with pytest.raises(ModelError, match=rf"{name} is \(32, 80\) in the masks, and \(80, 32\) in"):
        pair.run(masks=planted(tmp_path, wrong))
    more = {name: np.zeros((80, 32), dtype=bool), "model.layers.7.mlp.up_proj.weight": np.zeros((80, 32), dtype=bool)}
    with pytest.raises(ModelError, match=r"has no counterpart of 1 of the 2 masks: model.layers.7"):
        pair.run(masks=planted(tmp_path, more))
    other = save_model("gpt2", tmp_path / "gpt2")
    with pytest.raises(ModelError, match="has no counterpart of 21 of the 21 masks"):
        pair.run(model=other)
    with pytest.raises(InputError, match="there are no masks at"):
        pair.run(masks=tmp_path / "nothing")
    with pytest.raises(InputError, match="--executor"):
        pair.run(executor="somewhere")


def test_a_mask_between_bytes(pair: WandaPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few rows, whose first bit is not the first of a byte, count what whole matrices count."""
    whole = pair.run()
    for piece in (1, 97, 32 * 7):
        monkeypatch.setattr("lesion.studies.zero_modes.wanda_results.PIECE", piece)
        again = pair.run()
        for column in ("n_weights", "n_zero_modes"):
            np.testing.assert_allclose(
                again.tables["zero_modes_wanda"][column], whole.tables["zero_modes_wanda"][column], rtol=1e-12
            )
    odd = {"model.layers.0.mlp.down_proj.weight": np.zeros((32, 80), dtype=bool)}
    odd["model.layers.0.mlp.down_proj.weight"][3, 7] = True
    neurons = pair.run(masks=planted(tmp_path, odd)).tables["zero_modes_wanda_neurons"]
    assert neurons[neurons["n_zero_modes"] > 0]["neuron"].tolist() == [7]
    assert slow(np.ones((1, 10)), np.ones((1, 10), dtype=bool)) == [Fraction(1)] * 10
