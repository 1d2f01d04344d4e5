"""Heat maps, images and long lines: what is drawn is what was given, in every cell, pixel and part of an axis."""

import base64
import io
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from lesion.report import palette
from lesion.report.content import AnyPanel, Curve, Curves, FigureSpec, Grid, Mark, Panel, Picture, Series
from lesion.report.drawing import grid as grids
from lesion.report.drawing.curves import thinned
from lesion.report.drawing.picture import shades
from lesion.report.drawing.style import tick
from lesion.report.figures import inline_panels, span, write_files
from tests.report.test_figures import contrast, luminance

SVG = "{http://www.w3.org/2000/svg}"


def figure(*panels: AnyPanel, columns: int = 3) -> FigureSpec:
    return FigureSpec("one", "caption", "label", panels, columns=columns)


def heat(values: list[list[float]], **more: object) -> Grid:
    array = np.array(values)
    rows, columns = (tuple(f"{name}{k}" for k in range(size)) for name, size in zip("rc", array.shape, strict=True))
    return Grid("share (%)", rows, more.pop("columns", columns), array, **more)  # type: ignore[arg-type]


def elements(panel: AnyPanel) -> ElementTree.Element:
    return ElementTree.fromstring(inline_panels(figure(panel), "p")[0])


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def cells(root: ElementTree.Element) -> dict[str, str]:
    """What is said of each cell when hovered, and the class of its colour."""
    return {
        str(path.find(f"{SVG}title").text): str(path.attrib["class"]).split()[0]  # type: ignore[union-attr]
        for path in root.iter(f"{SVG}path")
        if path.find(f"{SVG}title") is not None
    }


def test_every_cell_has_the_colour_and_the_words_of_its_number() -> None:
    values = [[0.0, 1.0, 2.0], [4.0, math.nan, 8.0]]
    root = elements(heat(values, unit="%"))
    expected = {}
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            name = f"r{row}, layer c{column}: "
            if math.isnan(value):
                expected[f"{name}nothing"] = "f-page"
            else:
                expected[f"{name}{value:.0f} %"] = f"f-heat_{min(15, int(16 * value / 8))}"
    assert cells(root) == expected
    assert {"0", "1", "2", "4", "8"} <= set(texts(root))
    assert not any(text in ("nan", "NaN", "–") for text in texts(root))


def test_numbers_in_cells_read_on_every_colour_of_the_scale() -> None:
    for step in range(palette.STEPS):
        role = "cell_low" if step < palette.STEPS // 2 else "cell_high"
        for scheme in (0, 1):
            assert contrast(palette.ROLES[role][scheme], palette.ROLES[f"heat_{step}"][scheme]) >= 4.5  # WCAG AA


def test_the_scale_is_even_and_leads_away_from_the_page() -> None:
    for scheme in (0, 1):
        shown = [luminance(palette.ROLES[f"heat_{step}"][scheme]) for step in range(palette.STEPS)]
        lightness = [116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y for y in shown]  # CIELAB's L*
        steps = np.diff(lightness) * (1 if scheme else -1)
        assert steps.min() > 0
        assert steps.max() / steps.min() < 1.6  # of 16 hexadecimal colours; matplotlib's jet has steps of both signs
        page = luminance(palette.ROLES["page"][scheme])
        assert abs(page - shown[0]) < abs(page - shown[-1])


def test_no_colour_stands_for_two_roles() -> None:
    shown = [colour.light for colour in palette.ROLES.values()]
    assert len(shown) == len(set(shown))


@pytest.mark.parametrize(
    ("layers", "width", "has_numbers"), [(2, 1, True), (12, 2, True), (18, 3, True), (80, 3, False)]
)
def test_two_layers_and_eighty(layers: int, width: int, has_numbers: bool) -> None:
    values = np.linspace(1.01, 5.99, 7 * layers).reshape(7, layers)
    panel = Grid("t", (*"qkvo", "gate", "up", "down"), tuple(map(str, range(layers))), values)
    assert span(panel) == width
    root = elements(panel)
    assert len(cells(root)) == 7 * layers
    inside = [text for text in texts(root) if re.fullmatch(r"\d\.\d\d", text)]
    assert (len(inside) >= 7 * layers) == has_numbers
    named = [text for text in texts(root) if text.isdecimal()]
    assert {"0"} <= set(named)
    assert len(named) <= 45  # of 80 numbers below the axis some are left out, so that none overlap


def test_names_of_columns_run_upwards_only_where_they_would_overlap() -> None:
    short, long = heat([[1.0, 2.0]]), heat([[1.0] * 12], columns=tuple(f"{k}/down" for k in range(12)))
    numbered = heat([[1.0] * 60], columns=tuple(map(str, range(60))))
    assert "rotate(-90)" not in inline_panels(figure(short), "p")[0]
    assert "rotate(-90)" in inline_panels(figure(long), "p")[0]
    assert "rotate(-90)" not in inline_panels(figure(numbered), "p")[0]


def test_scales_of_colours() -> None:
    assert grids.scale(heat([[2.0, 4.0]])) == (2, 4)
    assert grids.scale(heat([[2.0, 4.0]], include=0.0)) == (0, 4)
    assert grids.scale(heat([[2.0, 4.0]], include=5.0)) == (2, 5)
    assert grids.scale(heat([[1.0, 100.0]], include=0.0, scale="log")) == (1, 100)  # a logarithm has no 0
    assert all(math.isnan(end) for end in grids.scale(heat([[math.nan]])))
    assert [grids.step_of(value, 1.0, 100.0, True) for value in (1.0, 9.9, 10.1, 100.0)] == [0, 7, 8, 15]
    assert [grids.step_of(value, 1.0, 101.0, False) for value in (1.0, 50.9, 51.1, 101.0)] == [0, 7, 8, 15]
    assert grids.step_of(3.0, 3.0, 3.0, False) == 0
    assert grids.step_of(math.nan, 0.0, 1.0, False) is None


@pytest.mark.parametrize("values", [[[math.nan, math.nan]], [[3.0, 3.0]], [[0.0, 0.0]], [[-2.0, 2.0]], [[1e-9, 1e9]]])
def test_odd_heat_maps_are_drawn(tmp_path: Path, values: list[list[float]]) -> None:
    paths = write_files(figure(heat(values, scale="log", include=0.0)), tmp_path)
    ElementTree.fromstring(paths[0].read_text())
    assert "nan" not in "".join(texts(elements(heat(values)))).lower()


def test_a_thinned_line_covers_the_same_range_in_every_part_of_the_axis() -> None:
    random = np.random.default_rng(0)
    for log_x in (False, True):
        x, y = np.arange(1.0, 5001.0), random.standard_normal(5000)
        kept_x, kept_y = thinned(x, y, bins=50, log_x=log_x)
        assert kept_x.size <= 100
        assert (np.diff(kept_x) > 0).all()
        assert set(zip(kept_x, kept_y, strict=True)) <= set(zip(x, y, strict=True))  # points, not means
        place = np.log(x) if log_x else x
        low, high = place[0], place[-1]
        parts = np.minimum(((place - low) / (high - low) * 50).astype(int), 49)
        for part in np.unique(parts):
            of_it = np.isin(kept_x, x[parts == part])
            assert kept_y[of_it].min() == y[parts == part].min()
            assert kept_y[of_it].max() == y[parts == part].max()
        peaks_x, peaks_y = thinned(x, y, bins=50, log_x=log_x, peaks=True)
        assert peaks_x.size == np.unique(parts).size
        assert np.array_equal(peaks_y, [y[parts == part].max() for part in np.unique(parts)])
    short = thinned(x[:99], y[:99], bins=50)
    assert np.array_equal(short[1], y[:99])
    gap = np.where((x > 2000) & (x < 3000), np.nan, y)
    assert np.isnan(thinned(x, gap, bins=50)[1]).any()
    assert not np.isnan(thinned(x, y, bins=50)[1]).any()


def wave(n: int, **more: object) -> Curve:
    x = np.arange(1.0, n + 1)
    return Curve("a", "drop", x, 2 + np.sin(x), **more)  # type: ignore[arg-type]


def test_long_lines_have_no_markers_and_short_ones_say_their_values() -> None:
    short = inline_panels(figure(Curves("t", (wave(5, marker="o"),), "tenth")), "p")[0]
    long = inline_panels(figure(Curves("t", (wave(5000, marker="o"),), "tenth")), "p")[0]
    assert re.findall(r"<title>([^<]*)</title>", short) == [f"a, tenth {x}: {2 + math.sin(x):.3f}" for x in range(1, 6)]
    assert "<title>" not in long
    assert len(long) < 20_000  # of 5000 points those that a screen can tell apart


def test_marks_are_drawn_where_they_are() -> None:
    marks = (Mark("8", x=8.0), Mark("mean", y=2.0), Mark("neuron 7", x=7.0, y=2.5, role="swap"))
    bare = elements(Curves("t", (wave(40),), "f", log_x=True))
    root = elements(Curves("t", (wave(40),), "f", log_x=True, marks=marks))
    assert {"8", "mean", "neuron 7"} <= set(texts(root))
    assert not {"8", "mean", "neuron 7"} & set(texts(bare))
    dashes = [path.attrib["stroke-dasharray"] for path in root.iter(f"{SVG}path") if "stroke-dasharray" in path.attrib]
    assert len(dashes) == 2
    assert any("f-swap" in element.attrib.get("class", "") for element in root.iter())


def test_a_band_is_drawn_only_where_there_is_one() -> None:
    y = np.array([1.0, 2.0, 3.0])
    banded = wave(3, low=y - 0.5, high=y + 0.5)
    count = [
        inline_panels(figure(Curves("t", (line,), "x")), "p")[0].count("fill-opacity") for line in (wave(3), banded)
    ]
    assert count[0] == 0
    assert count[1] > 0


def test_deep_dips_do_not_flatten_a_logarithmic_axis() -> None:
    x = np.arange(1.0, 1001.0)
    y = np.where(x == 500, 1e-12, 10 ** np.sin(x))
    shown = texts(elements(Curves("t", (Curve("a", "drop", x, y),), "x", scale="log")))
    assert "0.1" in shown
    assert not any("10" in text and "⁻" in text for text in shown)
    few = Curve("a", "drop", x[:3], np.array([1e-6, 1.0, 10.0]))
    assert "10⁻⁶" in texts(elements(Curves("t", (few,), "x", scale="log")))  # every point of a short line is inside


@pytest.mark.parametrize("y", [[], [math.nan, math.nan], [0.0, 0.0], [-1.0, 1.0], [5.0, 5.0]])
def test_odd_lines_are_drawn(tmp_path: Path, y: list[float]) -> None:
    line = Curve("a", "drop", np.arange(1.0, len(y) + 1), np.array(y), marker="o")
    for log_x in (False, True):
        write_files(figure(Curves("t", (line,), "x", scale="log", log_x=log_x)), tmp_path)


def test_numbers_that_are_all_tiny_have_powers_of_ten() -> None:
    root = elements(heat([[0.0, 4.77e-5], [9.5e-5, math.nan]]))
    assert {"0", "4.8·10⁻⁵", "9.5·10⁻⁵"} <= {text.split(": ")[1] for text in cells(root) if "nothing" not in text}


def test_ticks_of_a_logarithm() -> None:
    assert [tick(value) for value in (0.03, 0.01, 1.0, 3000.0)] == ["0.03", "0.01", "1", "3000"]
    assert [tick(value) for value in (1e-3, 3e-4, 1e5)] == ["10⁻³", "3·10⁻⁴", "10⁵"]


def embedded(text: str) -> list[np.ndarray]:
    found = re.findall(r'href="data:image/png;base64,([^"]*)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in found]


def test_pixels_are_those_of_the_image_white_for_none(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (40, 60)).astype(np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255
    panel = Picture("zero modes", pixels, (400, 600), "input", "output")
    path = write_files(figure(panel), tmp_path)[0]
    for text in (inline_panels(figure(panel), "p")[0], path.read_text()):
        (image,) = embedded(text)
        assert image.shape == (40, 60, 3)
        assert np.abs(image[:, :, 0].astype(int) - (255 - pixels.astype(int))).max() <= 9  # 16 shades: half a step
        assert image[0, 0, 0] == 255
        assert image[0, 1, 0] == 0
        assert (image == image[:, :, :1]).all()
    assert np.array_equal(shades(np.array([0, 8, 9, 255], np.uint8)), [0, 0, 17, 255])


def test_an_image_has_the_places_of_its_matrix(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    plain, centred = (Picture("t", pixels, (64, 64), "input", "output", centred=value) for value in (False, True))
    assert "−20" not in texts(elements(plain))
    assert any(text.startswith("−") for text in texts(elements(centred)))
    large = texts(elements(Picture("t", pixels, (11008, 4096), "input", "output")))
    assert any(text.isdecimal() and int(text) > 4096 for text in large)
    for shape in ((1, 100_000), (100_000, 1), (1, 1)):
        write_files(figure(Picture("t", pixels[:1, :1], shape, "i", "o")), tmp_path)


def test_an_image_is_no_reference_and_fetches_nothing() -> None:
    text = inline_panels(figure(Picture("t", np.eye(9, dtype=np.uint8) * 255, (9, 9), "i", "o")), "p")[0]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in re.findall(r'href="([^"]*)"', text))
    assert "style=" not in text
    identifiers = set(re.findall(r' id="([^"]*)"', text))
    assert {value[1:] for value in re.findall(r'href="(#[^"]*)"', text)} <= identifiers
    assert 'class="plot"' in text


def test_panels_of_several_kinds_share_a_figure(tmp_path: Path) -> None:
    layers = np.arange(3.0)
    line = Series("drop", "drop", "o", layers, layers, layers / 10)
    wide = Grid("t", ("a",), tuple(map(str, range(12))), np.ones((1, 12)))
    panels = (
        Panel("KL", (line,)),
        Curves("t", (wave(9, dashed=True),), "x"),
        wide,
        Picture("t", np.eye(4), (4, 4), "i", "o"),
    )
    spec = figure(*panels)
    assert [span(panel) for panel in panels] == [1, 1, 2, 1]
    size = Image.open(write_files(spec, tmp_path)[1]).size
    assert size[0] == pytest.approx(3 * 2.55 * 220, abs=2)  # two ordinary panels, then a wide one beside an image
    inline = inline_panels(spec, "p")
    assert [('class="plot w2"' in text) for text in inline] == [False, False, True, False]


def test_a_legend_with_long_names_stays_inside(tmp_path: Path) -> None:
    lines = tuple(Curve(f"line {k} " + "n" * 30, "drop", np.arange(3.0), np.arange(3.0) + k) for k in range(5))
    narrow = Image.open(write_files(figure(Curves("t", lines, "x")), tmp_path)[1])
    few = Image.open(write_files(figure(Curves("t", lines[:1], "x")), tmp_path)[1])
    assert narrow.width == few.width
    assert narrow.height - few.height == pytest.approx(4 * 0.16 * 220, abs=2)  # a row a name
    margin = np.asarray(narrow.convert("L"))[:, -4:]
    assert margin.min() == 255
