"""Numbers are shown to the digits that their errors allow, and compared with their errors."""

import math

import pytest

from lesion.report.numbers import Measure, count, layer_list, measured, number, percent, percent_range


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("value", "sem", "text"),
    [
        (4.1034, 0.1234, "4.10 ± 0.12"),
        (0.11474, 0.0047, "0.1147 ± 0.0047"),
        (-0.5, 0.02, "−0.500 ± 0.020"),
        (1234.5, 12.0, "1,234 ± 12"),
        (4.10344, math.nan, "4.103"),
        (0.0, math.nan, "0.00"),
        (2.5, 0.0, "2.500 ± 0.000"),
        (math.nan, math.nan, "–"),
        (math.inf, math.nan, "∞"),
    ],
)
def test_measured(value: float, sem: float, text: str) -> None:
    assert plain(measured(Measure(value, sem))) == text


def test_a_rounded_zero_has_no_sign() -> None:
    assert number(-0.0001, 2) == "0.00"
    assert number(-0.01, 2) == "−0.01"


def test_shares() -> None:
    assert plain(percent(Measure(0.5124, 0.0032))) == "51.2 ± 0.3 %"
    assert plain(percent(Measure(0.5124, 0.0004))) == "51.24 ± 0.04 %"
    assert plain(percent_range(0.7204, 0.9511)) == "72.0–95.1 %"
    assert plain(percent_range(0.72041, 0.72042)) == "72.0 %"


def test_comparison_needs_two_standard_errors_of_the_difference() -> None:
    assert Measure(1.0, 0.3).exceeds(Measure(0.0, 0.3)) is True  # 1 > 2 · 0.424
    assert Measure(0.0, 0.3).exceeds(Measure(1.0, 0.3)) is False
    assert Measure(1.0, 0.4).exceeds(Measure(0.0, 0.4)) is None  # 1 < 2 · 0.566
    assert Measure(9.0, math.nan).exceeds(Measure(0.0, 0.1)) is None
    assert Measure(0.1, 0.06).is_zero
    assert not Measure(0.1, 0.04).is_zero
    assert not Measure(0.1, math.nan).is_zero


def test_words() -> None:
    assert [count(1, "block"), count(12345, "token")] == ["1 block", "12,345 tokens"]
    assert [layer_list(x) for x in ([3], [3, 1], [1, 2, 3, 7], [1, 2, 5])] == [
        "3",
        "1 and 3",
        "1–3 and 7",
        "1, 2 and 5",
    ]
