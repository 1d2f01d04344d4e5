"""The page of an ablation of zero modes, from hand-made tables: each claim stands, and falls with its interval."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from lesion.report import write_report
from lesion.report.content import Curve, Curves, Dots, FigureSpec, Grid, Mark, Section
from lesion.report.drawing import dots
from lesion.report.figures import inline_panels, legend_lines, span, write_files
from lesion.report.sections import section_of
from lesion.results import RunFolder, RunView

NAN = math.nan
CLEAN, SEM = 2.5, 0.1
RANDOM = ("random", "random_matched")
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>x</script> \u202e_$\\frac{1}$ " + "long " * 30


def lane(kind: str, scope: str, loss: float, seed: int | None = None, **more: Any) -> dict[str, Any]:
    """A row of the table of lanes: 100 of 1,000 weights, 20 of a control's zero modes themselves."""
    own = {"none": 0, "random": 20, "random_matched": 20, "zero_modes": 100}.get(kind, 0)
    return {
        "target": "tuned",
        "kind": kind,
        "seed": seed,
        "scope": scope,
        "value": "zero",
        "disjoint": False,
        "n_weights_set": {"none": 0, "complement": 900, "keep_only": 900}.get(kind, 100),
        "n_zero_modes_set": own,
        "n_weights_in_scope": 0 if kind == "none" else 1000,
        "n_tokens": 4000,
        "n_documents": 20,
        "loss_nats": loss,
        "loss_sem": SEM,
        "loss_change_nats": loss - CLEAN,
        "loss_change_nats_sem": 0.05,
        **more,
    }


def gap(control: str, scope: str, value: float, low: float, high: float, *, n_seeds: int = 3) -> list[dict[str, Any]]:
    """Rows of contrasts: each seed's (which must not be taken for the mean), then the mean's."""
    one = {"target": "tuned", "scope": scope, "kind": "zero_modes", "control": control, "difference_nats": value}
    mean = [{**one, "seed": None, "n_seeds": n_seeds, "low_nats": low, "high_nats": high}] if n_seeds > 1 else []
    alone = {"low_nats": low, "high_nats": high} if n_seeds == 1 else {"low_nats": 7.0, "high_nats": 9.0}
    return [{**one, "seed": seed, "n_seeds": 1, **alone} for seed in range(n_seeds)] + mean


def lanes(losses: Mapping[str, Mapping[str, float | Sequence[float]]], **more: Any) -> list[dict[str, Any]]:
    """Rows of lanes from losses by scope and kind; of a random kind one a seed."""
    rows = [lane("none", "all", CLEAN, **more)]
    for scope, kinds in losses.items():
        for kind, found in kinds.items():
            if isinstance(found, Sequence):
                rows += [lane(kind, scope, loss, seed, **more) for seed, loss in enumerate(found)]
            else:
                rows.append(lane(kind, scope, found, **more))
    return rows


ALL = {"zero_modes": 4.0, "random": [2.9, 3.0, 3.1], "random_matched": [3.5, 4.0, 4.8]}
GAPS = gap("random", "all", 1.0, 0.5, 1.5) + gap("random_matched", "all", -0.1, -0.6, 0.4)


def make(
    folder: Path,
    rows: list[dict[str, Any]],
    contrasts: list[dict[str, Any]] | None = None,
    *,
    domains: Mapping[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] | None = None,
    name: str = "tuned",
    warnings: Sequence[str] = (),
    **arguments: Any,
) -> Path:
    """A run folder with these tables; without `domains` those by domain are of one domain."""
    given = {"kinds": [], "seeds": [0, 1, 2], "value": "zero", "disjoint": False, "include": [], "edits": []}
    manifest = {
        "study": "zero-modes ablate",
        "command": "lesion zero-modes ablate tuned masks",
        "arguments": given | arguments,
        "model": {"name": name, "family": "llama", "n_layers": 4},
        "warnings": list(warnings),
    }
    each = domains or {"text": (rows, contrasts or [])}
    with RunFolder.open(folder, identity={"study": "zero-modes ablate"}, manifest=manifest) as run:
        run.write_table("zero_mode_ablation", frame(rows))
        by = [frame([{"domain": domain, **row} for row in own]) for domain, (own, _) in each.items()]
        run.write_table("zero_mode_ablation_by_domain", pd.concat(by, ignore_index=True))
        if contrasts:
            run.write_table("zero_mode_contrasts", frame(contrasts))
            by = [frame([{"domain": domain, **row} for row in own]) for domain, (_, own) in each.items()]
            run.write_table("zero_mode_contrasts_by_domain", pd.concat(by, ignore_index=True))
        run.finish("complete")
    return folder


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    counts = ("seed", "n_weights_set", "n_zero_modes_set", "n_weights_in_scope")
    table = pd.DataFrame.from_records(rows)
    return table.astype({name: "Int64" for name in counts if name in table})


def section(folder: Path, *given: Any, **more: Any) -> Section:
    return section_of(RunView.open(make(folder, *given, **more)))


def plain(texts: Sequence[str]) -> str:
    return " ".join(texts).replace("\u00a0", " ").replace("\u2212", "-")


def figure(made: Section, name: str) -> FigureSpec:
    return next(spec for spec in made.figures if spec.name == f"zero_mode_ablation_{name}")


def test_the_overview_says_the_losses_of_the_tables(tmp_path: Path) -> None:
    said = plain(section(tmp_path / "run", lanes({"all": ALL}), GAPS).overview)
    assert "As it is, the model has a loss of 2.50 ± 0.10 nats." in said
    assert (
        "without zero modes (10 % of 1,000 weights, set to 0) the loss is 4.00 ± 0.10, a change of +1.500 ± 0.050"
    ) in said
    assert "random weights (mean of 3 draws, 2.900 to 3.100) the loss is 3.000, a change of +0.5000" in said
    assert "of the same size (mean of 3 draws, 3.50 to 4.80) the loss is 4.100, a change of +1.600" in said
    assert "complement" not in said
    assert "no zero modes" not in said
    assert "set to the mean" not in said


def test_what_was_kept_and_the_value_are_said_where_asked(tmp_path: Path) -> None:
    kinds = {**ALL, "complement": 7.0, "keep_only": 9.0}
    rows = lanes({"all": kinds}, value="mean")
    said = plain(section(tmp_path / "run", rows, GAPS).overview)
    assert (
        "Without all weights that are no zero modes (90 % of 1,000 weights, set to the mean of their matrix) the loss "
        "is 7.00 ± 0.10, a change of +4.500 ± 0.050."
    ) in said
    assert "With zero modes kept alone (90 % of 1,000 weights set to 0) the loss is 9.00" in said


@pytest.mark.parametrize(
    ("value", "low", "high", "claim"),
    [
        (0.4, 0.1, 0.7, "matter more than weights of the same size: the loss without them is 0.40 nats higher"),
        (-0.4, -0.7, -0.1, "matter less than weights of the same size: the loss without them is 0.40 nats lower"),
        (0.4, -0.1, 0.9, "more or less than weights of the same size stays open: the loss without them is 0.40 nats"),
        (0.4, 0.0, 0.8, "stays open"),  # an end at 0 is inside
        (-0.4, -0.8, 0.0, "stays open"),
        (0.4, NAN, NAN, "it has no interval, so that nothing follows from it"),
        (NAN, NAN, NAN, ""),
    ],
)
def test_a_verdict_follows_from_the_interval_alone(
    tmp_path: Path, value: float, low: float, high: float, claim: str
) -> None:
    contrasts = gap("random_matched", "all", value, low, high)
    said = plain(section(tmp_path / "run", lanes({"all": ALL}), contrasts).overview)
    assert claim in said
    claims = ("matter more than", "matter less than", "stays open", "has no interval")
    assert [text for text in claims if text in said] == [text for text in claims if text in claim]
    assert "9.0" not in said  # the interval of a single seed is not that of the mean


def test_one_draw_is_called_one_draw(tmp_path: Path) -> None:
    losses = {"zero_modes": 4.0, "random": [3.0]}
    made = section(tmp_path / "one", lanes({"all": losses}), gap("random", "all", 1.0, 0.5, 1.5, n_seeds=1), seeds=[5])
    said = plain(made.overview)
    assert "random weights (one draw) the loss is 3.00 ± 0.10" in said
    assert "matter more than the one draw of random weights" in said
    assert "were drawn once" in plain(made.missing)
    assert "drawn once, from seed 5" in plain(made.measured)
    several = section(tmp_path / "several", lanes({"all": ALL}), GAPS)
    assert "one draw" not in plain(several.overview)
    assert "drawn once" not in plain((*several.missing, *several.measured))


def of_layers(value: Mapping[int, tuple[float, float, float]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Layers with given differences to weights of the same size, and a loss that rises from the last to the first."""
    losses = {f"layer:{at}": {"zero_modes": 4.0 - at / 10, "random_matched": [3.0, 3.2]} for at in value}
    found = [row for at, ends in value.items() for row in gap("random_matched", f"layer:{at}", *ends, n_seeds=2)]
    return lanes(losses), found


MORE, LESS, OPEN, NONE = (0.5, 0.2, 0.8), (-0.5, -0.8, -0.2), (0.5, -0.2, 1.2), (0.5, NAN, NAN)


def test_layers_are_counted_by_their_intervals(tmp_path: Path) -> None:
    made = section(tmp_path / "run", *of_layers({0: OPEN, 1: MORE, 2: MORE, 3: MORE, 4: LESS, 10: OPEN, 11: NONE}))
    said = plain(made.overview)
    assert (
        "hurts most in layer 0, by +1.500 ± 0.050 nats; whether more than weights of the same size stays open" in said
    )
    assert "the difference is +0.50 nats (95 % interval -0.20 to 1.20, which holds 0)." in said
    assert (
        "Of 6 layers, zero modes matter more than weights of the same size in 3 (1–3) and less in 1 (4); in 2 the "
        "interval holds 0."
    ) in said
    assert "not corrected for their number: by chance 5 % of them exclude 0, here 0.3 of 6." in said


@pytest.mark.parametrize(
    ("ends", "claim"),
    [(MORE, "there they matter more than"), (LESS, "there they matter less than"), (OPEN, "stays open"), (NONE, "")],
)
def test_the_worst_layer_beats_its_control_only_where_the_interval_says_so(
    tmp_path: Path, ends: tuple[float, float, float], claim: str
) -> None:
    said = section(tmp_path / "run", *of_layers({0: ends, 1: NONE})).overview[1]
    assert "hurts most in layer 0" in said
    assert claim in said
    others = {"there they matter more than", "there they matter less than", "stays open"} - {claim}
    assert not [other for other in others if other in said]


def test_losses_that_fall_are_not_said_to_hurt(tmp_path: Path) -> None:
    rows, contrasts = of_layers({0: OPEN, 1: OPEN})
    falling = [row | {"loss_change_nats": -0.2 - row["loss_nats"] / 100} for row in rows]
    said = plain(section(tmp_path / "run", falling, contrasts).overview)
    assert "helps least in layer 1, by -0.239" in said
    assert "hurts" not in said


def test_layers_are_drawn_as_the_tables_have_them(tmp_path: Path) -> None:
    rows, contrasts = of_layers({2: OPEN, 0: MORE, 1: NONE})
    panels = figure(section(tmp_path / "run", rows, contrasts), "layers").panels
    losses, differences = panels
    assert isinstance(losses, Curves)
    assert isinstance(differences, Curves)
    zero_modes, matched = losses.curves
    assert zero_modes.x.tolist() == [0, 1, 2]
    assert zero_modes.y.tolist() == pytest.approx([4.0, 3.9, 3.8], abs=1e-12)
    assert zero_modes.low is zero_modes.high is None
    assert matched.y.tolist() == pytest.approx([3.1] * 3, abs=1e-12)
    assert matched.low is not None
    assert matched.high is not None
    assert (matched.low.tolist(), matched.high.tolist()) == ([3.0] * 3, [3.2] * 3)
    assert [mark.y for mark in losses.marks] == [CLEAN]
    assert [mark.y for mark in differences.marks] == [0.0]
    (line,) = differences.curves
    assert line.low is not None
    assert line.y.tolist() == [0.5] * 3
    np.testing.assert_array_equal(line.low, [0.2, NAN, -0.2])


def test_others_are_drawn_on_an_axis_of_their_own(tmp_path: Path) -> None:
    losses = {f"layer:{at}": {"zero_modes": 3.0, "complement": 9.0, "keep_only": 8.0} for at in range(3)}
    panels = figure(section(tmp_path / "run", lanes(losses)), "layers").panels
    assert [[line.label for line in panel.curves] for panel in panels if isinstance(panel, Curves)] == [
        ["zero modes"],
        ["all but zero modes", "zero modes kept alone"],
    ]


def test_components_and_scopes_are_rows(tmp_path: Path) -> None:
    scopes = ["all", "group:QK", "layers:0-1", "layer:0/gate", "component:q", "component:down"]
    contrasts = [row for at, scope in enumerate(scopes) for row in gap("random", scope, at, at - 1.0, at + 1.0)]
    made = section(tmp_path / "run", lanes(dict.fromkeys(scopes, ALL)), contrasts)
    for name, named in (("components", ["W_Q", "down"]), ("scopes", scopes[:4])):
        losses, differences = figure(made, name).panels
        assert isinstance(losses, Dots)
        assert isinstance(differences, Dots)
        assert list(losses.rows) == list(differences.rows) == named
        assert [line.label for line in losses.curves] == ["zero modes", "random weights", "matched in size"]
        assert differences.curves[0].y.tolist() == [4, 5] if name == "components" else [0, 1, 2, 3]
    said = plain(made.overview)
    assert "By component, taking zero modes away hurts most in W_Q" in said
    assert "matter more than random weights in 2 (W_Q and down) and less in none." in said
    assert "In group:QK, without zero modes (10 % of 1,000 weights, set to 0)" in said


def test_heads_are_drawn_by_layer_and_head(tmp_path: Path) -> None:
    found = {"head:0:0": MORE, "head:0:1": LESS, "head:2:0": OPEN, "head:2:3": NONE}
    losses = {scope: {"zero_modes": 3.0 + at, "random": [3.0, 3.2]} for at, scope in enumerate(found)}
    contrasts = [row for scope, ends in found.items() for row in gap("random", scope, *ends, n_seeds=2)]
    made = section(tmp_path / "run", lanes(losses), contrasts)
    changes, gaps, over = figure(made, "heads").panels
    assert isinstance(changes, Grid)
    assert isinstance(gaps, Grid)
    assert isinstance(over, Grid)
    assert (changes.rows, changes.columns) == (("0", "2"), ("0", "1", "3"))
    np.testing.assert_allclose(changes.values, [[0.5, 1.5, NAN], [2.5, NAN, 3.5]], atol=1e-12)
    np.testing.assert_allclose(gaps.values, [[0.5, -0.5, NAN], [0.5, NAN, 0.5]], atol=1e-12)
    np.testing.assert_allclose(over.values, [[5 / 3, -5 / 3, NAN], [5 / 7, NAN, NAN]], atol=1e-12)
    assert over.note == "2 of 3 beyond ±1"
    said = plain(made.overview)
    assert "in 1 (0:0) and less in 1 (0:1); in 1 the interval holds 0" in said
    assert "hurts most in head 2:3, by +3.50" in said


def test_domains_stand_beside_each_other(tmp_path: Path) -> None:
    rows, names = lanes({"all": ALL, "layer:0": ALL, "layer:1": ALL}), ("code", "prose", HOSTILE)
    ends = (MORE, OPEN, LESS)
    own = {name: (rows, gap("random_matched", "all", *end)) for name, end in zip(names, ends, strict=True)}
    made = section(tmp_path / "several", rows, GAPS, domains=own)
    said = plain(made.overview)
    assert "+0.50 nats (95 % interval 0.20 to 0.80, which is above 0) on code" in said
    assert "+0.50 nats (95 % interval -0.20 to 1.20, which holds 0) on prose" in said
    assert "-0.50 nats (95 % interval -0.80 to -0.20, which is below 0) on <script>" in said
    differences = figure(made, "domains").panels[1]
    assert isinstance(differences, Dots)
    assert differences.curves[0].y.tolist() == [0.5, 0.5, -0.5]
    assert [spec.on_page for spec in made.figures if re.search(r"layers_\d$", spec.name)] == [True, True, False]
    assert "12,000 positions of 60 documents" in figure(made, "domains").caption
    one = section(tmp_path / "one", rows, GAPS)
    assert "By domain" not in plain(one.overview)
    assert not [spec for spec in one.figures if "domains" in spec.name or spec.name[-1].isdecimal()]
    assert len(one.tables) + 1 == len(made.tables)


def test_the_compact_table_has_a_row_a_scope(tmp_path: Path) -> None:
    rows = lanes({"all": ALL, "component:q": {"zero_modes": 3.0, "random": [2.6, 2.6, 2.9]}})
    made = section(tmp_path / "run", rows, GAPS)
    spec, whole, contrasts = made.tables
    assert (spec.is_open, whole.is_open, contrasts.is_open) == (True, False, False)
    table = spec.frame.set_index("scope")
    assert list(table.index) == ["all", "W_Q"]
    assert table["% of weights"].tolist() == [10, 10]
    assert table["as it is"].tolist() == [CLEAN, CLEAN]
    assert table.loc["all", "zero modes"] == 4.0
    assert table.loc["all", "zero modes_sem"] == SEM
    assert table.loc["all", "random weights_sem"] == pytest.approx(0.1, abs=1e-12)  # the deviation of 2.9, 3.0, 3.1
    assert table.loc["W_Q", "random weights"] == pytest.approx(2.7, abs=1e-12)
    assert math.isnan(table.loc["W_Q", "matched in size"])
    assert table.loc["all", "− matched in size"] == -0.1
    assert plain(table["interval, matched in size"]) == "-0.60 to 0.40 "
    assert len(whole.frame) == len(rows)
    assert len(contrasts.frame) == len(GAPS)


@pytest.mark.parametrize(
    ("losses", "contrasts", "said", "unsaid"),
    [
        ({"complement": 7.0}, None, "Zero modes themselves were not taken away", "No random weights"),
        ({"zero_modes": 4.0}, None, "No random weights were taken away", "themselves were not"),
        ({"zero_modes": 4.0, "random": [3.0, 3.1]}, GAPS[:4], "only because they are larger", "No random weights"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, losses: dict[str, Any], contrasts: list[dict[str, Any]] | None, said: str, unsaid: str
) -> None:
    made = section(tmp_path / "run", lanes({"all": losses}), contrasts)
    assert said in plain(made.missing)
    assert unsaid not in plain(made.missing)
    assert ("Zero modes matter" in plain(made.overview)) == bool(contrasts)
    assert section(tmp_path / "whole", lanes({"all": ALL}), GAPS, warnings=["odd"]).missing == ("Warning: odd.",)


def test_a_scope_without_zero_modes_is_not_compared(tmp_path: Path) -> None:
    rows = lanes({"all": ALL, "layer:0": ALL, "layer:1": ALL})
    empty = [row | {"n_weights_set": 0, "n_zero_modes_set": 0} if row["scope"] == "layer:1" else row for row in rows]
    contrasts = GAPS + gap("random", "layer:0", *MORE) + gap("random", "layer:1", 0.0, 0.0, 0.0)
    made = section(tmp_path / "some", empty, contrasts)
    assert "Of 1 layer," in plain(made.overview)
    assert "There are no zero modes in layer:1: nothing is compared there." in plain(made.missing)
    none = [row | {"n_weights_set": 0, "n_zero_modes_set": 0} for row in rows]
    said = plain(section(tmp_path / "none", none, contrasts).overview)
    assert "There are no zero modes in what was asked for" in said
    assert "matter" not in said
    assert "hurt" not in said
    assert "Of 2 layers" in plain(section(tmp_path / "full", rows, contrasts).overview)


def test_a_loss_that_is_not_finite_is_named_and_never_compared(tmp_path: Path) -> None:
    rows = lanes({"all": {**ALL, "zero_modes": NAN}, "layer:0": {**ALL, "random": [3.0, NAN, 3.0]}, "layer:1": ALL})
    contrasts = gap("random", "all", NAN, NAN, NAN) + gap("random", "layer:0", NAN, NAN, NAN)
    made = section(tmp_path / "run", rows, contrasts + gap("random", "layer:1", *MORE))
    assert "not finite, and neither is any difference to it, of zero_modes in all and random in layer:0" in plain(
        made.missing
    )
    assert "(10 % of 1,000 weights, set to 0) the loss is not finite" in plain(made.overview)
    assert "Zero modes matter" not in plain(made.overview)
    assert "Of 1 layer, zero modes matter more than random weights in 1 (1)" in plain(made.overview)
    curve = next(line for line in figure(made, "layers").panels[0].curves if line.label == "random weights")  # type: ignore[union-attr]
    assert math.isnan(curve.y[0])
    assert curve.y[1] == pytest.approx(3.0, abs=1e-12)
    assert "finite" not in plain(section(tmp_path / "fine", lanes({"all": ALL}), GAPS).missing)


def test_one_document_has_no_errors_and_no_intervals(tmp_path: Path) -> None:
    alone = {"loss_sem": NAN, "loss_change_nats_sem": NAN, "n_documents": 1}
    made = section(tmp_path / "run", lanes({"all": ALL}, **alone), gap("random", "all", 1.0, NAN, NAN))
    said = plain(made.overview)
    assert "As it is, the model has a loss of 2.500 nats." in said
    assert "±" not in said
    assert "Zero modes matter" not in said
    assert "single document" in plain(made.missing)
    assert "single document" not in plain(section(tmp_path / "many", lanes({"all": ALL}), GAPS).missing)


def test_a_hundred_scopes_an_unknown_count_and_hostile_names_make_a_page(tmp_path: Path) -> None:
    losses = {f"layers:{at}-{at + 1}": {**ALL, "zero_modes": 3.0 + at / 100} for at in range(99)} | {HOSTILE: ALL}
    rows = [row | {"n_weights_set": None, "n_zero_modes_set": None} for row in lanes(losses)]
    run = make(tmp_path / "run", rows, [row for scope in losses for row in gap("random", scope, *OPEN)], name=HOSTILE)
    page = write_report(run).read_text(encoding="utf-8")
    assert "<script>x" not in page
    assert "nan" not in re.sub(r"<(style|script)>.*?</\1>|data-[a-z]+|name", "", page, flags=re.DOTALL).lower().split()
    made = section_of(RunView.open(run))
    drawn = figure(made, "scopes").panels[0]
    assert isinstance(drawn, Dots)
    assert len(drawn.rows) == 40
    assert {"layers:98-99", "layers:60-61"} <= set(drawn.rows)  # those that hurt most, in the order of the table
    assert "layers:0-1" not in drawn.rows
    assert "40 of 100 scopes are drawn" in plain(made.missing)
    assert {f"{spec.name}.{end}" for spec in made.figures for end in ("svg", "png")} == {
        path.name for path in (run / "figures").iterdir()
    }


def test_what_was_measured_is_said(tmp_path: Path) -> None:
    made = section(tmp_path / "run", lanes({"all": ALL}), GAPS)
    said = plain(made.measured)
    assert "means over 4,000 positions with a target in 20 documents" in said
    assert "weights are those of the tuned checkpoint" in said
    assert "Random weights were drawn for each of the seeds 0, 1 and 2." in said
    assert "Zero modes themselves are 20 % of random weights and 20 % of weights of the same size" in said
    assert "Scopes hold projection matrices in blocks;" in said
    terms = [term for term, _ in made.definitions]
    assert {"random weights", "matched in size", "matter more, less", "95 % interval"} <= set(terms)
    rows = [row | {"target": "base", "n_zero_modes_set": 0} for row in lanes({"all": ALL})]
    more = section(tmp_path / "more", rows, GAPS, include=["norm", "embed"], disjoint=True, edits=["drop:1"])
    other = plain(more.measured)
    assert "weights are those of the base checkpoint" in other
    assert "projection matrices in blocks, embed and norm;" in other
    assert "under drop:1" in other
    assert "drawn among weights that are no zero modes" in other
    assert "Zero modes themselves" not in other
    bare = section(tmp_path / "bare", lanes({"all": {"zero_modes": 3.0}}))
    assert "95 % interval" not in [term for term, _ in bare.definitions]


def panel_of(rows: Sequence[str], *lines: Curve) -> Dots:
    return Dots("loss (nats)", tuple(rows), lines, (Mark("", x=0.0),))


def line(y: Sequence[float], low: Sequence[float] | None = None, high: Sequence[float] | None = None) -> Curve:
    ends = (None if end is None else np.array(end) for end in (low, high))
    return Curve("a", "drop", np.arange(len(y), dtype=np.float64), np.array(y), *ends, marker="o")


def drawn(panel: Dots) -> ElementTree.Element:
    return ElementTree.fromstring(inline_panels(FigureSpec("one", "c", "l", (panel,)), "p")[0])


def test_points_say_their_values_and_their_intervals() -> None:
    root = drawn(panel_of(["q", "k", "v"], line([1.0, NAN, 3.0], [0.5, NAN, NAN], [1.5, NAN, 4.0])))
    said = [element.text for element in root.iter(f"{SVG}title")]
    assert said == ["a, q: 1.00 (0.50 to 1.50)", "a, v: 3.000"]
    assert {"q", "k", "v"} <= {element.text for element in root.iter(f"{SVG}text")}


def test_points_are_where_their_values_are() -> None:
    """Markers of two rows and two lines: further right the greater, further down the later."""
    root = drawn(panel_of(["q", "k"], line([1.0, 2.0]), line([4.0, 3.0])))
    placed = {
        str(use.find(f"{SVG}title").text): (float(use.attrib["x"]), float(use.attrib["y"]))  # type: ignore[union-attr]
        for use in root.iter(f"{SVG}use")
        if use.find(f"{SVG}title") is not None
    }
    across = [placed[f"a, {text}"][0] for text in ("q: 1.000", "k: 2.000", "k: 3.000", "q: 4.000")]
    assert np.diff(across) == pytest.approx([across[1] - across[0]] * 3, abs=1e-3)  # six decimals in the file
    assert across[1] > across[0]
    down = [placed[f"a, {text}"][1] for text in ("q: 1.000", "q: 4.000", "k: 2.000", "k: 3.000")]
    assert (np.diff(down) > 0).all()


def test_intervals_are_drawn_only_where_both_ends_are_known() -> None:
    def lines_of(panel: Dots) -> int:
        role = "s-drop"
        return sum(role in element.attrib.get("class", "").split() for element in drawn(panel).iter(f"{SVG}path"))

    both, one = line([1.0], [0.5], [1.5]), line([1.0], [NAN], [1.5])
    assert (
        lines_of(panel_of(["q"], both))
        == lines_of(panel_of(["q"], one)) + 1
        == lines_of(panel_of(["q"], line([1.0]))) + 1
    )


@pytest.mark.parametrize("y", [[NAN, NAN], [0.0, 0.0], [1e-9, 1e9], [-3.0, -3.0]])
def test_odd_points_are_drawn(tmp_path: Path, y: list[float]) -> None:
    panel = panel_of([HOSTILE, ""], line(y))
    paths = write_files(FigureSpec("one", "c", "l", (panel, Dots("t", ("q",), ())), columns=2), tmp_path)
    assert "nan" not in "".join(element.text or "" for element in ElementTree.parse(paths[0]).iter(f"{SVG}text"))
    assert span(panel) == 2


def test_sizes_and_legends_of_points() -> None:
    short, tall = panel_of(["q"], line([1.0])), panel_of([f"layers:{k}" for k in range(30)], line([1.0] * 30))
    assert span(short) == span(tall) == 1
    assert dots.size(tall)[1] - dots.size(short)[1] == pytest.approx(29 * dots.ROW, abs=1e-12)
    assert [found.label for found in legend_lines(FigureSpec("one", "c", "l", (short, tall)))] == ["a"]


def test_fewer_weights_of_the_same_size_are_called_fewer(tmp_path: Path) -> None:
    """With --disjoint there may be too few: a larger loss without zero modes is then no news."""
    rows = lanes({"all": ALL, "layer:0": ALL, "layer:1": ALL})
    short = [row | {"n_weights_set": 60} if row["kind"] == "random_matched" else row for row in rows]
    contrasts = [row for scope in ("all", "layer:0", "layer:1") for row in gap("random_matched", scope, *MORE)]
    contrasts += gap("random", "all", *MORE)
    made = section(tmp_path / "short", short, contrasts)
    said, missing = plain(made.overview), plain(made.missing)
    assert "without fewer weights of the same size (only 6 % of 1,000 weights; mean of 3 draws" in said
    assert "without as many random weights" in said
    assert "matter more than fewer weights of the same size" in said
    assert "matter more than random weights" in said
    assert "Of 2 layers, zero modes matter more than fewer weights of the same size in 2" in said
    assert "Fewer weights of the same size were taken away than there are zero modes, in all, layer:0 and" in missing
    whole = section(tmp_path / "whole", rows, contrasts)
    assert "ewer" not in plain((*whole.overview, *whole.missing))


def test_an_end_that_is_not_zero_does_not_read_zero(tmp_path: Path) -> None:
    for at, (low, shown) in enumerate([(0.0004, "0.0004 to 1.0000"), (0.0, "0.00 to 1.00"), (0.1, "0.10 to 1.00")]):
        contrasts = gap("random", "all", 0.5, low, 1.0)
        assert shown in plain(section(tmp_path / str(at), lanes({"all": ALL}), contrasts).overview)
