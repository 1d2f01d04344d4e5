"""Reports of training: figures follow the tables, and sentences say their numbers."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lesion.report import write_report
from lesion.report.content import Curves, FigureSpec, Grid, Section
from lesion.report.sections import section_of
from lesion.results import RunView
from lesion.studies.setting import Reading
from lesion.studies.training import Keeping, Recipe, finetune, pretrain
from tests.report.zero_modes_runs import Tables, rewritten

PROJECTIONS = ["q", "k", "v", "o", "gate", "up", "down"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pretraining on two domains with nothing counted, a fine-tuning of it, and one on images."""
    folder = tmp_path_factory.mktemp("runs")
    specs = []
    for name in ("one", "two"):
        path = folder / f"{name}.txt"
        path.write_text("\n".join(f"{name}{number % 37} and {number * number % 101}" for number in range(1200)))
        specs.append(f"{name}={path}")
    reading, recipe = Reading(tokens=3_000, context=16), Recipe(steps=7, batch_size=4, warmup=2)
    keeping = Keeping(store=("fp32",), log_every=3, held_out=0.1)
    pretrain("llama-tiny", specs, vocabulary=280, reading=reading, recipe=recipe, keeping=keeping, out=folder / "base")
    keeping = Keeping(store=("bf16", "fp16", "fp32"), log_every=2, count_every=1, evaluate_every=3, held_out=0.1)
    recipe = Recipe(steps=7, batch_size=4, warmup=0, learning_rate=2e-5)
    start = folder / "base/models/step-000007/fp32"
    finetune(start, specs[0], reading=reading, recipe=recipe, keeping=keeping, out=folder / "tuned")
    images = Keeping(store=("bf16",), held_out=0.0, log_every=2)
    pretrain("vit-digits", "digits", recipe=Recipe(steps=4, warmup=0), keeping=images, out=folder / "images")
    return {name: folder / name for name in ("base", "tuned", "images")}


def section(run: Path) -> Section:
    return section_of(RunView.open(run))


def table(run: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(run / "tables" / f"{name}.parquet")


def figure(made: Section, name: str) -> FigureSpec:
    return next(spec for spec in made.figures if spec.name == name)


def curves(panel: object) -> dict[str, tuple[list[float], list[float]]]:
    assert isinstance(panel, Curves)
    return {line.label: (line.x.tolist(), line.y.tolist()) for line in panel.curves}


def plain(texts: tuple[str, ...]) -> str:
    return " ".join(texts).replace("\u00a0", " ")


def percent(value: float) -> str:
    """Three digits, as the page writes them; worked out here by formatting alone."""
    shown = f"{100 * value:#.3g}".rstrip(".")
    return f"{int(float(shown))} %" if (100 * value).is_integer() else f"{shown} %"


@pytest.mark.parametrize("name", ["base", "tuned", "images"])
def test_each_run_has_a_page_with_its_figures(runs: dict[str, Path], name: str) -> None:
    page = write_report(runs[name]).read_text(encoding="utf-8")
    made = section(runs[name])
    written = {path.name for path in (runs[name] / "figures").iterdir()}
    assert {f"{spec.name}.{kind}" for spec in made.figures for kind in ("svg", "png")} == written
    assert page.count("<figure ") == sum(spec.on_page for spec in made.figures)
    assert {"Training from nothing": "base", "Fine-tuning": "tuned"}.get(made.title, "images") in (name, "base")
    text = re.sub(r"<[^>]+>", " ", page)
    assert "SHA-256 of the files" not in text
    assert ("images a second" in text) == (name == "images")
    assert ("tokens a second" in text) == (name != "images")


def test_losses_are_those_of_the_tables(runs: dict[str, Path]) -> None:
    losses, held_out = table(runs["base"], "training"), table(runs["base"], "training_evaluation")
    by_domain = table(runs["base"], "training_evaluation_by_domain")
    assert losses["step"].tolist() == [3, 6, 7]
    panels = figure(section(runs["base"]), "training_loss").panels
    assert curves(panels[0]) == {
        "training": (losses["step"].tolist(), losses["loss_nats"].tolist()),
        "held out": (held_out["step"].tolist(), held_out["loss_nats"].tolist()),
    }
    assert isinstance(panels[0], Curves)
    band = panels[0].curves[1]
    assert band.high is not None and band.low is not None  # noqa: PT018  (one thing for the type checker)
    assert np.allclose(band.high - band.low, 2 * held_out["loss_nats_sem"], rtol=1e-12)
    assert set(curves(panels[1])) == {"one", "two"}
    for name, (_, values) in curves(panels[1]).items():
        assert values == by_domain[by_domain["domain"] == name]["loss_nats"].tolist()
    assert len(figure(section(runs["tuned"]), "training_loss").panels) == 1


def test_the_rate_is_drawn_in_a_power_of_ten(runs: dict[str, Path]) -> None:
    losses = table(runs["tuned"], "training")
    rate, norm = figure(section(runs["tuned"]), "training_rate").panels
    assert isinstance(rate, Curves)
    assert rate.title == "learning rate (in 10⁻⁵)"
    (_, values), (_, norms) = (next(iter(curves(panel).values())) for panel in (rate, norm))
    assert np.allclose(values, 1e5 * losses["learning_rate"], rtol=1e-12)
    assert norms == losses["gradient_norm"].tolist()


def test_zero_modes_by_step_type_and_layer(runs: dict[str, Path]) -> None:
    counted = table(runs["tuned"], "training_zero_modes")
    made = section(runs["tuned"])
    inside = counted[counted["component"].isin(PROJECTIONS)]
    share_panel, never, back = figure(made, "training_zero_modes").panels
    for word in ("bf16", "fp16", "fp32"):
        for index, step in enumerate(range(1, 8)):
            rows = inside[(inside["dtype"] == word) & (inside["step"] == step)]
            zero_modes, weights = rows["n_zero_modes"].sum(), rows["n_weights"].sum()
            assert curves(share_panel)[word][1][index] == pytest.approx(100 * zero_modes / weights, rel=1e-12)
            kept = 100 * rows["n_never_changed"].sum() / weights
            assert curves(never)[word][1][index] == pytest.approx(kept, rel=1e-12)
            if zero_modes:
                share = 100 * (zero_modes - rows["n_never_changed"].sum()) / zero_modes
                assert curves(back)[word][1][index] == pytest.approx(share, rel=1e-12)
    for word in ("bf16", "fp16", "fp32"):
        spec = figure(made, f"training_zero_modes_{word}")
        assert spec.on_page == (word == "bf16")
        assert len(spec.panels) == 4
        own = counted[(counted["dtype"] == word) & (counted["layer"] == 2) & (counted["component"] == "k")]
        assert curves(spec.panels[2])["W_K"][1] == (100 * own["n_zero_modes"] / own["n_weights"]).tolist()
        assert list(curves(spec.panels[2])) == ["W_Q", "W_K", "W_V", "W_O", "gate", "up", "down"]


def test_sentences_say_the_numbers(runs: dict[str, Path]) -> None:
    counted, said = table(runs["tuned"], "training_zero_modes"), plain(section(runs["tuned"]).overview)
    last = counted[counted["component"].isin(PROJECTIONS) & (counted["step"] == 7)].groupby("dtype")
    sums = last[["n_weights", "n_zero_modes", "n_never_changed"]].sum()
    share = sums["n_zero_modes"] / sums["n_weights"]
    assert f"{percent(share['bf16'])} stored as bf16, {percent(share['fp16'])} stored as fp16" in said
    kept = sums["n_never_changed"] / sums["n_zero_modes"]
    assert f"Of those in bf16, {percent(kept['bf16'])} had changed at no counted step" in said
    assert "times as many in bf16 as in fp16" in said
    losses = table(runs["tuned"], "training")["loss_nats"]
    assert f"from {losses.iloc[0]:.3f} nats (to step 2) to {losses.iloc[-1]:.3f}." in said
    assert "7 steps, 448 tokens" in said
    assert "held out" in said
    measured = plain(section(runs["tuned"]).measured)
    assert "learning rate up to 2e-05 in 0 steps, then down to 0 as a cosine" in measured
    assert "counted every 1 step" in measured


def test_what_was_not_asked_for_is_said(runs: dict[str, Path]) -> None:
    base, images = section(runs["base"]), section(runs["images"])
    assert "Zero modes were not counted" in plain(base.missing)
    assert "Nothing was held out" not in plain(base.missing)
    assert "Nothing was held out" in plain(images.missing)
    assert "held out it went" not in plain(images.overview)
    assert "4 steps, 32 images" in plain(images.overview)
    panel = figure(images, "training_loss").panels[0]
    assert isinstance(panel, Curves)
    assert panel.title == "loss (nats an image)"
    assert not any("zero modes" in spec.label.lower() for spec in (*base.figures, *images.figures))
    assert section(runs["tuned"]).missing == ()


def altered(runs: dict[str, Path], folder: Path, tables: Tables) -> Section:
    return section(rewritten(runs["tuned"], folder / "copy", tables))


def test_many_layers_are_a_heat_map(runs: dict[str, Path], tmp_path: Path) -> None:
    """Seven layers and thirty counted steps: twenty-four rows of them, with the first and the last."""
    rows = [
        {"step": step, "dtype": "bf16", "layer": layer, "component": "q", "n_weights": 100,
         "n_zero_modes": step + layer, "n_never_changed": step, "n_came_back": layer, "fraction": (step + layer) / 100}
        for step in range(1, 31) for layer in range(7)
    ]  # fmt: skip
    made = altered(runs, tmp_path, {"training_zero_modes": lambda _: pd.DataFrame(rows).astype({"layer": "Int64"})})
    grid = figure(made, "training_zero_modes_bf16").panels[0]
    assert isinstance(grid, Grid)
    assert (len(grid.rows), grid.rows[0], grid.rows[-1]) == (24, "1", "30")
    assert grid.columns == tuple("0123456")
    assert grid.values[-1].tolist() == [float(30 + layer) for layer in range(7)]
    assert "24 of 30 counted steps" in figure(made, "training_zero_modes_bf16").caption


def test_without_projections_there_is_only_the_table(runs: dict[str, Path], tmp_path: Path) -> None:
    made = altered(runs, tmp_path, {"training_zero_modes": lambda rows: rows[rows["component"] == "embed"]})
    assert "no projection matrix inside a block" in plain(made.missing)
    assert {spec.name for spec in made.figures} == {"training_loss", "training_rate"}
    assert "training_zero_modes" in {spec.name for spec in made.tables}


def test_pages_are_written_without_torch(runs: dict[str, Path]) -> None:
    code = (
        "import sys; from lesion.report import write_report; write_report(sys.argv[1]); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(runs["tuned"])]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
