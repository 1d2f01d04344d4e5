"""Sums of squares: the contract of every statistic of activations, and what is particular to norms."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lesion.errors import LesionError
from lesion.statistics import Positions, Statistic, SumOfSquares

RELATIVE = 1e-12  # float64 sums of some hundred terms


def rows(seed: int, count: int = 97) -> Tensor:
    return torch.randn((count, 5), generator=torch.Generator().manual_seed(seed)) * torch.tensor([1e-4, 1, 3, 50, 1e4])


def somewhere(values: Tensor) -> Positions:
    places = torch.arange(len(values))
    return Positions(places, places, places, places)


def gathered(values: Tensor, cuts: list[int]) -> SumOfSquares:
    found = SumOfSquares(values.shape[1])
    for part in values.tensor_split(cuts):
        found.update(part, somewhere(part))
    return found


def assert_same(a: Statistic, b: Statistic, relative: float = RELATIVE) -> None:
    for key, value in a.state_dict().items():
        torch.testing.assert_close(
            value, b.state_dict()[key], rtol=relative if value.is_floating_point() else 0, atol=0
        )


def test_against_the_definition() -> None:
    values = rows(0)
    expected = np.linalg.norm(values.numpy().astype(np.float64), axis=0)
    found = gathered(values, [])
    # squares are float32: half a unit in the last place each, which averages out, 6e-8 at most
    np.testing.assert_allclose(found.norms().numpy(), expected, rtol=6e-8)
    assert found.n_positions == 97
    assert found.norms().dtype == torch.float64


@pytest.mark.parametrize("cuts", [[1], [7, 8, 30], list(range(1, 97))])
def test_any_split(cuts: list[int]) -> None:
    assert_same(gathered(rows(1), cuts), gathered(rows(1), []))
    assert not torch.equal(gathered(rows(1), cuts).norms(), gathered(rows(2), cuts).norms())


def test_any_order_merged_halves_and_the_empty_state() -> None:
    values, empty = rows(3), SumOfSquares(5)
    whole = gathered(values, [])
    assert_same(gathered(values[torch.randperm(97)], [20]), whole)
    merged = SumOfSquares(5)
    for half in (values[50:], values[:50]):
        merged.merge(gathered(half, [11]))
        merged.merge(empty)
    assert_same(merged, whole)
    with pytest.raises(LesionError, match="no tokens"):
        empty.norms()


def test_an_update_is_the_merge_of_its_own_rows_bit_for_bit() -> None:
    """What makes block by block the same as batch by batch."""
    one, other, parts = SumOfSquares(5), SumOfSquares(5), rows(4).split(13)
    for part in parts:
        one.update(part, somewhere(part))
        other.merge(gathered(part, []))
    assert_same(one, other, relative=0)
    first = gathered(parts[0], [])
    for part in parts[1:]:
        first.merge(gathered(part, []))
    assert_same(first, one, relative=0)


def test_state_goes_and_comes_back() -> None:
    values = rows(5)
    first, second = gathered(values[:40], []), SumOfSquares(5)
    second.load_state_dict(first.state_dict())
    second.update(values[40:], somewhere(values[40:]))
    assert_same(second, gathered(values, [40]))
    assert first.n_positions == 40  # the state was copied, not shared
    assert isinstance(first, Statistic)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_squared_in_float32(dtype: torch.dtype) -> None:
    values = torch.full((300, 1), 200.0, dtype=dtype)  # 40,000 and their sum are beyond float16 and bfloat16's digits
    found = gathered(values, [7])
    assert found.state_dict()["sums"].item() == 300 * 40_000.0


def test_counting_goes_on_beyond_float32() -> None:
    found, one = SumOfSquares(1), torch.ones(1, 1)
    found.load_state_dict({"sums": torch.tensor([2.0**25], dtype=torch.float64), "count": torch.tensor(2**25)})
    found.update(one, somewhere(one))
    assert (found.state_dict()["sums"].item(), found.n_positions) == (2**25 + 1, 2**25 + 1)


def test_other_widths_are_refused() -> None:
    with pytest.raises(LesionError, match="merge sums over 4 coordinates into those over 5"):
        SumOfSquares(5).merge(SumOfSquares(4))
    with pytest.raises(LesionError, match="does not fit sums over 5"):
        SumOfSquares(5).load_state_dict(SumOfSquares(4).state_dict())
