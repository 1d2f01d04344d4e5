"""Reports of zero modes, from runs of tiny models: figures follow the tables, and sentences say their numbers."""

import math
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lesion.errors import RunFolderError
from lesion.report import write_report
from lesion.report.content import Curves, FigureSpec, Grid, Picture, Section
from lesion.report.sections import section_of
from lesion.report.sections.zero_modes.rows import share, significant
from lesion.results import RunView
from tests.report.zero_modes_runs import Tables, make_all, rewritten

STUDIES = ("diff", "overlap", "dynamics", "wanda")
LOOKED = tuple(
    f"zero_modes_{name}" for name in ("spectra", "harmonics", "spectra_2d", "images", "neurons", "neurons_top")
)
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_all(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def pages(runs: dict[str, Path]) -> dict[str, str]:
    """The page of each run, with its figures written."""
    return {study: write_report(runs[study]).read_text(encoding="utf-8") for study in STUDIES}


def section(run: Path) -> Section:
    return section_of(RunView.open(run))


def changed(runs: Mapping[str, Path], study: str, folder: Path, tables: Tables, **manifest: Any) -> Section:
    return section(rewritten(runs[study], folder / "copy", tables, **manifest))


def table(run: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(run / "tables" / f"{name}.parquet")


def figure(made: Section, name: str) -> FigureSpec:
    return next(spec for spec in made.figures if spec.name == name)


def grid(made: Section, name: str, title: str) -> Grid:
    return next(
        panel for panel in figure(made, name).panels if isinstance(panel, Grid) and title in panel.note + panel.title
    )


def plain(texts: tuple[str, ...]) -> str:
    return " ".join(texts).replace("\u00a0", " ")


def percent(value: float) -> str:
    """Three digits, as the page writes them; worked out here by formatting alone."""
    shown = f"{100 * value:#.3g}".rstrip(".")
    return f"{int(float(shown))} %" if float(shown).is_integer() and (100 * value).is_integer() else f"{shown} %"


@pytest.mark.parametrize("study", STUDIES)
def test_each_study_has_a_page_with_its_figures(runs: dict[str, Path], pages: dict[str, str], study: str) -> None:
    made, page = section(runs[study]), pages[study]
    written = {path.name for path in (runs[study] / "figures").iterdir()}
    assert {f"{spec.name}.{kind}" for spec in made.figures for kind in ("svg", "png")} == written
    assert len({spec.name for spec in made.figures}) == len(made.figures) > 0
    assert page.count("<figure ") == sum(spec.on_page for spec in made.figures)
    assert page.count("<li>") > len(made.overview) > 0
    assert "nan" not in plain(made.overview).lower()
    assert page.count("<table ") == len(made.tables)


@pytest.mark.parametrize("study", STUDIES)
def test_the_same_tables_give_the_same_page(runs: dict[str, Path], pages: dict[str, str], study: str) -> None:
    before = {path.name: path.read_bytes() for path in (runs[study] / "figures").iterdir()}
    assert write_report(runs[study]).read_text(encoding="utf-8") == pages[study]
    assert {path.name: path.read_bytes() for path in (runs[study] / "figures").iterdir()} == before


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.123456, "12.3 %"),
        (0.00081, "0.0810 %"),
        (4.77e-7, "4.77·10⁻⁵ %"),
        (math.nan, "–"),
    ],
)
def test_shares(value: float, text: str) -> None:
    assert share(value).replace("\u00a0", " ") == text
    assert significant(2.0) == "2"
    assert significant(1.589) == "1.59"


def test_diff_says_what_its_tables_hold(runs: dict[str, Path]) -> None:
    rows = table(runs["diff"], "zero_modes")
    inside = rows[rows["component"].isin(PROJECTIONS)]
    said = plain(section(runs["diff"]).overview)
    n, total = inside["n_zero_modes"].sum(), inside["n_weights"].sum()
    assert f"{n:,} of {total:,} weights in the projection matrices of {inside['layer'].nunique()} blocks" in said
    assert f"have the same bits in both checkpoints: {percent(n / total)}." in said
    by = {name: part["n_zero_modes"].sum() / part["n_weights"].sum() for name, part in inside.groupby("component")}
    names = {"q": "W_Q", "k": "W_K", "v": "W_V", "o": "W_O"}
    least, most = min(by, key=by.__getitem__), max(by, key=by.__getitem__)
    assert f"by component from {percent(by[least])} ({names.get(least, least)}) to {percent(by[most])}" in said
    assert f"({names.get(most, most)})" in said
    sizes = inside["mean_abs_zero_modes_over_matrix"]
    mean = float((sizes * inside["n_zero_modes"]).sum() / n)
    assert f"a zero mode is {mean:.3g} times as large" in said
    assert "None of them is exactly 0." in said
    assert "Outside the projection matrices: embed" in said


def test_diff_draws_the_share_of_each_layer_and_component(runs: dict[str, Path]) -> None:
    rows = table(runs["diff"], "zero_modes")
    panel = grid(section(runs["diff"]), "zero_modes", "% of weights")
    assert panel.rows == ("W_Q", "W_K", "W_V", "W_O", "gate", "up", "down")
    for place, component in enumerate(PROJECTIONS):
        for at, layer in enumerate(panel.columns):
            own = rows[(rows["component"] == component) & (rows["layer"] == int(layer))].iloc[0]
            assert panel.values[place, at] == pytest.approx(100 * own["n_zero_modes"] / own["n_weights"], rel=1e-12)
    distances = grid(section(runs["diff"]), "zero_modes", "distance")
    assert (distances.values == 1).all()  # every changed weight was moved by one unit in the last place


def test_exact_zeros_and_casts_are_said_only_where_there_are_some(runs: dict[str, Path], tmp_path: Path) -> None:
    def zeros(found: pd.DataFrame) -> pd.DataFrame:
        return found.assign(n_both_zero=7, n_signed_zero=2, fraction_both_zero=0.25)

    tables = {"zero_modes": lambda found: found.assign(n_both_zero=7, n_signed_zero=2), "zero_modes_summary": zeros}
    arguments = {"cast": "bf16", "ulps": 50}
    made = changed(runs, "diff", tmp_path, tables, arguments=arguments)
    assert "5 of them (25 %) are exactly 0 in both checkpoints: setting these to 0 does nothing." in plain(
        made.overview
    )
    assert "after both sides were rounded to bf16" in plain(made.overview)
    assert "exactly 0" in [panel.title for panel in figure(made, "zero_modes").panels][2]
    usual = section(runs["diff"])
    assert "setting these to 0" not in plain(usual.overview)
    assert "rounded" not in plain(usual.overview)
    assert not any("exactly 0" in panel.title for panel in figure(usual, "zero_modes").panels)


def test_what_a_diff_did_not_measure_is_left_out_and_said(runs: dict[str, Path], tmp_path: Path) -> None:
    def unmeasured(found: pd.DataFrame) -> pd.DataFrame:
        return found.assign(**{name: np.nan for name in ("ulps_median", "ulps_mean", "share_one_ulp") if name in found})

    tables = {**dict.fromkeys(LOOKED), "zero_modes": unmeasured, "zero_modes_ulps": None}
    made = changed(runs, "diff", tmp_path, tables)
    assert [spec.name for spec in made.figures] == ["zero_modes"]
    assert len(made.figures[0].panels) == 2
    assert "--ulps" in plain(made.missing)
    assert "--look" in plain(made.missing)
    usual = plain(section(runs["diff"]).missing)
    assert "--ulps" not in usual
    assert "--look" not in usual


def test_distances_are_shares_of_the_sample(runs: dict[str, Path]) -> None:
    ulps = table(runs["diff"], "zero_modes_ulps")
    [panel] = figure(section(runs["diff"]), "zero_modes_distances").panels
    assert isinstance(panel, Curves)
    own = ulps[(ulps["component"] == "k") & ulps["layer"].notna()]
    line = next(line for line in panel.curves if line.label == "W_K")
    for x, y in zip(line.x, line.y, strict=True):
        assert y == pytest.approx(100 * own.loc[own["ulps_from"] == x, "n_ulps"].sum() / own["n_ulps"].sum())
    assert line.y.sum() == pytest.approx(100)
    assert line.y[0] > 0


def test_a_diff_without_projections_has_sentences_and_no_heat_map(runs: dict[str, Path], tmp_path: Path) -> None:
    tables = {"zero_modes": lambda found: found[found["layer"].isna()]}
    made = changed(runs, "diff", tmp_path, tables)
    assert "zero_modes" not in [spec.name for spec in made.figures]
    assert "of all compared" in made.overview[0]
    assert "no projection matrix" in plain(made.missing)


def test_every_matrix_that_was_looked_at_has_a_figure(runs: dict[str, Path], pages: dict[str, str]) -> None:
    made, looked_at = section(runs["diff"]), RunView.open(runs["diff"]).manifest["looked_at"]
    drawn = [spec for spec in made.figures if spec.name.startswith("zero_modes_matrix_")]
    assert [spec.name for spec in drawn] == [f"zero_modes_matrix_{name.replace('/', '_')}" for name in looked_at]
    assert sum(spec.on_page for spec in drawn) == 4 < len(drawn)
    assert {spec.name.rsplit("_", 1)[1] for spec in drawn if spec.on_page} <= {"q", "k", "v", "o"}
    page = pages["diff"]
    assert all(page.count(f"{spec.name}") == (0 if spec.on_page else 1) for spec in drawn)


def test_a_spectrum_is_the_mean_over_draws_with_their_range(runs: dict[str, Path]) -> None:
    spectra = table(runs["diff"], "zero_modes_spectra")
    panel = figure(section(runs["diff"]), "zero_modes_matrix_1_k").panels[0]
    assert isinstance(panel, Curves)
    own = spectra[(spectra["layer"] == 1) & (spectra["component"] == "k") & (spectra["of"] == "mean_abs")]
    labels = {line.label: line for line in panel.curves}
    assert len(labels) == 5
    for label, weights in (("zero modes alone", "zero_modes"), ("random, same exponents", "matched")):
        values = own[own["weights"] == weights].pivot_table(index="frequency", columns="seed", values="amplitude")
        if values.empty:  # the zero modes have no seed
            values = own[own["weights"] == weights].set_index("frequency")[["amplitude"]]
        line = labels[label]
        assert np.array_equal(line.x, values.index)
        np.testing.assert_allclose(line.y, values.to_numpy().mean(axis=1), rtol=1e-12)
        assert (line.low is None) == (weights == "zero_modes")
        if line.low is not None and line.high is not None:
            assert np.array_equal(line.low, values.to_numpy().min(axis=1))
            assert np.array_equal(line.high, values.to_numpy().max(axis=1))
    harmonics = table(runs["diff"], "zero_modes_harmonics")
    first = harmonics[(harmonics["layer"] == 1) & (harmonics["component"] == "k")]["fundamental"].iloc[0]
    assert (panel.marks[0].x, panel.marks[0].label) == (float(first), str(first))
    assert all(mark.x is not None and mark.x % first == 0 for mark in panel.marks)


def test_pictures_are_the_arrays_of_the_run(runs: dict[str, Path], tmp_path: Path) -> None:
    images, listed = RunView.open(runs["diff"]).arrays("pictures"), table(runs["diff"], "zero_modes_images")
    shown = [
        panel for panel in figure(section(runs["diff"]), "zero_modes_matrix_0_q").panels if isinstance(panel, Picture)
    ]
    own = listed[(listed["layer"] == 0) & (listed["component"] == "q")].set_index("of")
    for panel, of in zip(shown, ("binarised", "spectrum_2d", "mask", "random", "matched"), strict=True):
        assert np.array_equal(panel.pixels, images[own.loc[of, "image"]])
    assert shown[0].shape == (own.loc["mask", "n_outputs"], own.loc["mask", "n_inputs"])
    tables = {"zero_modes_images": lambda found: found.assign(image=found["image"] + "?")}
    with pytest.raises(RunFolderError, match=r"has no picture '.*\?'; give the command again with --overwrite"):
        changed(runs, "diff", tmp_path, tables)


def test_the_most_affected_neuron_is_named_beside_its_controls(runs: dict[str, Path]) -> None:
    made, top = section(runs["diff"]), table(runs["diff"], "zero_modes_neurons_top")
    most = top.sort_values("change").iloc[-1]
    said = plain(made.overview)
    assert (
        f"is {most['neuron']} in {most['component']} of layer {most['layer']}: it loses {percent(most['change'])}"
        in said
    )
    assert f"under those of the same exponents {percent(most['largest_matched'])}" in said
    above = int((top["change"] > top["largest_matched"]).sum())
    assert f"in {above} of {len(top)} matrices." in said
    own = top[top["layer"] == 0].iloc[0]
    panels = figure(made, "zero_modes_neurons_0").panels
    losses = next(p for p in panels if isinstance(p, Curves) and p.note == own["component"] and "lost" in p.title)
    assert losses.marks[-1].label == f"neuron {own['neuron']}"
    assert losses.marks[-1].y == pytest.approx(100 * own["change"])
    assert losses.curves[-1].y[0] == pytest.approx(100 * own["change"])
    assert (np.diff(losses.curves[-1].y) <= 0).all()


def test_controls_of_neurons_are_sorted_draw_by_draw(runs: dict[str, Path]) -> None:
    """The mean of three draws spreads less than one: sorted after averaging, it would lie under any single draw."""
    neurons, made = table(runs["diff"], "zero_modes_neurons"), section(runs["diff"])
    own = neurons[(neurons["layer"] == 0) & (neurons["component"] == neurons["component"].iloc[0])]
    top = table(runs["diff"], "zero_modes_neurons_top").query("layer == 0").iloc[0]
    assert own["component"].iloc[0] == top["component"]
    panels = figure(made, "zero_modes_neurons_0").panels
    losses = next(p for p in panels if isinstance(p, Curves) and p.note == top["component"] and "lost" in p.title)
    for curve, of in zip(losses.curves, ("random", "matched"), strict=False):
        draws = [sorted(own[f"change_{of}_{draw}"], reverse=True) for draw in (1, 2, 3)]
        np.testing.assert_allclose(curve.y, [100 * sum(at) / 3 for at in zip(*draws, strict=True)])
        np.testing.assert_allclose(curve.low, [100 * min(at) for at in zip(*draws, strict=True)])
        np.testing.assert_allclose(curve.high, [100 * max(at) for at in zip(*draws, strict=True)])
        assert curve.y[0] == pytest.approx(100 * top[f"largest_{of}"])  # the dashed line is where the curve begins
        assert curve.y[0] > 100 * own[f"change_{of}"].max()


def test_runs_without_single_draws_are_refused_in_a_line(runs: dict[str, Path], tmp_path: Path) -> None:
    tables = {"zero_modes_neurons": lambda found: found.drop(columns=[f"change_matched_{draw}" for draw in (1, 2, 3)])}
    with pytest.raises(RunFolderError, match=r"no column change_matched_1.*--overwrite"):
        changed(runs, "diff", tmp_path, tables)


def test_structure_is_over_that_of_noise(runs: dict[str, Path]) -> None:
    planes = table(runs["diff"], "zero_modes_spectra_2d")
    panel = grid(section(runs["diff"]), "zero_modes_structure", "2-D")
    at = panel.columns.index("1/k")
    own = planes[(planes["layer"] == 1) & (planes["component"] == "k")]
    for place, of in enumerate(("binarised", "mask", "random", "matched")):
        rows = own[own["of"] == of]
        expected = float((rows["share_on_axes"] / rows["share_expected"]).mean())
        assert panel.values[place, at] == pytest.approx(expected)


def test_overlap_says_what_its_tables_hold(runs: dict[str, Path]) -> None:
    rows, made = table(runs["overlap"], "zero_modes_overlap"), section(runs["overlap"])
    said = plain(made.overview)
    whole = rows[rows["tensor"].isna() & (rows["component"] == "projections")]
    assert len(whole) == 3
    for row in whole.to_dict("records"):
        assert (
            f"{row['a']} has {row['n_a']:,} zero modes in the projection matrices and {row['b']} {row['n_b']:,}" in said
        )
        both = f"they share {row['n_both']:,}: {percent(row['n_both'] / row['n_a'])} of {row['a']}’s"
        assert both in said
        near = abs(row["n_both"] - row["n_both_by_chance"]) <= 2 * row["n_both_by_chance_sd"]
        text = f"{row['n_both_by_chance']:,.0f} ± {row['n_both_by_chance_sd']:,.0f}: they share "
        after = said.split(text)[1].split(";")[0]
        assert ("within two standard deviations" in after) == near
    together = table(runs["overlap"], "zero_modes_overlap_all")
    last = together[together["tensor"].isna() & (together["component"] == "projections")].iloc[0]
    assert f"{last['n_in_any']:,} weights in the projection matrices are zero modes of at least one of the 3" in said


def test_overlap_draws_each_pair_and_all_of_them(runs: dict[str, Path]) -> None:
    rows, made = table(runs["overlap"], "zero_modes_overlap"), section(runs["overlap"])
    assert [spec.name for spec in made.figures] == [f"zero_modes_overlap{end}" for end in ("", "_1", "_2", "_3")]
    panel = grid(made, "zero_modes_overlap", "Jaccard")
    assert np.isnan(np.diag(panel.values)).all()
    assert np.array_equal(panel.values, panel.values.T, equal_nan=True)
    a, b = panel.rows[0], panel.rows[2]
    own = rows[(rows["a"] == a) & (rows["b"] == b)]
    whole = own[own["tensor"].isna() & (own["component"] == "projections")].iloc[0]
    assert panel.values[0, 2] == pytest.approx(100 * whole["n_both"] / whole["n_either"])
    cell = own[own["tensor"].notna() & (own["component"] == "gate") & (own["layer"] == 1)].iloc[0]
    pair = grid(made, "zero_modes_overlap_2", "× chance within exponents")
    expected = cell["n_both"] / cell["n_both_by_chance_in_exponents"]
    assert pair.values[pair.rows.index("gate"), 1] == pytest.approx(expected)


def test_overlap_without_weights_says_so(runs: dict[str, Path], tmp_path: Path) -> None:
    def unknown(found: pd.DataFrame) -> pd.DataFrame:
        return found.assign(**{name: np.nan for name in found.columns if "exponents" in name})

    made = changed(runs, "overlap", tmp_path, {"zero_modes_overlap": unknown}, weights=None)
    assert "--weights" in plain(made.missing)
    assert "exponents" not in plain(made.overview)
    assert all("exponents" not in panel.title for spec in made.figures for panel in spec.panels)
    assert "--weights" not in plain(section(runs["overlap"]).missing)


def test_dynamics_says_what_its_tables_hold(runs: dict[str, Path]) -> None:
    rows, made = table(runs["dynamics"], "zero_modes_dynamics"), section(runs["dynamics"])
    said = plain(made.overview)
    whole = rows[rows["tensor"].isna() & rows["layer"].isna() & (rows["component"] == "projections")]
    last = whole[whole["checkpoint"] == 3].iloc[0]
    share_of = last["n_zero_modes"] / last["n_weights"]
    assert f"At {last['name']} {last['n_zero_modes']:,} of {last['n_weights']:,} weights" in said
    assert f"{percent(share_of)}. Of these, {last['n_never_changed']:,} never changed" in said
    assert (
        f"{last['n_came_back']:,} changed and came back ({percent(last['n_came_back'] / last['n_zero_modes'])})" in said
    )
    steps = np.diff(whole.sort_values("checkpoint")["fraction"])
    assert f"it fell at {(steps < 0).sum()} of 2 steps and rose at {(steps > 0).sum()}" in said


def test_dynamics_draws_a_line_a_component(runs: dict[str, Path]) -> None:
    rows, made = table(runs["dynamics"], "zero_modes_dynamics"), section(runs["dynamics"])
    panel = figure(made, "zero_modes_dynamics").panels[2]
    assert isinstance(panel, Curves)
    assert [line.label for line in panel.curves] == ["W_Q", "W_K", "W_V", "W_O", "gate", "up", "down"]
    own = rows[rows["tensor"].isna() & rows["layer"].isna() & (rows["component"] == "o")].sort_values("checkpoint")
    np.testing.assert_allclose(panel.curves[3].y, 100 * own["n_came_back"] / own["n_zero_modes"], rtol=1e-12)
    by_layer = figure(made, "zero_modes_dynamics_layers")
    assert [panel.note for panel in by_layer.panels] == [f"layer {k}" for k in range(len(by_layer.panels))]
    assert len(by_layer.panels) == rows["layer"].nunique()


def test_dynamics_of_many_layers_is_a_heat_map(runs: dict[str, Path], tmp_path: Path) -> None:
    def deep(found: pd.DataFrame) -> pd.DataFrame:
        inside = found[found["layer"].notna()]
        more = [inside.assign(layer=inside["layer"] + 2 * k) for k in range(1, 10)]
        return pd.concat([found, *more], ignore_index=True)

    made = changed(runs, "dynamics", tmp_path, {"zero_modes_dynamics": deep})
    (panel,) = figure(made, "zero_modes_dynamics_layers").panels
    assert isinstance(panel, Grid)
    assert panel.values.shape[0] == 3
    assert len(panel.columns) > 6
    rows = table(runs["dynamics"], "zero_modes_dynamics")
    own = rows[rows["tensor"].notna() & (rows["layer"] == 1) & (rows["checkpoint"] == 2)]
    own = own[own["component"].isin(PROJECTIONS)]
    assert panel.values[1, 1] == pytest.approx(100 * own["n_zero_modes"].sum() / own["n_weights"].sum())


def test_wanda_says_what_its_tables_hold(runs: dict[str, Path]) -> None:
    rows, made = table(runs["wanda"], "zero_modes_wanda"), section(runs["wanda"])
    said = plain(made.overview)
    whole = rows[rows["tensor"].isna() & (rows["component"] == "projections")].set_index(["by", "decile"])
    mean = whole.loc["wanda"]["n_zero_modes"].sum() / whole.loc["wanda"]["n_weights"].sum()
    assert said.startswith(f"{percent(mean)} of {whole.loc['wanda']['n_weights'].sum():,} weights")
    for by, start in (("wanda", "highest Wanda scores"), ("magnitude", "by |w| alone, of the highest tenth")):
        top = whole.loc[(by, 10)]
        own = top["n_zero_modes"] / top["n_weights"]
        assert f"{start} {percent(own)} are ({own / mean:#.3g} times the mean)" in said
    neurons = table(runs["wanda"], "zero_modes_wanda_neurons")
    assert f"all neurons {percent(neurons['fraction'].mean())}" in said
    panel = figure(made, "zero_modes_wanda").panels[0]
    assert isinstance(panel, Curves)
    for line, by in zip(panel.curves, ("wanda", "magnitude", "activation"), strict=True):
        np.testing.assert_allclose(line.y, 100 * whole.loc[by]["fraction"], rtol=1e-12)
    assert panel.marks[0].y == pytest.approx(100 * mean)


def test_wanda_draws_neurons_by_tenths_of_their_rank(runs: dict[str, Path]) -> None:
    neurons, made = table(runs["wanda"], "zero_modes_wanda_neurons"), section(runs["wanda"])
    panel = figure(made, "zero_modes_wanda_neurons").panels[0]
    assert isinstance(panel, Curves)
    assert [line.label for line in panel.curves] == ["gate", "up", "down"]
    first: dict[str, list[float]] = {}
    for (component, _), own in neurons.groupby(["component", "layer"]):
        best = own.sort_values("rank").iloc[: math.ceil(len(own) / 10)]
        first.setdefault(str(component), []).extend(best["fraction"])
    for line in panel.curves:
        assert line.y[0] == pytest.approx(100 * np.mean(first[line.label]))


def test_wanda_without_zero_modes_or_neurons(runs: dict[str, Path], tmp_path: Path) -> None:
    def none(found: pd.DataFrame) -> pd.DataFrame:
        return found.assign(n_zero_modes=0.0, fraction=0.0, over_mean=np.nan)

    made = changed(runs, "wanda", tmp_path, {"zero_modes_wanda": none, "zero_modes_wanda_neurons": None})
    assert "no zero modes" in plain(made.missing)
    assert "no neurons" in plain(made.missing)
    assert "zero_modes_wanda_neurons" not in [spec.name for spec in made.figures]
    write_report(tmp_path / "copy")


@pytest.mark.parametrize("study", STUDIES)
def test_nothing_but_nan_is_drawn_as_nothing(runs: dict[str, Path], tmp_path: Path, study: str) -> None:
    def nan(found: pd.DataFrame) -> pd.DataFrame:
        return found.assign(**dict.fromkeys(found.select_dtypes("float").columns, np.nan))

    copy = rewritten(runs[study], tmp_path / "copy", dict.fromkeys(RunView.open(runs[study]).tables, nan))
    page = write_report(copy).read_text(encoding="utf-8")
    assert not re.search(r"\bnan\b", re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL))


@pytest.mark.parametrize("study", STUDIES)
def test_broken_runs_are_one_line(runs: dict[str, Path], tmp_path: Path, study: str) -> None:
    name = "zero_modes" if study == "diff" else f"zero_modes_{study}"
    empty = rewritten(runs[study], tmp_path / "empty", {name: lambda found: found.head(0)})
    with pytest.raises(RunFolderError, match="no results to report yet"):
        write_report(empty)
    absent = rewritten(runs[study], tmp_path / "absent", {name: None})
    with pytest.raises(RunFolderError, match="no results to report yet"):
        write_report(absent)
    older = rewritten(runs[study], tmp_path / "older", {name: lambda found: found.drop(columns="component")})
    with pytest.raises(RunFolderError, match="lack 'component'; give the command again"):
        write_report(older)
    assert not (older / "report.html").exists()


def test_pages_of_all_studies_together(runs: dict[str, Path], tmp_path: Path) -> None:
    bare = rewritten(runs["diff"], tmp_path / "bare", dict.fromkeys(LOOKED))
    several = [bare, *(runs[study] for study in STUDIES[1:])]
    page = write_report(several, out=tmp_path / "all.html").read_text(encoding="utf-8")
    for title in ("Zero modes", "Overlap of zero modes", "Zero modes over a series", "Zero modes in the ranking"):
        assert f">{title}" in page
    identifiers = re.findall(r' id="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_a_long_table_is_shown_by_its_beginning(runs: dict[str, Path], pages: dict[str, str], tmp_path: Path) -> None:
    def long(found: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([found] * 200, ignore_index=True)

    copy = rewritten(runs["diff"], tmp_path / "copy", {**dict.fromkeys(LOOKED), "zero_modes": long})
    page = write_report(copy).read_text(encoding="utf-8")
    rows = 200 * len(table(runs["diff"], "zero_modes"))
    assert f"<code>zero_modes</code>, {rows:,} rows" in page
    assert "The first 2,000 rows; all are in <code>tables/zero_modes.parquet</code>." in page
    assert page.count("<tr>") < 2 * 2000
    assert "The first" not in pages["diff"].split("<h3>Tables")[1]


def test_facts_of_the_files(runs: dict[str, Path], pages: dict[str, str]) -> None:
    made = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", pages["diff"].split('id="made"')[1]))
    assert made["matrices looked at"].startswith("0/q, ")
    assert made["SHA-256 of the files"] == RunView.open(runs["diff"]).manifest["tuned"]["fingerprint"]
    assert made["--ulps"] == "50"
    assert "<summary>masks</summary>" in pages["overlap"]


def test_a_report_of_zero_modes_imports_neither_torch_nor_transformers(runs: dict[str, Path]) -> None:
    code = (
        "import sys; from lesion.report.sections import section_of; from lesion.results import RunView;"
        "[section_of(RunView.open(run)) for run in sys.argv[1:]];"
        "print(sorted({'torch', 'transformers', 'safetensors.torch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *(str(runs[study]) for study in STUDIES)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
