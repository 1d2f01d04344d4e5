"""Figures: what is drawn is what is in the table, with safe attributes, the same bytes every time."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from lesion.report import axes, palette, svg
from lesion.report.content import FigureSpec, Panel, Series
from lesion.report.figures import clean, inline_panels, write_files


def line(y: list[float], *, label: str = "drop", sem: float = 0.01, role: str = "drop") -> Series:
    return Series(label, role, "o", np.arange(len(y), dtype=float), np.array(y), np.full(len(y), sem))


def figure(*lines: Series, **changes: object) -> FigureSpec:
    panel = Panel("KL (nats a token)", lines, **changes)  # type: ignore[arg-type]
    return FigureSpec("one", "caption", "label", (panel,))


@pytest.mark.parametrize("label", ["drop", "$x$", "<script>alert(1)</script>", "_hidden", "a\x00b", "模型", "$\\frac{"])
def test_files_are_whole_safe_and_deterministic(tmp_path: Path, label: str) -> None:
    spec = figure(line([5.0, 0.1, 0.2], label=label))
    contents = []
    for name in ("a", "b"):
        paths = write_files(spec, tmp_path / name)
        assert [path.name for path in paths] == ["one.svg", "one.png"]
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert contents[0][1].startswith(b"\x89PNG")
    root = ElementTree.fromstring(contents[0][0])
    assert not any("style" in element.attrib for element in root.iter())
    assert not any(element.tag.endswith(("}style", "}script", "}metadata")) for element in root.iter())
    assert clean(label) in [element.text for element in root.iter() if element.tag.endswith("}text")]


def test_points_have_their_values_and_adapt_to_dark() -> None:
    spec = figure(line([5.0, 0.1, float("nan"), 0.2]), line([4.0, 0.2, 0.1, 0.3], label="<b>", role="swap"))
    (text,) = inline_panels(spec, "f1")
    titles = re.findall(r"<title>([^<]*)</title>", text)
    assert [title.replace("\u00a0", " ") for title in titles[:4]] == [
        "drop, layer 1: 0.100 ± 0.010",  # the point of layer 0 is beyond the axis, that of layer 2 is NaN
        "drop, layer 3: 0.200 ± 0.010",
        "&lt;b&gt;, layer 1: 0.200 ± 0.010",
        "&lt;b&gt;, layer 2: 0.100 ± 0.010",
    ]
    assert "↑ 5.0" in text
    assert "s-drop" in text
    assert "f-swap" in text
    assert "style=" not in text
    assert set(re.findall(r' id="([^"]*)"', text)) == set(re.findall(r'(?:href="|url\()#([^")]*)', text))
    assert 'aria-label="label: KL (nats a token)"' in text


def test_a_colour_outside_the_palette_is_refused() -> None:
    assert palette.role_of("#C2480A") == "drop"
    with pytest.raises(ValueError, match="not in the palette"):
        palette.role_of("#123456")
    with pytest.raises(ValueError, match="no attribute"):
        svg.standalone('<svg xmlns="http://www.w3.org/2000/svg" style="filter: blur(1px)"/>', "x")


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    "role", [role for role in palette.ROLES if not role.startswith(("page", "rule", "cell", "heat"))]
)
def test_every_colour_reads_on_light_and_on_dark(role: str) -> None:
    for scheme in (0, 1):
        assert contrast(palette.ROLES[role][scheme], palette.ROLES["page"][scheme]) >= 4.5  # WCAG AA for text


def test_logarithm_only_where_it_is_warranted() -> None:
    wide, narrow = line([8.0, 0.1, 0.2, 1.0]), line([0.3, 0.1, 0.2, 0.4])
    assert axes.is_log([Panel("t", (wide,), scale="log")])
    assert not axes.is_log([Panel("t", (wide,))])
    assert not axes.is_log([Panel("t", (narrow,), scale="log")])
    assert not axes.is_log([Panel("t", (line([8.0, 0.0, 0.2]),), scale="log")])
    assert not axes.is_log([Panel("t", (line([]),), scale="log")])


def test_axis_is_cut_only_where_an_outer_layer_would_flatten_the_others() -> None:
    cut = Panel("t", (line([9.0, 0.1, -0.2, 0.3, 0.5]),))
    low, high = axes.limits([cut])
    assert low < -0.2
    assert 0.5 < high < 1
    assert axes.has_beyond([cut], shared=False)
    whole = Panel("t", (line([0.8, 0.1, -0.2, 0.3, 0.5]),))
    assert axes.limits([whole])[1] > 0.81
    assert not axes.has_beyond([whole], shared=False)


def test_ticks() -> None:
    assert axes.layer_ticks(np.array([0.0, 7.0])) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert axes.layer_ticks(np.array([0.0, 47.0])) == [0, 6, 12, 18, 24, 30, 36, 42]
    assert axes.layer_ticks(np.array([0.0])) == [0]
    assert axes.log_ticks(0.05, 12.0) == [0.1, 1.0, 10.0]
    assert axes.log_ticks(0.2, 5.0) == pytest.approx([0.3, 1.0, 3.0])
