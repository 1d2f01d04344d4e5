"""The page of `lesion copying`, from runs of the model made by hand: figures follow the tables, sentences say them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

import lesion
from lesion.data.copy_tasks import Drawing
from lesion.errors import RunFolderError
from lesion.report import write_report
from lesion.report.content import Curves, FigureSpec, Grid, Picture, Section
from lesion.report.sections import section_of
from lesion.report.sections.copying import sentences
from lesion.results import RunFolder, RunView
from lesion.studies.copying import Looking, Sets, copying
from tests import induction
from tests.data.test_copy_tasks import byte_level
from tests.support import tiny_model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`sets`: masks in layers and heads; `edits`: two tasks, one of unequal strings; `bare`: no attention."""
    folder = tmp_path_factory.mktemp("runs")
    base, tuned = induction.save(folder / "base"), induction.save(folder / "tuned")
    tensors = load_file(tuned / "model.safetensors")
    for name, tensor in tensors.items():
        tensor[..., ::2] += 1.0 if "attn" in name else 0.0
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    lesion.zero_modes.diff(str(base), str(tuned), out=folder / "masks", look=["none"])
    sets = Sets(str(folder / "masks"), ("zero_modes", "random", "random_matched"), ("layers", "heads"), (0, 1))
    tokens: dict[str, Any] = {"tasks": ["tokens"], "drawing": Drawing(12)}
    copying(tuned, **tokens, sets=sets, looking=Looking(maps=True), generate=3, out=folder / "sets")
    model: dict[str, Any] = {"tokenizer": byte_level(), "drawing": Drawing(8)}
    tiny = tiny_model("gpt_neox", vocab_size=400, max_position_embeddings=96)
    copying(tiny, **model, edits=["drop:1", "drop-attn:2"], base=["drop-mlp:0"], out=folder / "edits")
    copying(tuned, **tokens, looking=Looking("none"), out=folder / "bare")
    return {name: folder / name for name in ("sets", "edits", "bare")}


def section(run: Path) -> Section:
    return section_of(RunView.open(run))


def table(run: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(run / "tables" / f"{name}.parquet")


def figure(made: Section, name: str) -> FigureSpec:
    return next(spec for spec in made.figures if spec.name == name)


def names(made: Section) -> list[str]:
    return [spec.name for spec in made.figures]


def plain(texts: tuple[str, ...]) -> str:
    return " ".join(texts).replace("\u00a0", " ").replace("\u2212", "-")


@pytest.mark.parametrize("name", ["sets", "edits", "bare"])
def test_each_run_has_a_page_with_its_figures(runs: dict[str, Path], name: str) -> None:
    made, page = section(runs[name]), write_report(runs[name]).read_text(encoding="utf-8")
    written = {path.name for path in (runs[name] / "figures").iterdir()}
    assert {f"{spec.name}.{kind}" for spec in made.figures for kind in ("svg", "png")} == written
    assert page.count("<figure ") == len(made.figures) == len(set(names(made))) > 0
    assert page.count("<table ") == len(made.tables) > 0
    assert "nan" not in plain((*made.overview, *made.measured, *made.missing)).lower().replace("finance", "")
    assert str(runs[name].parent) not in plain((*made.overview, *made.measured))
    assert write_report(runs[name]).read_text(encoding="utf-8") == page


def test_what_each_run_draws(runs: dict[str, Path]) -> None:
    assert names(section(runs["sets"])) == [
        *("copying_depths", "copying_heads", "copying_maps_tokens", "copying_layers", "copying_by_head_tokens"),
        "copying_generation",
    ]
    assert names(section(runs["edits"])) == ["copying_depths", "copying_heads", "copying_maps_tokens"]
    assert names(section(runs["bare"])) == ["copying_depths"]


def test_accuracy_by_depth(runs: dict[str, Path]) -> None:
    rows = table(runs["edits"], "copying_depths")
    for panel, task in zip(
        figure(section(runs["edits"]), "copying_depths").panels, ("integers", "tokens"), strict=True
    ):
        assert isinstance(panel, Curves)
        assert panel.note == f"repeated {task}"
        assert [curve.label for curve in panel.curves] == ["none", "drop:1", "drop-attn:2"]
        for curve in panel.curves:
            own = rows[(rows["task"] == task) & (rows["condition"] == curve.label)].sort_values("depth")
            assert curve.x.tolist() == list(range(7))
            assert curve.y.tolist() == (100 * own["accuracy"]).tolist()
            assert curve.low is not None
            assert curve.low.tolist() == (100 * own["accuracy_low"]).tolist()
        chance = table(runs["edits"], "copying").set_index("task").loc[task, "chance"]
        assert panel.marks[0].y == pytest.approx(100 * chance.iloc[0], rel=1e-12)


def test_seeds_are_one_line_with_their_range(runs: dict[str, Path]) -> None:
    (panel,) = figure(section(runs["sets"]), "copying_depths").panels
    assert isinstance(panel, Curves)
    labels = [curve.label for curve in panel.curves]
    assert labels[:4] == ["none", "zero_modes@layer:0", "random@layer:0", "random_matched@layer:0"]
    assert len(labels) == 8
    assert "The first 8 of 19 conditions" in figure(section(runs["sets"]), "copying_depths").caption
    rows = table(runs["sets"], "copying_depths")
    wide = rows[rows["condition"].isin(["random@layer:0#0", "random@layer:0#1"])].pivot_table(
        index="depth", columns="condition", values="accuracy"
    )
    curve = panel.curves[2]
    assert curve.low is not None
    assert curve.high is not None
    np.testing.assert_allclose(curve.y, 100 * wide.mean(axis=1), rtol=1e-12)
    assert curve.low.tolist() == (100 * wide.min(axis=1)).tolist()
    assert curve.high.tolist() == (100 * wide.max(axis=1)).tolist()


def test_scores_of_heads(runs: dict[str, Path]) -> None:
    heads = table(runs["sets"], "heads")
    panels = figure(section(runs["sets"]), "copying_heads").panels
    columns = ["induction", "induction_null", "previous_token", "duplicate_token"]
    for panel, column in zip(panels, columns, strict=True):
        assert isinstance(panel, Grid)
        for row in heads.to_dict("records"):
            assert panel.values[row["head"], row["layer"]] == row[column]
    layer, head = induction.INDUCTION
    assert panels[0].values[head, layer] == pytest.approx(1.0, abs=1e-6)  # type: ignore[union-attr]
    assert panels[1].include == pytest.approx(1.0, abs=1e-6)  # type: ignore[union-attr]


def test_maps_are_grey_where_attention_is(runs: dict[str, Path]) -> None:
    maps = RunView.open(runs["sets"]).arrays("attention_tokens")
    panels = figure(section(runs["sets"]), "copying_maps_tokens").panels
    first, second = panels[0], panels[1]
    assert isinstance(first, Picture)
    assert isinstance(second, Picture)
    assert (first.title, first.note) == ("head 1:1", "none")
    assert second.note == "zero_modes@layer:0"
    layer, head = induction.INDUCTION
    expected = np.rint(255 * np.clip(maps["none"][layer, head].astype(float) / 0.5, 0, 1))
    assert (first.pixels == expected).all()
    assert all(first.pixels[11 + item, 2 + item] == 255 for item in range(10))  # what followed, the second time
    assert first.shape == (31, 31)
    assert (second.pixels != first.pixels).any()


def test_sweeps_over_layers_and_heads(runs: dict[str, Path]) -> None:
    rows = table(runs["sets"], "copying").set_index("condition")["accuracy_change"]
    (panel,) = figure(section(runs["sets"]), "copying_layers").panels
    assert isinstance(panel, Curves)
    assert [curve.label for curve in panel.curves] == ["zero_modes", "random", "random_matched"]
    zero, random = panel.curves[:2]
    assert zero.y.tolist() == [100 * rows["zero_modes@layer:0"], 100 * rows["zero_modes@layer:1"]]
    seeds = [100 * rows[f"random@layer:1#{seed}"] for seed in (0, 1)]
    assert random.y[1] == pytest.approx(np.mean(seeds), rel=1e-12)
    assert random.low is not None
    assert random.low[1] == min(seeds)
    grids = figure(section(runs["sets"]), "copying_by_head_tokens").panels
    assert [grid.note for grid in grids] == ["zero_modes", "random", "random_matched"]
    for layer in range(2):
        for head in range(2):
            assert grids[0].values[head, layer] == 100 * rows[f"zero_modes@head:{layer}:{head}"]  # type: ignore[union-attr]


def test_generation(runs: dict[str, Path]) -> None:
    rows = table(runs["sets"], "copying_generation")
    attention, accuracy = figure(section(runs["sets"]), "copying_generation").panels
    assert isinstance(attention, Curves)
    assert isinstance(accuracy, Curves)
    assert attention.note == "repeated tokens, head 1:1"
    own = rows[rows["condition"] == "none"].sort_values("step")
    assert attention.curves[0].y.tolist() == own["attention"].tolist()
    assert accuracy.curves[0].y.tolist() == (100 * own["accuracy"]).tolist()


def test_sentences(runs: dict[str, Path]) -> None:
    said = plain(section(runs["sets"]).overview)
    rows = table(runs["sets"], "copying").set_index("condition")
    assert "Repeated tokens: 100.0 % of the answers are right (95 % interval 75.8 to 100.0)" in said
    assert "accuracy rises most after attention of block 1, from 0.0 % to 100.0 %." in said
    null = table(runs["sets"], "heads").set_index(["layer", "head"]).loc[induction.INDUCTION, "induction_null"]
    assert f"1 induction head of 4 heads, as layer:head with their scores: 1:1 (1.00, null {null:.2f})." in said
    sets = rows[rows["kind"] == "zero_modes"].sort_values("accuracy_change", kind="stable")
    worst = sets.iloc[0]
    random = rows[(rows["kind"] == "random") & (rows["scope"] == worst["scope"])]["accuracy_change"].mean()
    assert f"of 6 scopes, zero modes in {worst['scope']} change accuracy most, by " in said
    assert f"as many random weights {100 * random:+.1f} points".replace("+0.0", "0.0").replace("-0.0", "0.0") in said
    own = table(runs["sets"], "copying_attention").set_index("condition").loc["none"]
    assert f"head 1:1 pays {own['attention']:.2f} ± {own['attention_sd']:.2f} (sd over prompts)" in said
    said = plain(section(runs["edits"]).overview)
    rows = table(runs["edits"], "copying")
    assert "zero modes" not in said
    assert "of 2 conditions" in said


def test_a_change_within_its_interval_is_said_to_be_none(runs: dict[str, Path]) -> None:
    rows, depths = table(runs["sets"], "copying"), table(runs["sets"], "copying_depths")
    own = rows[rows["condition"].isin(["none", "zero_modes@head:0:1", "random@head:0:1#0", "random@head:0:1#1"])]
    said = plain(tuple(sentences(own, depths, None, None)))
    assert "zero modes in head:0:1 do not change accuracy beyond its interval: by 0.0 points (95 % interval -" in said
    own = rows[rows["condition"].isin(["none", "zero_modes@head:0:1", "zero_modes@head:1:0"])]
    said = plain(tuple(sentences(own, depths, None, None)))
    assert "zero modes in none of 2 scopes change accuracy beyond its interval; most in head:0:1, by 0.0" in said
    own = rows[rows["condition"].isin(["none", "zero_modes@head:1:1"])]
    said = plain(tuple(sentences(own, depths, None, None)))
    assert "zero modes in head:1:1 change accuracy by -" in said
    assert "beyond its interval" not in said


def test_notes_say_what_was_done(runs: dict[str, Path]) -> None:
    made = section(runs["edits"])
    said = plain(made.measured)
    assert "Everything was measured under drop-mlp:0." in said
    assert "Attention and MLP read the same input here" in said
    assert "Integers: five distinct four-digit integers, said twice" in said
    assert "a BOS stands in front" in said
    assert "is picked after the fact" in said
    assert "is picked after the fact" not in plain(section(runs["bare"]).measured)
    said = plain(section(runs["sets"]).measured)
    assert "Everything was measured under" not in said
    assert "read the same input" not in said
    assert "Integers" not in said


def test_what_is_missing(runs: dict[str, Path]) -> None:
    missing = plain(section(runs["bare"]).missing)
    assert "No attention was computed" in missing
    assert "There is no condition but the model itself" in missing
    missing = plain(section(runs["edits"]).missing)
    assert "Warning: integers: strings are" in missing
    assert "No attention" not in missing
    assert "no condition" not in missing


def test_a_run_without_results_has_no_page(tmp_path: Path, runs: dict[str, Path]) -> None:
    fields = {"study": "copying", "model": {"name": "m"}}
    with RunFolder.open(tmp_path / "run", identity={}, manifest=fields) as folder:
        folder.finish("partial")
    with pytest.raises(RunFolderError, match="has no results to report yet"):
        write_report(tmp_path / "run")


def test_a_row_that_is_not_finite_is_drawn_as_a_gap(tmp_path: Path, runs: dict[str, Path]) -> None:
    view = RunView.open(runs["edits"])
    kept = {
        key: view.manifest[key] for key in ("study", "arguments", "model", "data", "command", "versions", "followed")
    }
    with RunFolder.open(tmp_path / "run", identity={}, manifest=kept) as folder:
        for name in view.tables:
            rows = view.table(name)
            if name in ("copying", "copying_depths"):
                columns = [column for column in rows if rows[column].dtype == np.float64 and column != "chance"]
                rows.loc[rows["condition"] == "drop:1", columns] = np.nan
            folder.write_table(name, rows)
        folder.finish("partial", warnings=["drop:1: predictions on the task tokens are not finite"])
    made = section(tmp_path / "run")
    panel = figure(made, "copying_depths").panels[0]
    assert isinstance(panel, Curves)
    assert np.isnan(panel.curves[1].y).all()
    assert not np.isnan(panel.curves[0].y).any()
    assert "nan" not in plain(made.overview).lower()
    assert "Warning: drop:1: predictions" in plain(made.missing)
    assert "drop-attn:2 changes accuracy by" in plain(made.overview)
    write_report(tmp_path / "run")
