"""The page: self-contained, escaped, under a policy that allows only our own style and script."""

import base64
import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from lesion.errors import InputError, RunFolderError
from lesion.report import write_report
from lesion.report.page import render
from lesion.report.sections import section_of
from lesion.results import RunView
from tests.report.report_runs import MakeRun, layers_manifest, layers_table, maker

HOSTILE = "<script>alert(1)</script> $x$ \" ' & {{ 7 * 7 }} <img src=x onerror=alert(2)>"


class Elements(HTMLParser):
    """Collects tags with their attributes, and the text of style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"style": [], "script": []}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is not None:
            self.raw[self.cdata_elem][-1] += data


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    make_run = maker(tmp_path_factory.mktemp("hostile"))
    return page_of(make_run(name=HOSTILE, domains=("<b>bold</b>", "$y$"), reason=HOSTILE, status="partial"))


def test_policy_has_the_digests_of_the_style_and_script_on_the_page(hostile: str) -> None:
    found = Elements(hostile)
    policy = next(attrs["content"] for tag, attrs in found.tags if tag == "meta" and "http-equiv" in attrs)
    for kind, texts in found.raw.items():
        assert len(texts) == 1
        source = base64.b64encode(hashlib.sha256(texts[0].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{source}'" in str(policy)
    assert str(policy).startswith("default-src 'none'; ")
    assert "unsafe" not in str(policy)


def test_nothing_that_the_policy_would_block_or_fetch(hostile: str) -> None:
    for tag, attrs in Elements(hostile).tags:
        assert "style" not in attrs, tag
        assert not [name for name in attrs if name.startswith("on")], tag
        assert tag not in {"link", "iframe", "object", "embed", "img", "base", "form"}, tag
        fetched = [attrs.get(name) or "" for name in ("src", "href", "xlink:href", "action", "srcset")]
        assert all(value == "" or value.startswith("#") for value in fetched), attrs
    assert "url(http" not in hostile
    assert "@import" not in hostile


def test_hostile_text_is_text(hostile: str) -> None:
    assert "<script>alert(1)" not in hostile
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $x$" in hostile
    assert "<img" not in hostile
    assert "<b>bold" not in hostile
    assert "{{ 7 * 7 }}" in hostile  # the template language is not run on data


def test_identifiers_are_unique_and_referenced(hostile: str) -> None:
    tags = Elements(hostile).tags
    identifiers = [str(attrs["id"]) for _, attrs in tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    for _, attrs in tags:
        for name in ("href", "aria-labelledby"):
            if attrs.get(name):
                assert str(attrs[name]).removeprefix("#") in identifiers


def test_accessible_structure(hostile: str) -> None:
    tags = Elements(hostile).tags
    names = [tag for tag, _ in tags]
    assert names.count("h1") == 1
    assert names.count("table") == names.count("caption") == 2
    plots = [attrs for tag, attrs in tags if tag == "svg" and attrs.get("class") == "plot"]
    assert len(plots) == 3 + 3 + 2 + 4
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in plots)


def test_status_is_shown_only_where_the_run_is_not_complete(make_run: MakeRun, hostile: str) -> None:
    assert "This run is not complete</strong> (status partial" in hostile
    assert "not complete" not in page_of(make_run("whole"))


def test_tables_are_complete(make_run: MakeRun) -> None:
    table = layers_table(3)
    page = page_of(make_run(table=table, n_layers=3))
    body = page.split("<tbody>")[1].split("</tbody>")[0]
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in body.split("</tr>")[:-1]]
    assert len(rows) == len(table) == 11
    assert all(len(row) == len([name for name in table.columns if not name.endswith("_sem")]) for row in rows)
    keys = [float(key) for key in re.findall(r'data-key="([^"]*)"', body)]
    for column in ("kl_nats", "loss_change_nats", "entropy_bits"):
        for value in table[column]:
            assert any(key == pytest.approx(value, rel=1e-7) for key in keys)  # keys have eight digits


@pytest.mark.parametrize(
    ("changes", "present", "absent"),
    [
        ({}, ["layers_blocks", "layers_parts", "layers_loss"], ["layers_domains"]),
        ({"domains": ("a", "b")}, ["layers_domains"], []),
        ({"table": layers_table(8, labels=False), "objective": "image"}, ["layers_blocks"], ["layers_loss"]),
        ({"table": layers_table(8, kinds=("drop",))}, ["layers_blocks"], ["layers_parts"]),
        ({"n_layers": 1}, ["layers_blocks"], []),
        ({"table": layers_table(4, n_documents=1), "n_layers": 4}, ["layers_loss"], []),
    ],
)
def test_figures_follow_what_was_measured(
    make_run: MakeRun, changes: dict[str, object], present: list[str], absent: list[str]
) -> None:
    run = make_run(**changes)
    page = page_of(run)
    written = {path.name for path in (run / "figures").iterdir()}
    assert {f"{name}.{kind}" for name in present for kind in ("svg", "png")} <= written
    assert not any(path.startswith(name) for path in written for name in absent)
    assert page.count("<figure ") == len(written) / 2


def test_deep_models_and_many_domains(make_run: MakeRun) -> None:
    table = layers_table(48, kinds=("drop",))
    page = page_of(make_run(table=table, n_layers=48, domains=tuple(f"d{k}" for k in range(9))))
    assert "The 8 largest of 9 domains" in page


def test_null_and_odd_columns_do_not_stop_the_page(make_run: MakeRun) -> None:
    table = layers_table(4).astype({"loss_nats": object})
    table.loc[0, "kl_nats"] = None
    table["loss_nats"] = None
    assert "no labels" in page_of(make_run(table=table, n_layers=4))


def test_sizes_that_a_model_does_not_have_are_left_out(make_run: MakeRun) -> None:
    run = make_run(table=layers_table(3, labels=False), n_layers=3, objective="image")
    view = RunView.open(run)
    page = page_of(run)
    assert "3 layers, 6 heads, 192 dimensions, 2,048 outputs, 4,200,000 parameters" in page
    assert "61,440 images" in page
    assert "documents" not in page.split("<h3>Tables")[0]
    view.manifest["model"] |= {"n_heads": None, "vocabulary": None}
    text = render([(view.manifest, section_of(view))])
    assert "3 layers, 192 dimensions, 4,200,000 parameters" in text


def test_same_tables_same_page(make_run: MakeRun) -> None:
    run = make_run()
    assert page_of(run) == page_of(run)


def test_several_runs_share_a_page(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("a", name="one"), make_run("b", name="two", n_layers=4)]
    page = write_report(runs, out=tmp_path / "both.html").read_text()
    assert "Layer interventions: one" in page
    assert "Layer interventions: two" in page
    assert "Figure 6." in page
    with pytest.raises(InputError, match="--out"):
        write_report(runs)


def test_a_run_without_results_is_one_clear_line(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no results to report yet \(status failed\)"):
        write_report(make_run("empty", table=layers_table(2).head(0), n_layers=2, status="failed", counts={}))
    with pytest.raises(RunFolderError, match=r"no report is known for the study 'other'"):
        write_report(make_run("other", study="other"))
    with pytest.raises(RunFolderError, match="not a lesion run folder"):
        write_report(tmp_path / "nowhere")
    edited = make_run("edited")
    pd.DataFrame({"layer": [0]}).to_parquet(edited / "tables" / "layers.parquet")
    with pytest.raises(RunFolderError, match=r"not the file that run\.json records"):
        write_report(edited)
    assert not (edited / "report.html").exists()


def test_report_imports_neither_torch_nor_transformers(make_run: MakeRun) -> None:
    code = (
        "import sys; from lesion.report import write_report; write_report(sys.argv[1]);"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(make_run())], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def facts_of(page: str) -> dict[str, str]:
    made = page.split('id="made"')[1]
    return dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", made))


def test_how_it_was_made_is_said_in_words(make_run: MakeRun) -> None:
    manifest = layers_manifest(layers_table(8), ["web"], name="base", n_layers=8, objective="causal")
    model = {**manifest["model"], "configuration": {"rope_theta": 1e4, "rope_scaling": {"type": None}}}
    found = facts_of(page_of(make_run(model=model, domains=("web", "code"))))
    assert found["width of the residual stream"] == "192"
    assert found["SHA-256 of configuration and weights"] == "ab" * 32
    assert found["tokens a second"] == "10220.5"
    assert (found["--context"], found["--layers"]) == ("256", "not given")
    assert (found["web: documents"], found["code: documents"]) == ("120", "120")
    assert (found["rope_theta"], found["rope_scaling: type"]) == ("10000", "none")
    assert found["torch"] == "2.13.0"
    assert not [name for name in found if "_" in name and not name.startswith("rope_")]


@pytest.mark.parametrize(("vocabulary", "worse"), [(2048, False), (9, True)])
def test_a_model_that_is_worse_than_guessing_is_pointed_out(make_run: MakeRun, vocabulary: int, worse: bool) -> None:
    """The loss of the synthetic runs is 2.31 nats; guessing costs 7.62 among 2048 outputs, and 2.20 among 9."""
    manifest = layers_manifest(layers_table(8), ["web"], name="base", n_layers=8, objective="causal")
    page = page_of(make_run(model={**manifest["model"], "vocabulary": vocabulary}))
    assert ("is above that of guessing all 9 outputs alike, 2.20 nats: are the tokenizer" in page) == worse
    assert ("above that of guessing" in page) == worse
