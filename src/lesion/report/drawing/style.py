"""What all panels share: sizes, fonts, titles, and text from data made fit for a figure."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lesion.report import svg
from lesion.report.palette import ROLES

PANEL = (2.55, 2.0)
"""Width of one panel, and its height without the title, in inches."""
LEFT, RIGHT, BOTTOM, TOP = 0.42, 0.13, 0.42, 0.03
"""Room around the axes of an ordinary panel, in inches."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
TITLE_LEFT = 0.24
"""How far left of its axes a title begins, in inches."""
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": ROLES["muted"].light,
    "axes.labelcolor": ROLES["ink"].light,
    "text.color": ROLES["ink"].light,
    "xtick.color": ROLES["muted"].light,
    "ytick.color": ROLES["muted"].light,
    "xtick.labelcolor": ROLES["ink"].light,
    "ytick.labelcolor": ROLES["ink"].light,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.2,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with dollar signs is a name
    "svg.fonttype": "none",
    "svg.hashsalt": "lesion",
    "savefig.facecolor": ROLES["page"].light,
    "figure.facecolor": ROLES["page"].light,
}


class Box(NamedTuple):
    """A panel's place in its figure, in inches from the lower left corner, without the title above it."""

    left: float
    bottom: float
    width: float
    height: float


def add_axes(figure: Figure, box: Box, left: float = LEFT, bottom: float = BOTTOM, right: float = RIGHT) -> Axes:
    """Axes in `box` with room for their labels, in inches."""
    width, height = figure.get_size_inches()
    return figure.add_axes(
        (
            (box.left + left) / width,
            (box.bottom + bottom) / height,
            (box.width - left - right) / width,
            (box.height - bottom - TOP) / height,
        )
    )


def set_title(axes: Axes, title: str, note: str, left: float = TITLE_LEFT) -> None:
    """A title over the axes, beginning `left` inches beside them; a note comes first, on a line of its own."""
    text = f"{clean(note)}\n{title}" if note else title
    axes.set_title(text, loc="left", x=-left / inches_wide(axes), y=1.0, pad=7, linespacing=1.3)


def inches_wide(axes: Axes) -> float:
    """The width of the axes in inches."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return float(axes.get_position().width * figure.get_size_inches()[0])


def plain(value: float) -> str:
    """A tick's number with a real minus sign."""
    return f"{value:g}".replace("-", "\u2212") if abs(value) > 1e-12 else "0"


def tick(value: float) -> str:
    """A number that is not 0, as on a logarithmic axis: `0.03`, and powers of ten where figures would be many."""
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    if -3 < exponent < 5:
        return plain(value)
    factor = plain(value / 10.0**exponent)
    return ("" if factor == "1" else f"{factor}·") + "10" + str(exponent).translate(SUPERSCRIPTS)


def clean(text: str, most: int = 40) -> str:
    """Text from data, fit for a figure: one line, no longer than `most`, not hidden by a leading underscore."""
    shown = " ".join(svg.legal(text).split())
    shown = shown if len(shown) <= most else shown[: most - 1] + "…"
    return f" {shown}" if shown.startswith("_") else shown


@contextmanager
def style() -> Iterator[None]:
    """Our own settings of matplotlib, whatever the user's are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield
