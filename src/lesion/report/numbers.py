"""Numbers as a reader sees them: a value with its standard error, to the digits that the error allows."""

import math
from typing import NamedTuple

MINUS = "\u2212"
PLUS_MINUS = "\u00a0±\u00a0"  # a line does not break before an error, or before a percent sign


class Measure(NamedTuple):
    """A mean and its standard error (NaN where there is none, such as with a single document)."""

    value: float
    sem: float

    @property
    def is_zero(self) -> bool:
        """Whether it lies within two standard errors of zero."""
        return math.isfinite(self.sem) and abs(self.value) <= 2 * self.sem

    def exceeds(self, other: "Measure") -> bool | None:
        """Whether it is above `other` by more than two standard errors of the difference, as if independent.

        Returns:
            True if above, False if below, None if within two standard errors or if either has none.
        """
        gap, error = self.value - other.value, math.hypot(self.sem, other.sem)
        if not (math.isfinite(error) and math.isfinite(gap)) or abs(gap) <= 2 * error:
            return None
        return gap > 0


def decimals(value: float, sem: float = math.nan) -> int:
    """Decimal places: two digits of the standard error; without one, four digits of the value."""
    reference, digits = (sem, 2) if math.isfinite(sem) and sem > 0 else (value, 4)
    if not math.isfinite(reference) or reference == 0:
        return 2
    return min(6, max(0, digits - 1 - math.floor(math.log10(abs(reference)))))


def number(value: float, places: int) -> str:
    """`value` to `places` decimals, with thousands separated and a real minus sign."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
    text = f"{value:,.{places}f}"
    if text.startswith("-"):
        return MINUS + text[1:] if float(text.replace(",", "")) != 0 else text[1:]
    return text


def measured(measure: Measure, *, sign: bool = False) -> str:
    """`4.10 ± 0.12`; without a standard error `4.103`."""
    places = decimals(*measure)
    plus = "+" if sign and measure.value > 0 else ""
    text = plus + number(measure.value, places)
    return text if not math.isfinite(measure.sem) else f"{text}{PLUS_MINUS}{number(measure.sem, places)}"


def percent(measure: Measure) -> str:
    """A share as `51.2 ± 0.3 %`, to one decimal of a percent (two for errors below 0.1 %)."""
    places = 2 if 0 < measure.sem < 0.001 else 1
    text = number(100 * measure.value, places)
    error = f"{PLUS_MINUS}{number(100 * measure.sem, places)}" if math.isfinite(measure.sem) else ""
    return f"{text}{error}\u00a0%"


def percent_range(low: float, high: float) -> str:
    """Two shares as `72.0–95.1 %`, or one where they read the same."""
    first, last = number(100 * low, 1), number(100 * high, 1)
    return f"{first if first == last else f'{first}–{last}'}\u00a0%"


def count(number_of: int, noun: str) -> str:
    """`1 document`, `12,345 documents`."""
    return f"{number_of:,} {noun}" + ("" if number_of == 1 else "s")


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def layer_list(layers: list[int]) -> str:
    """`2`, `2 and 5`, `1–4 and 7`: runs of three or more are joined."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts: list[str] = []
    for run in runs:
        parts += [f"{run[0]}–{run[-1]}"] if len(run) > 2 else [str(layer) for layer in run]
    return listed(parts)
