"""`lesion zero-modes` from the shell: a pair, its masks, and an edited checkpoint that any tool loads."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import lesion
from lesion.cli import app


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["zero-modes", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def pair(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "base")
    shutil.copytree(tiny_folder, "tuned")
    tensors = load_file("base/model.safetensors")
    for value in tensors.values():
        value.flatten()[::3] += 0.5
    save_file(tensors, "tuned/model.safetensors", metadata={"format": "pt"})


def test_from_a_pair_to_an_edited_checkpoint(pair: None) -> None:
    code, said, _ = run("diff", "base", "tuned", "--look", "none", "--out", "masks")
    assert code == 0
    assert "projections" in said
    assert "(66.6" in said  # two weights of three were left alone
    code, said, _ = run("apply", "tuned", "masks", "--out", "edited", "--scope", "layer:1")
    assert code == 0
    before, after = load_file("tuned/model.safetensors"), load_file("edited/model.safetensors")
    name = "model.layers.1.mlp.gate_proj.weight"
    mask = lesion.Masks.load("masks")[name]
    assert torch.equal(after[name], torch.where(mask, 0.0, before[name]))
    assert not torch.equal(after[name], before[name])
    assert torch.equal(after["model.layers.0.mlp.gate_proj.weight"], before["model.layers.0.mlp.gate_proj.weight"])
    AutoModelForCausalLM.from_pretrained("edited")


def test_included_components_are_a_list_with_commas_or_an_option_each(pair: None) -> None:
    """As elsewhere, so that neither way of writing a list is an error."""
    run("diff", "base", "tuned", "--look", "none", "--out", "masks")
    lists = {"commas": ["--include", "embed, norm"], "each": ["--include", "embed", "--include", "norm"], "none": []}
    n_set = {}
    for name, options in lists.items():
        code, said, _ = run("apply", "tuned", "masks", "--out", name, "--json", *options)
        assert code == 0
        n_set[name] = json.loads(said)["n_weights_set"]
    assert n_set["commas"] == n_set["each"] > n_set["none"]
    code, _, error = run("apply", "tuned", "masks", "--out", "other", "--include", "embed,norms")
    assert code == 2
    assert "'norms' cannot be included" in error


def test_edits_one_on_top_of_the_other(pair: None) -> None:
    """`apply --edit` is `apply` again and again, whose result the options give as well."""
    run("diff", "base", "tuned", "--look", "none", "--out", "masks")
    first, second = "zero-modes:masks@layer:1", "random:masks@layer:0#2"
    assert run("apply", "tuned", "--edit", first, "--edit", second, "--out", "both")[0] == 0
    assert run("apply", "tuned", "masks", "--scope", "layer:1", "--out", "one")[0] == 0
    options = ("--kind", "random", "--seed", 2, "--scope", "layer:0")
    assert run("apply", "one", "masks", *options, "--out", "two")[0] == 0
    both, one, two = (load_file(f"{name}/model.safetensors") for name in ("both", "one", "two"))
    assert all(torch.equal(both[name], two[name]) for name in both)
    assert not all(torch.equal(one[name], two[name]) for name in both)
    assert len(json.loads(Path("both/lesion_edits.json").read_text())) == 2
    assert sorted(path.name for path in Path().iterdir()) == ["base", "both", "masks", "one", "tuned", "two"]
    for asked, says in (
        (("tuned", "masks", "--edit", first), "leave out masks"),
        (("tuned", "--edit", first, "--scope", "layer:1"), "leave out masks"),
        (("tuned", "--edit", "drop:1"), "changes no weights"),
        (("tuned",), "no masks"),
        (("tuned", "--edit", "random:masks"), "needs a seed"),
    ):
        code, _, error = run("apply", *asked, "--out", "never")
        assert code == 2
        assert says in error
        assert not Path("never").exists()


def test_ablate(pair: None) -> None:
    run("diff", "base", "tuned", "--look", "none", "--out", "masks")
    asked = ("ablate", "tuned", "masks", "--tokens", 200, "--context", 32, "--scopes", "all, layers", "--seeds", "0,1")
    code, said, _ = run(*asked, "--out", "run")
    assert code == 0
    assert "zero modes taken away, minus a control" in said
    assert "layer:2" in said
    assert Path("run/report.html").is_file()
    code, said, _ = run(*asked, "--out", "run", "--json")
    assert code == 0
    table = pd.read_parquet(json.loads(said)["tables"]["zero_mode_ablation"])
    assert len(table) == 1 + 4 * 5
    assert json.loads(said)["status"] == "complete"
    for option, says in (
        (("--seeds", "0,x"), "--seeds '0,x': write whole numbers"),
        (("--kinds", "zero_mode"), "'zero_mode' is not known"),
        (("--value", "one"), "--value 'one' is not known"),
        (("--target", "me"), "--target 'me' is not known"),
        (("--scopes", "layer:9"), "there is no layer 9"),
        (("--edit", "drop-all:1"), "not an edit that is known"),
    ):
        code, _, error = run(*asked[:3], *option, "--out", "never")
        assert code == 2, option
        assert says in error
        assert error.count("\n") == 1
        assert not Path("never").exists()


def test_json(pair: None) -> None:
    code, said, _ = run("diff", "base", "tuned", "--look", "none", "--json")
    assert code == 0
    found = json.loads(said)
    assert Path(found["tables"]["zero_modes"]).is_file()
    code, said, _ = run("apply", "tuned", found["run"], "--out", "edited", "--kind", "random", "--seed", 1, "--json")
    assert code == 0
    assert 0 < json.loads(said)["n_weights_set"] < json.loads(said)["n_in_scope"]


def order(name: str) -> tuple[int, int]:
    layer, component = name.split("/")
    return int(layer), ["q", "k", "v", "o", "gate", "up", "down"].index(component)


def test_looking(pair: None) -> None:
    wish = ("--look", "1/k,0/gate", "--look", "component:o")
    code, said, _ = run("diff", "base", "tuned", "--out", "run", *wish, "--json")
    assert code == 0
    assert {"zero_modes_spectra", "zero_modes_neurons_top", "zero_modes_images"} <= json.loads(said)["tables"].keys()
    manifest = json.loads(Path("run/run.json").read_text())
    n_layers = json.loads(Path("tuned/config.json").read_text())["num_hidden_layers"]
    expected = ["1/k", "0/gate", *(f"{layer}/o" for layer in range(n_layers))]
    assert manifest["looked_at"] == sorted(expected, key=order)
    assert "pictures" in manifest["arrays"]
    code, _, said = run("diff", "base", "tuned", "--out", "run", *wish)
    assert code == 0
    assert "complete already" in said
    code, _, said = run("diff", "base", "tuned", "--out", "run")
    assert code == 2
    assert "look" in said


def test_looking_is_the_default_and_can_be_left_out(pair: None) -> None:
    assert run("diff", "base", "tuned", "--out", "run")[0] == 0
    assert {"0/q", "0/gate", "1/down"} <= set(json.loads(Path("run/run.json").read_text())["looked_at"])
    code, said, _ = run("diff", "base", "tuned", "--out", "bare", "--look", "none", "--json")
    assert code == 0
    assert "zero_modes" in json.loads(said)["tables"]
    assert "zero_modes_spectra" not in json.loads(said)["tables"]
    assert "pictures" not in json.loads(Path("bare/run.json").read_text())["arrays"]


@pytest.mark.parametrize(("arguments", "says"), [
    (["diff", "base", "base"], "same files"),
    (["diff", "base", "nowhere/at/all"], "nowhere"),
    (["diff", "base", "tuned", "--out", "x", "--look", "99/k"], "no layer 99"),
    (["diff", "base", "tuned", "--out", "x", "--look", "heads"], "is no scope"),
    (["diff", "base", "tuned", "--out", "x", "--look", "none,1/k"], "excludes"),
    (["diff", "base", "tuned", "--out", "x", "--look", "component:norm"], "no projection matrix"),
    (["apply", "tuned", "nothing", "--out", "x"], "no masks"),
    (["apply", "tuned", "masks", "--out", "x", "--scope", "layer:99"], "layer"),
    (["apply", "tuned", "masks", "--out", "x", "--kind", "random"], "seed"),
    (["apply", "tuned", "masks", "--out", "base"], "base"),
])  # fmt: skip
def test_bad_input(pair: None, arguments: list[str], says: str) -> None:
    run("diff", "base", "tuned", "--look", "none", "--out", "masks", "--quiet")
    code, _, said = run(*arguments)
    assert code == 2
    assert says in said
    assert len(said.strip().splitlines()) == 1
    assert not Path("x").exists()
