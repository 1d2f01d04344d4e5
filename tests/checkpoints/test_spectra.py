"""Spectra against transforms written out as sums, planted structure, and the rotations that transformers applies."""

import cmath
import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig

from lesion.checkpoints import spectra
from lesion.checkpoints.scopes import Heads
from lesion.checkpoints.spectra import Rotary, amplitudes, fundamental, harmonics, plane
from tests.support import TINY


def slow_power(values: NDArray[np.float64]) -> list[float]:
    """Power at every frequency from 1 to n - 1, each as a sum."""
    n, mean = len(values), sum(values) / len(values)
    return [
        abs(sum((value - mean) * cmath.exp(-2j * math.pi * k * at / n) for at, value in enumerate(values))) ** 2
        for k in range(1, n)
    ]


def slow_plane(ones: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Amplitudes in two dimensions, by multiplication with both matrices of waves; [ky, kx]."""
    rows, columns = (np.exp(-2j * np.pi * np.outer(np.arange(size), np.arange(size)) / size) for size in ones.shape)
    found: NDArray[np.float64] = np.abs(rows @ (ones - ones.mean()) @ columns)
    found[0, 0] = 0
    return found


def bits(shape: tuple[int, int], share: float = 0.4, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("n", [2, 7, 12, 30])
def test_amplitudes_are_sums_over_waves(n: int) -> None:
    values = np.random.default_rng(n).normal(3.0, 1.0, n)
    found, power = amplitudes(values), slow_power(values)
    assert len(found) == n // 2
    np.testing.assert_allclose(found**2, power[: n // 2], atol=1e-10)  # sums of 30 numbers of size 4, squared
    assert not np.allclose(found, amplitudes(values[::-1] * np.arange(n)))


@pytest.mark.parametrize(("n", "frequency"), [(12, 2), (12, 3), (12, 6), (30, 5), (15, 3), (8, 8), (9, 1)])
def test_harmonics_count_negative_frequencies_too(n: int, frequency: int) -> None:
    values = np.random.default_rng(n).normal(0.0, 1.0, n)
    power = slow_power(values)
    at = [k for k in range(1, n) if k % frequency == 0]
    found = harmonics(amplitudes(values), n, frequency)
    assert found.share == pytest.approx(sum(power[k - 1] for k in at) / sum(power), abs=1e-12)
    assert found.expected == pytest.approx(len(at) / (n - 1))
    assert math.isnan(found.at_fundamental) == (frequency > n // 2)
    if frequency <= n // 2:
        assert found.at_fundamental == pytest.approx(math.sqrt(power[frequency - 1]))
    assert math.isnan(found.over_expected) == (not at)


def test_power_is_variance() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 64)
    found = amplitudes(values)
    both_sides = 2 * (found[:-1] ** 2).sum() + found[-1] ** 2
    assert both_sides == pytest.approx(64 * 64 * values.var())
    assert not math.isclose(2 * (found**2).sum(), 64 * 64 * values.var(), rel_tol=1e-6)


def test_a_profile_that_each_head_repeats_is_all_harmonics() -> None:
    profile = np.random.default_rng(2).normal(0.0, 1.0, 16)
    values = np.tile(profile, 8)
    found = harmonics(amplitudes(values), 128, 8)
    assert found.share == pytest.approx(1.0, abs=1e-12)
    assert found.over_expected == pytest.approx(127 / 15)
    # at other heads' multiples there is nothing but where the two meet
    shifted = np.tile(np.cos(2 * np.pi * np.arange(16) / 16), 8)
    assert harmonics(amplitudes(shifted), 128, 16).share == pytest.approx(0.0, abs=1e-12)
    assert harmonics(amplitudes(shifted), 128, 8).share == pytest.approx(1.0, abs=1e-12)


def test_heads_that_differ_only_in_size_leave_everything_but_harmonics() -> None:
    """So that a share below that of noise is structure too, and not its absence."""
    sizes = np.repeat(np.random.default_rng(0).random(6), 48)
    found = harmonics(amplitudes(sizes), 288, 6)
    assert found.share < 1e-20  # sums of 288 numbers below 1, rounded
    assert found.expected > 0.1
    mixed = sizes + np.tile(np.random.default_rng(1).random(48), 6)  # and a shape that all repeat
    assert harmonics(amplitudes(mixed), 288, 6).share > 0.1


def test_white_noise_has_the_expected_share() -> None:
    generator = np.random.default_rng(3)
    shares = np.array([harmonics(amplitudes(generator.normal(0, 1, 64)), 64, 8).share for _ in range(400)])
    expected = 7 / 63
    error = shares.std(ddof=1) / math.sqrt(len(shares))
    assert abs(shares.mean() - expected) < 5 * error
    assert abs(shares.mean() - 8 / 64) > 5 * error  # frequency 0 counts neither above nor below the line


def test_nothing_has_no_share() -> None:
    found = harmonics(amplitudes(np.zeros(12)), 12, 3)
    assert math.isnan(found.share)
    assert found.at_fundamental == 0.0
    assert found.expected == pytest.approx(3 / 11)


@pytest.mark.parametrize("shape", [(5, 8), (6, 7), (12, 10), (3, 2), (2, 3), (1, 6), (6, 1)])
@pytest.mark.parametrize("panel", [1, 1 << 23])
def test_plane_is_a_product_of_waves(shape: tuple[int, int], panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "_PANEL", panel)
    monkeypatch.setattr(spectra, "_BLOCK", 11)
    ones = bits(shape)
    ones[0, 0], ones[-1, -1] = True, False
    found, slow = plane(ones), slow_plane(ones.numpy())
    power = slow**2
    on_axes = slow[0].sum() + slow[:, 0].sum()
    # single precision: a few units of 1e-7 beside sums of a hundred amplitudes
    assert found.between_rows == pytest.approx(power[:, 0].sum() / power.sum(), abs=1e-6)
    assert found.between_columns == pytest.approx(power[0].sum() / power.sum(), abs=1e-6)
    assert found.amplitude_on_axes == pytest.approx(on_axes / slow.sum(), abs=1e-6)
    assert found.expected == pytest.approx((sum(shape) - 2) / (math.prod(shape) - 1))
    assert (found.low is None) == (min(shape) == 1)


@pytest.mark.parametrize("low", [2, 64])
def test_the_picture_around_frequency_0(low: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "LOW", low)
    ones = bits((12, 9))
    picture, slow = plane(ones).low, slow_plane(ones.numpy())
    up, right = min(low, 6), min(low, 4)
    assert picture is not None
    assert picture.shape == (2 * up, 2 * right)
    mean_square = math.sqrt((slow**2).sum() / (12 * 9 - 1))
    inside = [(ky, kx) for ky in range(-up, up) for kx in range(-right, right) if (ky, kx) != (0, 0)]
    for ky, kx in inside:
        expected = math.log10(slow[ky % 12, kx % 9] / mean_square)
        assert picture[ky + up, kx + right] == pytest.approx(expected, abs=1e-4)  # logarithms of single precision
    assert picture[up, right] == picture.min()


def test_power_on_axes_is_the_variance_of_means() -> None:
    ones = bits((40, 30), 0.1, seed=4)
    values = ones.numpy().astype(float)
    total = values.var()
    found = plane(ones)
    assert found.between_rows == pytest.approx(values.mean(axis=1).var() / total, rel=1e-5)
    assert found.between_columns == pytest.approx(values.mean(axis=0).var() / total, rel=1e-5)
    assert found.between_rows != pytest.approx(found.between_columns, rel=1e-2)


def test_stripes_lie_on_an_axis() -> None:
    rows = bits((40, 1)).expand(40, 32).contiguous()
    assert plane(rows).between_rows == pytest.approx(1.0, abs=1e-6)
    assert plane(rows).between_columns == pytest.approx(0.0, abs=1e-6)
    columns = rows.T.contiguous()
    assert plane(columns).between_columns == pytest.approx(1.0, abs=1e-6)
    assert plane(columns).amplitude_on_axes == pytest.approx(1.0, abs=1e-4)
    squares = (torch.arange(40)[:, None] + torch.arange(32)) % 2 == 0
    assert plane(squares).on_axes == pytest.approx(0.0, abs=1e-6)


def test_random_places_have_the_expected_share() -> None:
    shares = np.array([plane(bits((24, 20), 0.1, seed)).on_axes for seed in range(200)])
    expected = (24 + 20 - 2) / (24 * 20 - 1)
    error = shares.std(ddof=1) / math.sqrt(len(shares))
    assert abs(shares.mean() - expected) < 5 * error
    assert abs(shares.mean() - 2 * expected) > 5 * error


@pytest.mark.parametrize("value", [True, False])
def test_where_nothing_differs_there_is_no_spectrum(value: bool) -> None:
    found = plane(torch.full((4, 6), value))
    assert math.isnan(found.on_axes)
    assert math.isnan(found.amplitude_on_axes)
    assert found.low is None
    assert not math.isnan(found.expected)


# ---------------------------------------------------------------- the frequency that heads leave


def rotated_halves(config: Any) -> bool | None:
    """Whether transformers pairs dimension i with i + d/2, tried on its own function; None without rotation."""
    module = importlib.import_module(type(config).__module__.replace("configuration", "modeling"))
    if hasattr(module, "rotate_half"):
        pairs = [abs(value) for value in module.rotate_half(torch.arange(8.0)).tolist()]
        return pairs == [4, 5, 6, 7, 0, 1, 2, 3]
    if hasattr(module, "rotate_every_two"):
        return module.rotate_every_two(torch.arange(8.0).view(1, 1, 1, 8)).abs().flatten().tolist() != [
            *(1, 0, 3, 2, 5, 4, 7, 6)
        ]
    return None


@pytest.mark.parametrize("name", TINY)
def test_rotations_are_those_of_transformers(name: str) -> None:
    family, sizes = TINY[name]
    config = AutoConfig.for_model(family.model_type, **sizes)
    found, halves = Rotary.of(config), rotated_halves(config)
    rope = getattr(config, "rope_parameters", None) or {}
    partial = rope.get("partial_rotary_factor", 1.0) < 1
    assert found.halves == (halves is True and not partial and not getattr(config, "alibi", False))
    if halves is False:
        assert "neighbouring" in found.reason
    if partial:
        assert "0.25" in found.reason or "0.5" in found.reason
    assert "not known" not in found.reason


def test_a_family_that_is_not_known_says_so() -> None:
    class Config:
        model_type = "unheard-of"

    found = Rotary.of(Config())
    assert not found.halves
    assert "unheard-of" in found.reason
    assert "not known" in found.reason


@pytest.mark.parametrize(("component", "halves", "frequency"), [
    ("q", True, 16), ("k", True, 4), ("v", True, 2), ("o", True, 8),
    ("q", False, 8), ("k", False, 2), ("v", False, 2), ("o", False, 8),
])  # fmt: skip
def test_fundamentals(component: str, halves: bool, frequency: int) -> None:
    size = 64 if component in "qo" else 16
    assert fundamental(component, size, Heads(8, 2), Rotary(halves, "why"))[0] == frequency


def test_heads_that_do_not_fit_have_none() -> None:
    frequency, reason = fundamental("q", 9, Heads(8, 2), Rotary(True, "why"))
    assert frequency is None
    assert "do not fit" in reason
    frequency, reason = fundamental("q", 24, Heads(8, 2), Rotary(True, "why"))
    assert frequency is None
    assert "no halves" in reason
    assert fundamental("q", 24, Heads(8, 2), Rotary(False, "why")) == (8, "why")
