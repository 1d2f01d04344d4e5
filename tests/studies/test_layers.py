"""`lesion layers`: the tables against a brute-force oracle, the run folder, and what it refuses."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special

import lesion
from lesion.anatomy import adopt
from lesion.data import load_images, load_text
from lesion.engine.runners import MemoryRunner
from lesion.errors import InputError, InterventionError, RunFolderError
from lesion.interventions import ActivationEdit, Intervention, drop
from lesion.studies.layers import INTERVENTIONS, ask, measure
from tests.oracles.layers import layers_oracle
from tests.support import TINY, Documents, tiny_model, token_documents

KEYS = ["intervention", "layer"]
COLUMNS = {
    "intervention", "layer", "relative_depth", "n_tokens", "loss_nats", "loss_clean_nats", "kl_nats", "agreement",
    "top1", "top1_clean", "entropy_bits", "entropy_clean_bits", "loss_nats_sem", "kl_nats_sem", "agreement_sem",
    "top1_sem", "entropy_bits_sem",
}  # fmt: skip
"""Fixed names: others read them."""


@pytest.mark.parametrize("name", [name for name, (family, _) in TINY.items() if family.objective != "image"])
def test_against_brute_force(name: str) -> None:
    """One document at a time, a whole forward pass an intervention, float64 metrics: every number of the table."""
    network = tiny_model(name)
    model = adopt(network, None)
    masked = model.anatomy.objective == "masked"
    data = Documents(token_documents(97, [40, 40, 33, 35, 12, 40]), objective=model.anatomy.objective, n_domains=2)
    tables = measure(model, data, ask(3, INTERVENTIONS, None, [])).tables
    pairs = [data.inputs(index) for index in range(6)]

    def oracle(chosen: list[int]) -> pd.DataFrame:
        targets = [pairs[index][1] for index in chosen] if masked else None
        ids = [pairs[index][0] for index in chosen]
        return layers_oracle(network, ids, objective=model.anatomy.objective, targets=targets)

    assert_tables_agree(tables["layers"], oracle(list(range(6))))
    by_domain = tables["layers_by_domain"]
    for index, domain in enumerate(data.domains):
        part = by_domain[by_domain["domain"] == domain].drop(columns="domain")
        assert_tables_agree(part, oracle(list(range(index, 6, 2))))
    assert tables["layers"]["kl_nats"].min() > 0.01  # the comparison is about something


@torch.inference_mode()
def test_images_against_brute_force() -> None:
    """A classifier on the embedded digits: the class is the one prediction, an image is a document."""
    network = tiny_model("vit", num_labels=10)
    data = load_images("digits", size=16, channels=1, n_images=40)
    table = measure(adopt(network, None), data, ask(3, INTERVENTIONS, None, [])).tables["layers"]
    batch = data.batch(range(40))
    labels = batch.targets.flatten().numpy()
    clean = special.log_softmax(network(batch.pixels).logits.double().numpy(), -1)
    for row in table[table["intervention"].isin(["drop", "drop_mlp"])].to_dict("records"):
        edited = deepcopy(network)
        block = edited.vit.layers[row["layer"]]
        if row["intervention"] == "drop":
            block.forward = lambda hidden_states, *arguments, **keywords: hidden_states
        else:
            block.mlp.fc2.weight.zero_()
            block.mlp.fc2.bias.zero_()
        other = special.log_softmax(edited(batch.pixels).logits.double().numpy(), -1)
        loss = -other[np.arange(40), labels]
        kl = (np.exp(clean) * (clean - other)).sum(-1)
        assert row["n_tokens"] == row["n_documents"] == 40
        for name, values in {"loss_nats": loss, "kl_nats": kl, "top1": other.argmax(-1) == labels}.items():
            assert row[name] == pytest.approx(values.mean(), rel=1e-5)
            assert row[f"{name}_sem"] == pytest.approx(values.std(ddof=1) / 40**0.5, rel=1e-4)
    assert table["kl_nats"].min() > 0.01


def assert_tables_agree(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    joined = ours.merge(theirs, on=KEYS, suffixes=("", "_oracle"), validate="one_to_one")
    assert len(joined) == len(ours) == len(theirs) == 11
    compared = [column for column in theirs.columns if column not in KEYS]
    assert set(compared) >= COLUMNS - set(KEYS)
    for column in compared:
        # float32 against float64 activations: some 1e-7 on logits of size ten
        np.testing.assert_allclose(joined[column], joined[f"{column}_oracle"], rtol=1e-5, atol=2e-6, err_msg=column)


def test_the_columns_are_the_ones_that_others_read() -> None:
    data = Documents(token_documents(97, [20, 20]))
    tables = measure(adopt(tiny_model("opt"), None), data, ask(3, ["swap"], None, [])).tables
    assert set(tables["layers"].columns) >= COLUMNS
    assert list(tables["layers_by_domain"].columns) == ["domain", *tables["layers"].columns]
    assert tables["layers"]["layer"].tolist() == [0, 1]
    assert tables["layers"]["relative_depth"].tolist() == [0.0, 0.5]


def test_only_what_was_asked() -> None:
    asked = ask(4, ["swap", "drop"], [3, 0], [])
    assert asked.rows == (("swap", 0), ("drop", 0), ("drop", 3))


@pytest.mark.parametrize(("interventions", "layers", "says"), [
    (["drop"], [0, 3], "--layers 0,3: the model has layers 0 to 2"),
    (["drop"], [1, 1], "each once"),
    (["drop"], [], "nothing"),
    (["swap"], [2], "no next layer"),
])  # fmt: skip
def test_what_it_refuses(interventions: list[str], layers: list[int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ask(3, interventions, layers, [])


@pytest.fixture
def setting(tiny_folder: Path, text_file: Path) -> dict[str, object]:
    return {"model": tiny_folder, "data": str(text_file), "reading": lesion.Reading(tokens=600, context=32)}


def test_a_run_folder_says_how_it_was_made(setting: dict[str, object], tmp_path: Path) -> None:
    outcome = lesion.layers(**setting, out=tmp_path / "run", command="lesion layers …")  # type: ignore[arg-type]
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["model"]["fingerprint"]
    assert manifest["data"]["fingerprint"]
    assert manifest["counts"]["n_scored"] == outcome.tables["layers"]["n_tokens"].iloc[0] > 0
    stored = pd.read_parquet(tmp_path / "run" / "tables" / "layers.parquet")
    pd.testing.assert_frame_equal(stored, outcome.tables["layers"])
    assert not (tmp_path / "run" / "shards").exists()


def test_the_same_call_again_is_complete_and_another_is_refused(setting: dict[str, object], tmp_path: Path) -> None:
    first = lesion.layers(**setting, out=tmp_path / "run")  # type: ignore[arg-type]
    again = lesion.layers(**setting, out=tmp_path / "run")  # type: ignore[arg-type]
    assert (first.resumed_complete, again.resumed_complete) == (False, True)
    pd.testing.assert_frame_equal(first.tables["layers"], again.tables["layers"])
    with pytest.raises(RunFolderError, match="interventions"):
        lesion.layers(**setting, out=tmp_path / "run", interventions=["drop"])  # type: ignore[arg-type]
    other = lesion.layers(**setting, out=tmp_path / "run", interventions=["drop"], overwrite=True)  # type: ignore[arg-type]
    assert set(other.tables["layers"]["intervention"]) == {"drop"}


def test_an_interrupted_run_goes_on_to_the_same_tables(
    setting: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesion.engine.plan.SHARD_OPERATIONS", {"cpu": 1})
    setting = {**setting, "batch_size": 2}
    whole = lesion.layers(**setting)  # type: ignore[arg-type]

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lesion.layers(**setting, out=tmp_path / "run", progress=stop)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "partial"
    assert len(list((tmp_path / "run" / "shards").glob("*.safetensors"))) >= 2
    assert not (tmp_path / "run" / "tables").exists() or not list((tmp_path / "run" / "tables").iterdir())
    ran: list[list[int]] = []
    run_batch = MemoryRunner._work
    monkeypatch.setattr(MemoryRunner, "_work", lambda self, batch: (ran.append(batch), run_batch(self, batch))[1])
    resumed = lesion.layers(**setting, out=tmp_path / "run", resume=True)  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(resumed.tables["layers"], whole.tables["layers"], check_exact=True)
    assert 0 < len(ran) <= 4  # of six: the first shards were not run again


def test_there_must_be_something_to_resume(setting: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run in"):
        lesion.layers(**setting, out=tmp_path / "run", resume=True)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_under_an_edit(setting: dict[str, object]) -> None:
    plain = lesion.layers(**setting, interventions=["drop-mlp"]).tables["layers"].set_index("layer")  # type: ignore[arg-type]
    edited = lesion.layers(**setting, interventions=["drop"], edits=["drop-mlp:1"]).tables["layers"]  # type: ignore[arg-type]
    assert edited["loss_clean_nats"].iloc[0] == pytest.approx(plain.loc[1, "loss_nats"], rel=1e-6)
    with pytest.raises(InterventionError, match="blocks 0 to 2"):
        lesion.layers(**setting, edits=["drop:7"])  # type: ignore[arg-type]
    with pytest.raises(InterventionError, match="block 1, mlp_out never runs"):
        lesion.layers(**setting, edits=["drop-mlp:1", "drop:1"])  # type: ignore[arg-type]
    assert len(lesion.layers(**setting, interventions=["drop"], edits=["drop-mlp:1", "drop:0"]).tables["layers"]) == 3  # type: ignore[arg-type]


def test_a_context_beyond_the_positions_is_refused(setting: dict[str, object]) -> None:
    with pytest.raises(InputError, match="--context 65 is longer than the 64 positions"):
        lesion.layers(**{**setting, "reading": lesion.Reading(context=65)})  # type: ignore[arg-type]


def test_a_model_in_memory(setting: dict[str, object]) -> None:
    loaded = lesion.load(setting["model"])  # type: ignore[arg-type]
    by_name = lesion.layers(**setting)  # type: ignore[arg-type]
    in_memory = lesion.layers(**{**setting, "model": loaded.anatomy.model}, tokenizer=loaded.tokenizer)  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(by_name.tables["layers"], in_memory.tables["layers"])
    with pytest.raises(InputError, match="tokenizer="):
        lesion.layers(**{**setting, "model": loaded.anatomy.model})  # type: ignore[arg-type]


def test_another_model_in_memory_is_another_run(setting: dict[str, object], tmp_path: Path) -> None:
    loaded = lesion.load(setting["model"])  # type: ignore[arg-type]
    call = {**setting, "model": loaded.anatomy.model, "tokenizer": loaded.tokenizer, "out": tmp_path / "run"}
    assert not lesion.layers(**call).resumed_complete  # type: ignore[arg-type]
    assert lesion.layers(**call).resumed_complete  # type: ignore[arg-type]
    with torch.no_grad():
        loaded.anatomy.blocks[0].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(RunFolderError, match="another run"):
        lesion.layers(**call)  # type: ignore[arg-type]


def test_a_model_in_training_mode_is_measured_without_dropout() -> None:
    network, data = tiny_model("gpt2"), Documents(token_documents(97, [30, 20]))
    asked = ask(3, ["drop"], None, [])
    before = measure(adopt(network, None), data, asked).tables["layers"]
    network.train()
    network.transformer.h[1].eval()
    pd.testing.assert_frame_equal(measure(adopt(network, None), data, asked).tables["layers"], before)
    assert [network.training, *(block.training for block in network.transformer.h)] == [True, True, False, True]


def test_opened_data_must_be_of_the_models_kind(text_file: Path, setting: dict[str, object]) -> None:
    tokenizer = lesion.load(setting["model"]).tokenizer  # type: ignore[arg-type]
    text = load_text(str(text_file), tokenizer, context=32)
    images = load_images("digits", size=16, channels=1, n_images=40)
    for network, data, says in [
        (tiny_model("bert", vocab_size=320), text, "kind 'causal'"),
        (tiny_model("gpt2", vocab_size=50), text, "only 50 ids"),
        (tiny_model("gpt2", vocab_size=320, n_positions=8), text, "sequence of 32 tokens"),
        (tiny_model("gpt2", vocab_size=320), images, "kind 'image'"),
        (tiny_model("vit", num_labels=2), images, "label 9, but .* only 2 classes"),
    ]:
        with pytest.raises(InputError, match=says):
            lesion.layers(network, data, tokenizer=tokenizer)
    outcome = lesion.layers(tiny_model("gpt2", vocab_size=320), text, tokenizer=tokenizer, interventions=["drop"])
    assert len(outcome.tables["layers"]) == 3


def test_warnings_are_kept(tiny_folder: Path, setting: dict[str, object], tmp_path: Path) -> None:
    network = lesion.load(tiny_folder).anatomy.model
    with torch.no_grad():
        network.model.layers[1].mlp.down_proj.weight.zero_()
    tokenizer = lesion.load(tiny_folder).tokenizer
    call = {**setting, "model": network, "tokenizer": tokenizer, "out": tmp_path / "run"}
    first = lesion.layers(**call, interventions=["drop-mlp"])  # type: ignore[arg-type]
    assert [warning.partition(":")[0] for warning in first.warnings] == ["drop-mlp"]
    again = lesion.layers(**call, interventions=["drop-mlp"])  # type: ignore[arg-type]
    assert (again.resumed_complete, again.warnings) == (True, first.warnings)


def test_a_lane_that_breaks_in_every_batch_is_one_warning() -> None:
    data = Documents(token_documents(97, [30, 30, 20, 20]))
    overflow = Intervention("overflow", edits=(ActivationEdit(1, "mlp_out", lambda x: x / 0),))
    asked = replace(ask(3, ["drop"], [0, 1], []), interventions=(drop(0), overflow))
    outcome = measure(adopt(tiny_model("llama"), None), data, asked, batch_size=2)
    assert outcome.warnings == ["overflow: not finite at block 1 (documents [0, 1, 2] …)"]
    assert outcome.partial


def test_shards_of_another_version_are_not_merged(
    setting: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesion.engine.plan.SHARD_OPERATIONS", {"cpu": 1})
    setting = {**setting, "batch_size": 2, "out": tmp_path / "run"}

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lesion.layers(**setting, progress=stop)  # type: ignore[arg-type]
    monkeypatch.setattr("lesion.studies.sweeping.versions", lambda: {"torch": "1.0"})
    ran: list[list[int]] = []
    run_batch = MemoryRunner._work
    monkeypatch.setattr(MemoryRunner, "_work", lambda self, batch: (ran.append(batch), run_batch(self, batch))[1])
    lesion.layers(**setting)  # type: ignore[arg-type]
    assert len(ran) == 6
