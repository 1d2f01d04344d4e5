"""`lesion.copying` against plain transformers on whole prompts, one at a time, and against a model made by hand."""

import math
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor, nn

import lesion
from lesion.anatomy import dissect
from lesion.data.copy_tasks import CopyTask, Drawing, draw_probes, draw_task
from lesion.errors import InputError, InterventionError, ModelError, NonFiniteError, RunFolderError
from lesion.interventions import combine
from lesion.interventions.hooks import hooked
from lesion.results import RunView
from lesion.studies.copying import Looking, Sets, copying, measuring, read_heads, running, scoring
from lesion.studies.copying.measuring import Streams
from lesion.studies.copying.tables import paired_change, paired_mean, share
from tests import induction
from tests.conftest import SENTENCES
from tests.data.test_copy_tasks import byte_level
from tests.support import TINY, save_tiny_folder, tiny_model

FAMILIES = [
    *("llama", "gpt2", "gpt_neox", "gpt_neox-sequential", "gemma2", "gemma3", "qwen2", "qwen3-window"),
    *("opt-350m", "falcon-40b", "bloom", "gptj"),
]
IDS = 400
POSITIONS = 128
LONGEST = {"gpt2": "n_positions", "gptj": "n_positions", "bloom": "seq_length"}
LAYERS, HEADS = 3, 4
N = 6


def tiny(name: str) -> nn.Module:
    """Large enough for a tokenizer with merges, and long enough for the integers."""
    return tiny_model(name, vocab_size=IDS, **{LONGEST.get(name, "max_position_embeddings"): POSITIONS})


def tasks(drawing: Drawing) -> list[CopyTask]:
    return [
        draw_task(name, byte_level(IDS), drawing, n_ids=IDS, n_positions=POSITIONS) for name in ("integers", "tokens")
    ]


def run(model: nn.Module, **options: Any) -> lesion.Outcome:
    return copying(model, **{"tokenizer": byte_level(IDS), "drawing": Drawing(N), **options})


class Slow:
    """Plain transformers with hooks of torch's own: a prompt at a time, cut where it is cut, in eager attention."""

    def __init__(self, name: str) -> None:
        self.name, self.model = name, tiny(name)
        self.model.config._attn_implementation = "eager"  # type: ignore[union-attr]
        self.parts: dict[str, Tensor] = {}
        paths = {
            "llama": ("model.layers.{}", "self_attn", "model.norm"),
            "gpt2": ("transformer.h.{}", "attn", "transformer.ln_f"),
            "gpt_neox": ("gpt_neox.layers.{}", "attention", "gpt_neox.final_layer_norm"),
            "opt-350m": ("model.decoder.layers.{}", "self_attn", None),
            "falcon-40b": ("transformer.h.{}", "self_attention", "transformer.ln_f"),
            "bloom": ("transformer.h.{}", "self_attention.dense", "transformer.ln_f"),
            "gptj": ("transformer.h.{}", "attn", "transformer.ln_f"),
            "gemma": ("model.layers.{}", "post_attention_layernorm", "model.norm"),
        }
        kind = "gemma" if "gemma" in name else name.removesuffix("-sequential")
        self.block, attention, self.norm = paths.get(kind, paths["llama"])
        for layer in range(LAYERS):
            block = self.model.get_submodule(self.block.format(layer))
            block.register_forward_pre_hook(self.keep(f"in{layer}"), with_kwargs=True)
            block.register_forward_hook(self.keep_output(f"out{layer}"))
            block.get_submodule(attention).register_forward_hook(self.keep_output(f"attention{layer}"))
            if name == "opt-350m":
                block.get_submodule("self_attn_layer_norm").register_forward_hook(self.keep_output(f"normed{layer}"))

    def keep(self, key: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self.parts[key] = given[0] if given else keywords["hidden_states"]

        return hook

    def keep_output(self, key: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            self.parts[key] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    def head(self, stream: Tensor) -> Tensor:
        """The logit lens, by hand."""
        model: Any = self.model
        if self.norm is not None:
            stream = model.get_submodule(self.norm)(stream)
        if self.name == "opt-350m":
            stream = model.model.decoder.project_out(stream)
        logits = model.lm_head(stream)
        cap = getattr(model.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    @torch.inference_mode()
    def prompt(self, ids: np.ndarray) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Logits at the end of a prompt, at every depth, and its attention."""
        own = self.model(input_ids=torch.from_numpy(ids)[None], use_cache=False, output_attentions=True)
        streams = [self.parts["in0"]]
        for layer in range(LAYERS):
            after = self.parts[f"in{layer}"] + self.parts[f"attention{layer}"]
            streams += [self.parts.get(f"normed{layer}", after), self.parts[f"out{layer}"]]
        logits = [self.head(stream[0, -1]) for stream in streams]
        torch.testing.assert_close(logits[-1], own.logits[0, -1], rtol=1e-5, atol=1e-5)
        return logits, own.attentions


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_depths_and_attention_are_those_of_prompts_read_alone(family: str) -> None:
    outcome, slow = run(tiny(family), looking=Looking("all")), Slow(family)
    depths, attention = outcome.tables["copying_depths"], outcome.tables["copying_attention"]
    for task in tasks(Drawing(N)):
        right, loss, paid = [], [], []
        for ids, cut, answer in zip(task.ids, task.cuts, task.answers, strict=True):
            logits, probabilities = slow.prompt(ids[:cut])
            right.append([float(row.argmax() == answer) for row in logits])
            loss.append([float(row.logsumexp(0) - row[answer]) for row in logits])
            earlier = torch.from_numpy(ids[: cut - 1] == answer)
            assert earlier.any()
            paid.append(torch.stack([layer[0, :, -1, : cut - 1][:, earlier].sum(-1) for layer in probabilities]))
        found = depths[depths["task"] == task.name]
        assert found["depth"].tolist() == list(range(2 * LAYERS + 1))
        np.testing.assert_allclose(found["accuracy"], np.mean(right, axis=0), rtol=0, atol=1e-12)
        # float32 on a prompt alone and on several whole strings: sums in another order, of logits of up to 50
        np.testing.assert_allclose(found["loss_nats"], np.mean(loss, axis=0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["loss_nats_sem"], stats.sem(loss, axis=0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found["probability"], np.exp(-np.array(loss)).mean(0), rtol=1e-3, atol=1e-5)
        own = attention[attention["task"] == task.name]
        values = torch.stack(paid).double().flatten(1).numpy()
        np.testing.assert_allclose(own["attention"], values.mean(0), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(own["attention_sd"], values.std(0, ddof=1), rtol=1e-3, atol=1e-5)
        assert values.mean(0).std() > 0.003  # heads differ


def test_scores_of_heads_are_those_of_eager_attention(family: str) -> None:
    slow = Slow(family)
    heads = run(tiny(family), tasks=["tokens"]).tables["heads"].set_index(["layer", "head"])
    probes = draw_probes(byte_level(IDS), Drawing(N), n_ids=IDS, n_positions=POSITIONS)
    expected: dict[str, list[np.ndarray]] = {name: [] for name in ("induction", "duplicate_token", "previous_token")}
    expected |= {f"{name}_null": [] for name in ("induction", "duplicate_token")}
    for suffix, sequences in (("", probes.repeated), ("_null", probes.distinct)):
        for ids in sequences:
            maps = torch.stack([layer[0] for layer in slow.prompt(ids)[1]]).double().numpy()
            rows = [11 + item for item in range(10)]
            expected[f"induction{suffix}"].append(np.mean([maps[:, :, row, row - 9] for row in rows], axis=0))
            expected[f"duplicate_token{suffix}"].append(np.mean([maps[:, :, row, row - 10] for row in rows], axis=0))
            if not suffix:
                expected["previous_token"].append(np.mean([maps[:, :, row, row - 1] for row in range(1, 21)], axis=0))
    for name, values in expected.items():
        np.testing.assert_allclose(heads[name], np.mean(values, axis=0).flatten(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(heads[f"{name}_sem"], stats.sem(values, axis=0).flatten(), rtol=1e-3, atol=1e-5)


def test_maps_are_means_of_eager_attention(tmp_path: Path) -> None:
    run(
        tiny("llama"), tasks=["tokens"], edits=["drop-mlp:0"], looking=Looking(((1, 2),), maps=True), out=tmp_path / "r"
    )
    slow = Slow("llama")
    (task,) = [task for task in tasks(Drawing(N)) if task.name == "tokens"]
    maps = [torch.stack([layer[0] for layer in slow.prompt(task.whole(i))[1]]) for i in range(N)]
    found = RunView.open(tmp_path / "r").arrays("attention_tokens")
    np.testing.assert_allclose(found["none"], torch.stack(maps).mean(0).numpy(), rtol=1e-4, atol=1e-5)
    assert set(found) == {"none", "drop-mlp:0/1:2"}
    assert np.abs(found["drop-mlp:0/1:2"] - found["none"][1, 2]).max() > 0.01
    assert found["drop-mlp:0/1:2"].shape == (31, 31)


def test_batches_change_nothing() -> None:
    one, several = (run(tiny("gpt_neox"), batch_size=size, generate=2).tables for size in (1, None))
    for table, rows in one.items():
        pd.testing.assert_frame_equal(rows, several[table], rtol=1e-4, atol=1e-5)
    other = run(tiny("gpt_neox"), drawing=Drawing(N, seed=1)).tables["copying"]
    assert not np.allclose(one["copying"]["loss_nats"], other["loss_nats"], rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "bloom", "gptj"])
def test_generation_is_that_of_transformers(name: str) -> None:
    model = tiny(name)
    found = run(model, generate=4, looking=Looking("all")).tables["copying_generation"]
    drawn = [
        draw_task(task, byte_level(IDS), Drawing(N, n_steps=4), n_ids=IDS, n_positions=POSITIONS)
        for task in ("integers", "tokens")
    ]
    for task in drawn:
        right = []
        for ids, cut, wanted in zip(task.ids, task.cuts, task.expected(4), strict=True):
            prompt = torch.from_numpy(ids[:cut])[None]
            said = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=4,
                min_new_tokens=4,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0, cut:]  # type: ignore[operator]
            right.append(said.numpy() == wanted)
        own = found[(found["task"] == task.name) & (found["layer"] == 0) & (found["head"] == 0)]
        assert own["step"].tolist() == [1, 2, 3, 4]
        assert own["accuracy"].tolist() == np.mean(right, axis=0).tolist()
    first = found[found["step"] == 1].reset_index(drop=True)
    attention = run(model, looking=Looking("all")).tables["copying_attention"]
    np.testing.assert_allclose(first["attention"], attention["attention"], rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------- the model made by hand


@pytest.fixture(scope="module")
def made() -> lesion.Outcome:
    return by_hand(edits=["drop-attn:0", "drop-attn:1", "drop-mlp:1", "drop:0"], generate=12)


def by_hand(**options: Any) -> lesion.Outcome:
    given = {"tasks": ["tokens"], "drawing": Drawing(40), "tokenizer": induction.tokenizer(), **options}
    return copying(induction.model(), **given)


def test_the_induction_head_is_found_and_the_decoy_is_not(made: lesion.Outcome) -> None:
    heads = made.tables["heads"].set_index(["layer", "head"])
    assert heads[heads["is_induction"]].index.tolist() == [induction.INDUCTION]
    # a match adds at least 30 to a score: attention elsewhere is below 21 e^-30 of it
    assert heads.loc[induction.INDUCTION, "induction"] == pytest.approx(1.0, abs=1e-6)
    assert heads.loc[induction.INDUCTION, "induction_null"] < 0.1
    assert heads.loc[induction.DECOY, "induction"] == pytest.approx(1.0, abs=1e-6)
    assert heads.loc[induction.DECOY, "induction_null"] == pytest.approx(1.0, abs=1e-6)
    assert heads.loc[induction.PREVIOUS, "previous_token"] == pytest.approx(1.0, abs=1e-6)
    assert heads.loc[induction.INDUCTION, "previous_token"] < 0.2
    uniform = np.mean([1 / (row + 1) for row in range(11, 21)])
    assert heads.loc[(0, 1), "duplicate_token"] == pytest.approx(uniform, abs=1e-6)
    assert heads.loc[induction.INDUCTION, "attention_tokens"] == pytest.approx(1.0, abs=1e-6)
    assert heads.loc[induction.PREVIOUS, "attention_tokens"] < 0.01


def test_it_copies_and_its_ablated_versions_do_not(made: lesion.Outcome) -> None:
    rows = made.tables["copying"].set_index("condition")
    assert rows.loc["none", "accuracy"] == 1.0
    assert rows.loc["drop-mlp:1", "accuracy"] == 1.0  # MLPs are zero
    assert (rows.loc[["drop-attn:0", "drop-attn:1", "drop:0"], "accuracy"] < 0.2).all()
    assert rows.loc["drop-attn:1", "accuracy"] == 0.0  # nothing is said: the BOS has the first of equal logits
    assert rows.loc["drop-attn:1", "accuracy_change"] == -1.0
    assert rows.loc["drop-mlp:1", "accuracy_change"] == 0.0
    assert rows.loc["drop-mlp:1", "loss_change_nats"] == 0.0


def test_it_copies_from_the_second_attention_on(made: lesion.Outcome) -> None:
    depths = made.tables["copying_depths"].set_index(["condition", "depth"])["accuracy"]
    assert depths.loc["none"].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]
    assert depths.loc["drop-attn:1"].tolist() == [0.0] * 5


def test_it_goes_on_copying(made: lesion.Outcome) -> None:
    steps = made.tables["copying_generation"].set_index(["condition", "step"])
    assert steps.loc["none", "accuracy"].tolist() == [1.0] * 12
    assert steps.loc["none", "attention"].to_numpy() == pytest.approx(1.0, abs=1e-6)
    assert (steps.loc["drop-attn:0", "accuracy"] < 0.3).all()
    assert (steps.loc["drop-attn:0", "attention"] < 0.3).all()


def test_attention_of_a_dropped_block_is_not_known(made: lesion.Outcome) -> None:
    gone = by_hand(edits=["drop:1"]).tables["copying_attention"].set_index("condition")
    assert np.isnan(gone.loc["drop:1", "attention"])
    assert gone.loc["drop:1", "n_examples"] == 0
    kept = made.tables["copying_attention"].set_index("condition")
    assert kept.loc["drop:0", "attention"] < 0.3
    assert kept.loc["drop:0", "attention_change"] == pytest.approx(kept.loc["drop:0", "attention"] - 1.0, abs=1e-6)


def test_a_base_edit_is_in_every_condition() -> None:
    outcome = by_hand(base=["drop-attn:0"], edits=["drop-mlp:0"])
    assert not outcome.tables["heads"]["is_induction"].any()
    assert (outcome.tables["copying"]["accuracy"] < 0.2).all()
    assert outcome.tables["copying"]["condition"].tolist() == ["none", "drop-mlp:0"]


def test_threshold() -> None:
    model = induction.model()
    with torch.no_grad():  # shared between the match and everything else
        model.transformer.h[1].attn.c_attn.weight[:, : 2 * induction.WIDTH] *= 0.02
    options: dict[str, Any] = {"tasks": ["tokens"], "drawing": Drawing(20), "tokenizer": induction.tokenizer()}
    score = copying(model, **options).tables["heads"].set_index(["layer", "head"]).loc[induction.INDUCTION, "induction"]
    assert 0.1 < score < 0.95
    for threshold, expected in ((score - 0.01, 1), (score + 0.01, 0)):
        heads = copying(model, **options, looking=Looking(threshold=float(threshold))).tables["heads"]
        assert heads["is_induction"].sum() == expected
        assert (
            len(copying(model, **options, looking=Looking(threshold=float(threshold))).tables["copying_attention"]) == 1
        )


# --------------------------------------------------------------------------- masks of weights


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model made by hand, and masks of a pair in which only the induction head's weights did not move."""
    folder = tmp_path_factory.mktemp("pair")
    tuned, base = induction.save(folder / "tuned"), induction.save(folder / "base")
    tensors = load_file(tuned / "model.safetensors")
    layer, head = induction.INDUCTION
    start, stop = (head * induction.WIDTH // 2, (head + 1) * induction.WIDTH // 2)
    for name, tensor in tensors.items():
        kept = tensor.clone()
        tensor += 1.0
        if name.endswith(f"h.{layer}.attn.c_attn.weight"):
            for part in range(3):
                columns = slice(part * induction.WIDTH + start, part * induction.WIDTH + stop)
                tensor[:, columns] = kept[:, columns]
        if name.endswith(f"h.{layer}.attn.c_proj.weight"):
            tensor[start:stop] = kept[start:stop]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    lesion.zero_modes.diff(str(base), str(tuned), out=folder / "masks", look=["none"])
    return tuned, folder / "masks"


def test_zero_modes_of_a_head(pair: tuple[Path, Path]) -> None:
    sets = Sets(str(pair[1]), ("zero_modes", "random", "keep_only"), ("head:1:1", "head:1:0", "layer:1"), (0, 1))
    outcome = copying(pair[0], tasks=["tokens"], drawing=Drawing(20), sets=sets)
    rows = outcome.tables["copying"].set_index("condition")
    assert rows.index.tolist() == [
        "none",
        *("zero_modes@head:1:1", "random@head:1:1#0", "random@head:1:1#1"),
        "keep_only@head:1:0",
        *("zero_modes@layer:1", "random@layer:1#0", "random@layer:1#1", "keep_only@layer:1"),
    ]
    empty = ("keep_only@head:1:1", "zero_modes@head:1:0", "random@head:1:0#0", "random@head:1:0#1")
    assert outcome.warnings[:4] == [
        f"{name}: there are no such weights in blocks that run; it was left out" for name in empty
    ]
    assert rows.loc["zero_modes@head:1:1", "accuracy"] == 0.0
    assert rows.loc["zero_modes@layer:1", "accuracy"] == 0.0
    assert rows.loc["keep_only@head:1:0", "accuracy"] == 1.0  # the decoy
    assert rows.loc["keep_only@layer:1", "accuracy"] == 1.0  # everything but the induction head
    assert rows.loc["random@head:1:1#0", ["kind", "scope", "seed"]].tolist() == ["random", "head:1:1", 0]


def test_edits_of_the_grammar_are_conditions_too(pair: tuple[Path, Path]) -> None:
    asked: dict[str, Any] = {"tasks": ["tokens"], "drawing": Drawing(20)}
    sets = Sets(str(pair[1]), ("zero_modes",), ("head:1:1",))
    rows = copying(pair[0], **asked, sets=sets).tables["copying"].set_index("condition")
    edit = f"zero-modes:{pair[1]}@head:1:1"
    for own in (edit, lesion.parse(edit)):
        found = copying(pair[0], **asked, edits=[own]).tables["copying"].set_index("condition")
        assert found.index.tolist() == ["none", "zero-modes:masks@head:1:1"]
        assert found.iloc[1]["loss_nats"] == rows.iloc[1]["loss_nats"]
        assert found.iloc[1]["kind"] == rows.iloc[1]["kind"] == "zero_modes"
    based = copying(pair[0], **asked, base=[edit]).tables["copying"]
    assert based["loss_nats"].tolist() == [rows.iloc[1]["loss_nats"]]
    with pytest.raises(InterventionError, match="no weights at all, so it would do nothing"):
        copying(pair[0], **asked, edits=[f"zero-modes:{pair[1]}@head:1:0"])


def test_scopes_of_a_kind_are_expanded_and_unknown_ones_refused(pair: tuple[Path, Path]) -> None:
    sets = Sets(str(pair[1]), ("keep_only",), ("layers",))
    rows = copying(pair[0], tasks=["tokens"], drawing=Drawing(4), sets=sets, looking=Looking("none")).tables["copying"]
    assert rows["condition"].tolist() == ["none", "keep_only@layer:0", "keep_only@layer:1"]
    for scope, says in (("layer:7", "there is no layer 7"), ("head:1:9", "there is no head 9"), ("corner", "no scope")):
        with pytest.raises(InterventionError, match=says):
            copying(pair[0], tasks=["tokens"], drawing=Drawing(4), sets=Sets(str(pair[1]), ("zero_modes",), (scope,)))


def test_masks_are_part_of_a_runs_identity(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(pair[1], tmp_path / "masks")
    sets = Sets(str(tmp_path / "masks"), ("zero_modes",))
    asked: dict[str, Any] = {"tasks": ["tokens"], "drawing": Drawing(4), "sets": sets, "out": tmp_path / "run"}
    copying(pair[0], **asked)
    assert copying(pair[0], **asked).resumed_complete
    shutil.rmtree(tmp_path / "masks")
    lesion.zero_modes.diff(str(pair[0]), str(pair[0].parent / "base"), out=tmp_path / "masks", look=["none"])
    with pytest.raises(RunFolderError, match="belongs to another run"):
        copying(pair[0], **asked)


# --------------------------------------------------------------------------- statistics


def test_intervals() -> None:
    found = share(np.array([1.0] * 8 + [0.0] * 2))
    z, p, n = stats.norm.ppf(0.975), 0.8, 10
    middle, wide = (p + z**2 / 20) / (1 + z**2 / n), z * math.sqrt(p * 0.2 / n + z**2 / 400) / (1 + z**2 / n)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, middle - wide, middle + wide), rel=1e-9)
    assert found.sem == pytest.approx(stats.sem([1] * 8 + [0] * 2), rel=1e-12)
    assert np.isnan(share(np.array([1.0, np.nan]))).all()
    assert share(np.ones(500)).low < 1.0


def test_paired_changes() -> None:
    before, after = np.array([1.0, 1, 1, 1, 0, 0, 0, 0, 0, 0]), np.array([0.0, 0, 0, 1, 1, 0, 0, 0, 0, 0])
    found = paired_change(after, before)
    assert found.value == pytest.approx(-0.2, rel=1e-12)
    assert found.sem == pytest.approx(stats.sem(after - before), rel=1e-12)
    gained, lost, n = 1.5, 3.5, 12.0  # half an example more in each of the four cells
    wide = stats.norm.ppf(0.975) * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    assert (found.low, found.high) == pytest.approx((-2 / 12 - wide, -2 / 12 + wide), rel=1e-9)
    same = paired_change(before, before)
    assert same.value == 0.0
    assert same.low < 0.0 < same.high
    assert np.isnan(paired_change(np.array([np.nan, 1.0]), np.zeros(2))).all()


def test_the_paired_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw, held = np.random.default_rng(0), 0
    for _ in range(2000):
        before = (draw.random(60) < 0.9).astype(float)
        after = np.where(draw.random(60) < 0.15, 1 - before, before)
        interval = paired_change(after, before)
        held += interval.low <= 0.15 * (0.1 - 0.9) <= interval.high
    assert 0.93 < held / 2000 < 0.985


def test_paired_means() -> None:
    draw = np.random.default_rng(1)
    before, after = draw.normal(size=30), draw.normal(1.0, 2.0, size=30)
    found, expected = paired_mean(after, before), stats.ttest_rel(after, before).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.value == pytest.approx((after - before).mean(), rel=1e-12)


# --------------------------------------------------------------------------- edits of the order of blocks


def test_a_dropped_block_adds_nothing_and_a_swap_has_no_depths_inside() -> None:
    model = tiny("llama")
    outcome = run(model, edits=["drop:1", "swap:0"], looking=Looking("none"))
    depths = outcome.tables["copying_depths"]
    tokens = depths[depths["task"] == "tokens"].set_index(["condition", "depth"])["loss_nats"]
    assert tokens["drop:1", 3] == tokens["drop:1", 4] == tokens["drop:1", 2] == tokens["none", 2]
    assert tokens["none", 3] != tokens["none", 2]
    assert tokens["swap:0"].isna().tolist() == [False, True, True, True, False, False, False]
    assert "swap:0: between blocks that changed places there are no depths; they are NaN" in outcome.warnings
    (task,) = [task for task in tasks(Drawing(N)) if task.name == "tokens"]
    for name, edit in (("drop:1", lesion.drop(1)), ("swap:0", lesion.swap(0))):
        losses = []
        with torch.inference_mode(), edit.on(model):
            for ids, cut, answer in zip(task.ids, task.cuts, task.answers, strict=True):
                logits = model(input_ids=torch.from_numpy(ids[:cut])[None], use_cache=False).logits[0, -1]
                losses.append(float(logits.logsumexp(0) - logits[answer]))
        assert tokens[name, 6] == pytest.approx(np.mean(losses), rel=1e-4)


def test_moved_blocks_in_every_way() -> None:
    """Depths are where the stream is: at each of them the table agrees with blocks that are called one by one."""
    model = tiny("llama")
    anatomy = dissect(model)
    edits = combine([lesion.swap(0), lesion.swap(1)])
    assert edits.order(3) == (1, 2, 0)
    streams = Streams(anatomy, edits.order(3), torch.tensor([4]))
    with torch.inference_mode(), edits.on(model), hooked(streams.hooks()):
        model(input_ids=torch.arange(5, 10)[None], use_cache=False)
    assert [depth for depth, _ in streams.depths()] == [0, 6]


# --------------------------------------------------------------------------- runs


def test_no_attention_is_computed_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **keywords: object) -> None:
        raise AssertionError("attention was recorded")

    monkeypatch.setattr(measuring, "recording", never)
    monkeypatch.setattr(scoring, "recording", never)
    tables = run(tiny("llama"), looking=Looking("none"), edits=["drop:1"]).tables
    assert set(tables) == {"copying", "copying_depths"}
    with pytest.raises(AssertionError, match="recorded"):
        run(tiny("llama"))


def test_a_run_folder_and_the_same_call_again(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_tiny_folder(folder, SENTENCES)
    asked: dict[str, Any] = {"tasks": ["tokens"], "drawing": Drawing(N), "edits": ["drop:1"]}
    first = copying(folder, **asked, out=tmp_path / "run")
    assert first.path == tmp_path / "run"
    again = copying(folder, **asked, out=tmp_path / "run")
    assert again.resumed_complete
    for name, table in first.tables.items():
        pd.testing.assert_frame_equal(table, again.tables[name], check_dtype=False)
    with pytest.raises(RunFolderError, match="belongs to another run"):
        copying(folder, **{**asked, "drawing": Drawing(N, seed=1)}, out=tmp_path / "run")
    with pytest.raises(RunFolderError, match="there is no run"):
        copying(folder, **asked, out=tmp_path / "other", resume=True)
    in_memory = copying(folder, **asked)
    for name, table in first.tables.items():
        pd.testing.assert_frame_equal(table, in_memory.tables[name])


def test_streamed_blocks_give_the_same_bits(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_tiny_folder(folder, SENTENCES)
    asked: dict[str, Any] = {"tasks": ["tokens"], "drawing": Drawing(N), "edits": ["drop:1", "swap:0"]}
    here = copying(folder, **asked)
    streamed = copying(folder, **asked, loading=lesion.Loading(stream=True))
    for name, table in here.tables.items():
        pd.testing.assert_frame_equal(table, streamed.tables[name], check_exact=True)
    sets = Sets(str(tmp_path), ("zero_modes",))
    with pytest.raises(InputError, match="there are no masks"):
        copying(folder, **asked, sets=sets, loading=lesion.Loading(stream=True))


def killed_at(n_conditions: int, folder: Path, out: Path, asked: dict[str, Any]) -> None:
    """Starts the run in a process of its own, and kills it once so many shards are kept."""
    child = os.fork()
    if child == 0:
        keep = running.Run._keep

        def slow(self: Any, index: int, arrays: dict[str, np.ndarray]) -> None:
            keep(self, index, arrays)
            if index + 1 == n_conditions:
                time.sleep(60)

        running.Run._keep = slow  # type: ignore[method-assign]
        try:
            copying(folder, **asked, out=out)
        finally:
            os._exit(0)
    for _ in range(600):
        if len(list(out.glob("shards/*.safetensors"))) >= n_conditions:
            break
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of fork beside threads, in Python 3.12
@pytest.mark.parametrize("n_kept", [1, 3])
def test_a_killed_run_goes_on(n_kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    save_tiny_folder(folder, SENTENCES)
    asked: dict[str, Any] = {
        "tasks": ["tokens"],
        "drawing": Drawing(N),
        "edits": ["drop:1", "drop-attn:0"],
        "generate": 2,
    }
    copying(folder, **asked, out=tmp_path / "whole")
    killed_at(n_kept, folder, tmp_path / "killed", asked)
    assert len(list((tmp_path / "killed" / "shards").glob("*.safetensors"))) == n_kept
    made: list[int] = []
    condition = running.Run._task
    monkeypatch.setattr(
        running.Run, "_task", lambda self, number, *rest: made.append(number) or condition(self, number, *rest)
    )
    copying(folder, **asked, out=tmp_path / "killed")
    assert made == [0, 1, 2][n_kept - 1 :]
    for path in sorted((tmp_path / "whole" / "tables").iterdir()):
        assert path.read_bytes() == (tmp_path / "killed" / "tables" / path.name).read_bytes()
    assert not (tmp_path / "killed" / "shards").exists()


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    run(tiny("llama"), generate=2, edits=["drop:0"], progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("options", "says"), [
    ({"tasks": ["verbs"]}, "--tasks 'verbs'"),
    ({"tasks": []}, "--tasks ''"),
    ({"tasks": ["tokens", "tokens"]}, "each once"),
    ({"generate": -1}, "--generate -1"),
    ({"edits": ["drop:9"]}, "the model has blocks 0 to 2, not 9"),
    ({"edits": ["drop:1", "drop:1"]}, "drop:1 is there twice"),
    ({"base": ["drop:1"], "edits": ["drop-attn:1"]}, "never runs, because another edit drops its block"),
    ({"looking": Looking(((3, 0),))}, "--heads 3:0: the model has layers 0 to 2 with heads 0 to 3"),
    ({"looking": Looking(((0, 0), (0, 0)))}, "each once"),
    ({"looking": Looking("none", maps=True)}, "--maps draws attention"),
    ({"looking": Looking(threshold=0.0)}, "--threshold 0"),
    ({"sets": Sets("nowhere")}, "there are no masks at"),
    ({"sets": Sets("nowhere", kinds=("zeros",))}, "--kinds 'zeros' is not known"),
    ({"sets": Sets("nowhere", seeds=())}, "--seeds ''"),
    ({"sets": Sets("nowhere", seeds=(-1,))}, "--seeds -1 is negative"),
    ({"drawing": Drawing(1)}, "--examples 1"),
])  # fmt: skip
def test_what_means_nothing(options: dict[str, Any], says: str) -> None:
    with pytest.raises((InputError, InterventionError), match=says):
        run(tiny("llama"), **options)


@pytest.mark.parametrize(("name", "says"), [("bert", "predicts masked tokens"), ("vit", "reads images")])
def test_models_of_another_kind(name: str, says: str) -> None:
    with pytest.raises(ModelError, match=f"{says}; copying is measured on models that predict the next token"):
        run(tiny_model(name))


def test_a_model_that_reads_too_little() -> None:
    with pytest.raises(InputError, match="the model reads at most 40"):
        run(tiny_model("gpt2", vocab_size=IDS, n_positions=40))


def test_numbers_that_are_not_finite() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = float("inf")  # type: ignore[union-attr, operator, index]
    with pytest.raises(NonFiniteError, match="not finite"):
        run(model)


@pytest.mark.parametrize(("text", "heads"), [("auto", "auto"), ("none", "none"), ("1:2, 0:3", ((1, 2), (0, 3)))])
def test_heads_are_read(text: str, heads: Sequence[object]) -> None:
    assert read_heads(text) == heads


@pytest.mark.parametrize("text", ["", "1", "1:2:3", "a:b", "1:-2", "1:2,"])
def test_heads_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="--heads"):
        read_heads(text)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_gpu_gives_the_numbers_of_the_cpu(name: str) -> None:
    options: dict[str, Any] = {"edits": ["drop:1"], "generate": 3}
    on_cpu, on_gpu = run(tiny(name), **options).tables, run(tiny(name).to("cuda"), **options).tables
    for table, rows in on_cpu.items():
        pd.testing.assert_frame_equal(on_gpu[table], rows, rtol=1e-3, atol=1e-4)


def test_names_of_families_are_known() -> None:
    assert set(FAMILIES) <= set(TINY)
