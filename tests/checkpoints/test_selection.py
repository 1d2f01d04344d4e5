"""Selections: exact counts, exact bins, and every set as likely as any other."""

from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from lesion.checkpoints import selection
from lesion.checkpoints.scopes import Region
from lesion.checkpoints.selection import KINDS, RANDOM, Kind, _subset, exponents, select, tensor_seed
from lesion.errors import InterventionError, ModelError

REGIONS = {"all": Region(), "rows": Region(0, ((2, 5), (9, 20))), "columns": Region(1, ((0, 7), (30, 31)))}
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def example(dtype: torch.dtype = torch.bfloat16, share: float = 0.3) -> tuple[Tensor, Tensor]:
    """Zero modes that are large weights, as real ones are."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn((24, 40), generator=generator).to(dtype)
    chance = share * weight.abs().float() / 0.8
    return torch.rand(weight.shape, generator=generator) < chance, weight


def inside(region: Region, shape: tuple[int, ...]) -> Tensor:
    """True in the region, told weight by weight."""
    found = torch.zeros(shape, dtype=torch.bool)
    for row in range(shape[0]):
        for column in range(shape[1]):
            index = (row, column)[region.dim] if region.dim is not None else 0
            found[row, column] = region.dim is None or any(a <= index < b for a, b in region.ranges)
    return found


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_zero_modes_and_complement_divide_the_region(region: Region) -> None:
    mask, _ = example()
    here = inside(region, tuple(mask.shape))
    zero_modes = select("zero_modes", mask, None, region)
    complement = select("complement", mask, None, region)
    assert torch.equal(zero_modes, mask & here)
    assert torch.equal(complement, ~mask & here)
    assert torch.equal(zero_modes ^ complement, here)
    assert zero_modes.any()
    assert torch.equal(select("keep_only", mask, None, region), complement)


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
@pytest.mark.parametrize("kind", RANDOM)
def test_random_weights_are_as_many_and_in_the_region(kind: Kind, region: Region, disjoint: bool) -> None:
    mask, weight = example(share=0.1)
    here = inside(region, tuple(mask.shape))
    draws = [select(kind, mask, weight, region, seed=seed, disjoint=disjoint) for seed in range(6)]
    for chosen in draws:
        assert not (chosen & ~here).any()
        missing = 0
        if kind == "random_matched":
            missing = sum(max(0, taken - there) for taken, there in spare(mask, weight, here)) if disjoint else 0
        assert int(chosen.sum()) == int((mask & here).sum()) - missing
    assert disjoint is not any(bool((chosen & mask).any()) for chosen in draws)
    assert len({chosen.numpy().tobytes() for chosen in draws}) > 1
    again = select(kind, mask, weight, region, seed=3, disjoint=disjoint)
    assert torch.equal(again, draws[3])


def spare(mask: Tensor, weight: Tensor, here: Tensor) -> list[tuple[int, int]]:
    """For each exponent, by hand: zero modes in the region, and other weights there."""
    zero_modes: Counter[int] = Counter()
    others: Counter[int] = Counter()
    for value, is_mode, counts in zip(
        weight.flatten().tolist(), mask.flatten().tolist(), here.flatten().tolist(), strict=True
    ):
        if counts:
            (zero_modes if is_mode else others)[int(np.frexp(value)[1])] += 1
    return [(count, others[exponent]) for exponent, count in zero_modes.items()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matched_weights_have_the_same_exponents(dtype: torch.dtype) -> None:
    mask, weight = example(dtype)
    wanted = torch.frexp(weight[mask].double()).exponent.tolist()
    matched = select("random_matched", mask, weight, Region(), seed=1)
    assert Counter(torch.frexp(weight[matched].double()).exponent.tolist()) == Counter(wanted)
    assert not torch.equal(matched, mask)
    plain = select("random", mask, weight, Region(), seed=1)
    assert int(plain.sum()) == len(wanted)
    assert Counter(torch.frexp(weight[plain].double()).exponent.tolist()) != Counter(wanted)


def test_matching_looks_at_the_weights_of_the_slice_only() -> None:
    """Weights of the wanted size lie outside the region too, and must not be drawn."""
    weight = torch.tensor([[1.0, 1.5, 8.0, 9.0], [1.2, 1.1, 1.3, 1.4]])
    mask = torch.tensor([[True, False, False, False], [True, True, True, True]])
    first_row = Region(0, ((0, 1),))
    found = {select("random_matched", mask, weight, first_row, seed=seed).nonzero()[0, 1].item() for seed in range(40)}
    assert found == {0, 1}
    only = select("random_matched", mask, weight, first_row, disjoint=True)
    assert only.nonzero().tolist() == [[0, 1]]


def test_too_few_others_of_an_exponent_are_all_taken() -> None:
    weight = torch.tensor([1.0, 1.1, 1.2, 1.3, 4.0, 4.5])
    mask = torch.tensor([True, True, True, False, True, False])
    found = select("random_matched", mask, weight, Region(), disjoint=True)
    assert found.tolist() == [False, False, False, True, False, True]
    assert int(select("random_matched", mask, weight, Region(), disjoint=False).sum()) == 4
    with pytest.raises(InterventionError, match="4 of 6 weights are zero modes: so many others are not there"):
        select("random", mask, weight, Region(), disjoint=True)
    assert int(select("random", mask, weight, Region(), disjoint=False).sum()) == 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exponents_are_those_of_frexp_and_small_numbers_have_a_bin_of_their_own(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    normal = torch.tensor([limits.tiny, -limits.tiny * 1.5, 1.0, -1.0, 1.5, 2.0, 0.75, -3e-3, limits.max], dtype=dtype)
    bias = {torch.float16: 15, torch.bfloat16: 127, torch.float32: 127, torch.float64: 1023}[dtype]
    expected = [int(np.frexp(value)[1]) - 1 + bias for value in normal.double().tolist()]
    assert exponents(normal).tolist() == expected
    small = torch.tensor([0.0, -0.0, limits.tiny / 4, -limits.tiny / 4], dtype=dtype)
    assert exponents(small).tolist() == [0, 0, 0, 0]
    odd = exponents(torch.tensor([float("inf"), float("-inf"), float("nan")], dtype=dtype))
    assert odd.tolist() == [2 * bias + 1] * 3
    assert exponents(normal).min() >= 1
    with pytest.raises(ModelError, match=r"torch\.float8_e5m2 have no exponents"):
        exponents(torch.zeros(3).to(torch.float8_e5m2))


def test_zeros_and_subnormals_are_matched_among_themselves() -> None:
    weight = torch.tensor([0.0, -0.0, 1e-40, 0.0, 1.0, 1.0, 1e-30])
    mask = torch.tensor([True, False, True, False, False, False, False])
    for seed in range(20):
        chosen = select("random_matched", mask, weight, Region(), seed=seed)
        assert int(chosen.sum()) == 2
        assert not chosen[4:].any()


@pytest.mark.parametrize(("size", "count"), [(6, 2), (6, 3), (6, 4), (7, 0), (5, 5)])
def test_every_set_is_as_likely(size: int, count: int) -> None:
    """Chi-square over all sets, 200 draws each; the seeds are fixed, so that the test is not random itself."""
    draws = 200 * comb(size, count)
    counts = Counter(tuple(np.flatnonzero(_subset(size, count, np.random.PCG64(seed)))) for seed in range(draws))
    assert set(counts) == set(combinations(range(size), count))
    statistic = sum((found - 200) ** 2 / 200 for found in counts.values())
    assert len(counts) == 1 or statistic < chi2.ppf(0.999, len(counts) - 1)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 1.0])
def test_each_weight_is_as_likely_also_where_coins_are_thrown(share: float) -> None:
    """Large enough for the first throw of coins to take most of the weights."""
    size, draws = 2000, 400
    count = int(share * size)
    found = np.zeros(size)
    pairs = 0
    for seed in range(draws):
        chosen = _subset(size, count, np.random.PCG64(seed))
        assert chosen.sum() == count
        found += chosen
        pairs += int((chosen[:-1] & chosen[1:]).sum())
    if count == size:
        return
    # a weight is drawn count/size of the time; drawing without replacement leaves size - 1 degrees of freedom
    variance = draws * share * (1 - share) * size / (size - 1)
    statistic = ((found - draws * share) ** 2).sum() / variance
    assert chi2.ppf(0.0005, size - 1) < statistic < chi2.ppf(0.9995, size - 1)
    expected = draws * (size - 1) * share * (count - 1) / (size - 1)
    assert abs(pairs - expected) < 5 * expected**0.5  # neighbours are no likelier together; pairs are nearly Poisson


def test_coins_that_show_too_many_are_thrown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    thrown = []

    def lucky(size: int, threshold: int, source: np.random.BitGenerator) -> np.ndarray:
        thrown.append(threshold)
        return np.arange(size) < (400 if len(thrown) == 1 else 200)

    monkeypatch.setattr(selection, "_coins", lucky)
    chosen = _subset(1000, 300, np.random.PCG64(0))
    assert len(thrown) == 2
    assert chosen.sum() == 300
    assert chosen[:200].all()


def test_a_large_draw_spans_pieces_of_raw_bits() -> None:
    chosen = _subset(3_000_001, 700_000, np.random.PCG64(1))
    assert chosen.sum() == 700_000
    thirds = [int(part.sum()) for part in np.array_split(chosen, 3)]
    # standard deviation 340 of a hypergeometric third
    assert all(abs(count - 700_000 / 3) < 1700 for count in thirds)


def test_a_uniform_draw_overlaps_the_zero_modes_by_chance() -> None:
    mask, weight = example(share=0.2)
    overlap = np.mean([int((select("random", mask, weight, Region(), seed=seed) & mask).sum()) for seed in range(300)])
    count, size = int(mask.sum()), mask.numel()
    expected = count * count / size
    deviation = (expected * (1 - count / size) ** 2 / 300) ** 0.5
    assert abs(overlap - expected) < 4 * deviation


def test_seeds_differ_between_tensors_and_runs_and_are_fixed() -> None:
    seeds = {tensor_seed(seed, name) for seed in range(3) for name in ("a", "b", "1a")}
    assert len(seeds) == 9
    assert tensor_seed(0, "model.layers.0.mlp.gate_proj.weight") == 11207509650664724640
    first = np.flatnonzero(_subset(1000, 5, np.random.PCG64(42)))
    assert first.tolist() == [132, 251, 360, 585, 597]  # a stored table must be found again by later versions


def test_only_random_kinds_look_at_the_seed() -> None:
    mask, weight = example()
    for kind in KINDS:
        one, other = (select(kind, mask, weight, Region(), seed=seed) for seed in (1, 2))
        assert torch.equal(one, other) is (kind not in RANDOM)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exponents_are_worked_out_in_pieces(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """960 weights in pieces of 7; a matrix that is not contiguous, too."""
    weight = example(dtype)[1].T
    expected = torch.frexp(weight.double())[1]  # |w| in [2^(e - 1), 2^e)
    whole = exponents(weight)
    monkeypatch.setattr(selection, "PIECE", 7)
    assert torch.equal(exponents(weight), whole)
    offset = {torch.bfloat16: 126, torch.float16: 14, torch.float32: 126, torch.float64: 1022}[dtype]
    normal = weight.abs() >= torch.finfo(dtype).tiny
    assert torch.equal(whole.int()[normal], (expected + offset).int()[normal])
    assert len(whole.unique()) > 3
