"""Decisions about axes: when to use a logarithm, where to cut, which ticks to show."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from lesion.report.content import Panel, Series

LOG_RANGE = 30.0
"""Values are drawn on a logarithmic axis from this ratio on."""
CUT_RATIO = 3.0
"""Where the first or last layer exceeds all others by this factor, the axis ends above the others."""


def values(panels: Sequence[Panel]) -> np.ndarray:
    """All finite values of the panels."""
    joined = np.concatenate([np.zeros(0), *(line.y for panel in panels for line in panel.series)])
    found: np.ndarray = joined[np.isfinite(joined)]
    return found


def is_log(panels: Sequence[Panel]) -> bool:
    """Whether panels that ask for a logarithmic axis get one."""
    return is_log_range(values(panels), "log" if all(panel.scale == "log" for panel in panels) else "linear")


def is_log_range(found: np.ndarray, asked: str) -> bool:
    """Whether numbers, all finite, get a logarithmic axis if `log` is asked for: all above 0 and 30-fold apart."""
    return bool(asked == "log" and found.size and found.min() > 0 and found.max() / found.min() > LOG_RANGE)


def limits(panels: Sequence[Panel]) -> tuple[float, float]:
    """Limits of the vertical axis.

    Shares get 0 to 100. Otherwise every value that `kept` leaves is inside, with its standard error and zero.
    """
    if all(panel.scale == "percent" for panel in panels):
        return (-3.0, 103.0)
    found = values(panels)
    if not found.size:
        return (0.0, 1.0)
    if is_log(panels):
        return (float(found.min()) / 1.6, float(found.max()) * 1.6)
    most = kept(panels)
    ends = [np.zeros(1)]
    for line in (line for panel in panels for line in panel.series):
        inside = np.abs(line.y) <= most
        sem = np.nan_to_num(line.sem[inside])
        ends += [line.y[inside] - sem, line.y[inside] + sem]
    low, high = float(np.concatenate(ends).min()), float(np.concatenate(ends).max())
    span = (high - low) or 1.0
    above, below = bool((found > most).any()), bool((found < -most).any())
    return (low - span * (0.3 if below else 0.06), high + span * (0.3 if above else 0.06))


def kept(panels: Sequence[Panel]) -> float:
    """The largest size that a linear axis shows: infinite, unless an outer layer would flatten all the others."""
    inner = np.concatenate([np.zeros(0), *(_inner(line) for panel in panels for line in panel.series)])
    inner = np.abs(inner[np.isfinite(inner)])
    return CUT_RATIO * float(inner.max()) if inner.size > 2 and inner.any() else math.inf


def has_beyond(panels: Sequence[Panel], *, shared: bool) -> bool:
    """Whether any point lies outside its axis; `shared` if all panels have the same one."""
    for panel in panels:
        low, high = limits(panels if shared else [panel])
        found = values([panel])
        if ((found < low) | (found > high)).any():
            return True
    return False


def layer_ticks(layers: np.ndarray, most: int = 8) -> list[int]:
    """Whole numbers from the first layer to the last, at most about `most` of them."""
    first, last = int(layers.min()), int(layers.max())
    step = next(
        size for size in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 50, 100, 500) if (last - first) / size < most
    )
    return list(range(first, last + 1, step))


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks at powers of ten; at 1 and 3 times them when that gives fewer than three."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0**exponent for exponent in exponents if low <= 10.0**exponent <= high]
    if len(tens) > 2:
        return tens[:: math.ceil(len(tens) / 6)]
    return [m * 10.0**exponent for exponent in exponents for m in (1, 3) if low <= m * 10.0**exponent <= high]


def bar_ticks(low: float, high: float, is_log: bool) -> list[float]:
    """Ticks of a colour bar: both ends, and round numbers between that keep clear of them."""
    inner = log_ticks(low, high) if is_log else list(MaxNLocator(nbins=4).tick_values(low, high))
    place = [math.log(tick / low) / math.log(high / low) if is_log else (tick - low) / (high - low) for tick in inner]
    return [low, *(tick for tick, share in zip(inner, place, strict=True) if 0.13 < share < 0.87), high]


def _inner(line: Series) -> np.ndarray:
    return line.y[(line.x > line.x.min()) & (line.x < line.x.max())] if line.x.size else line.y
