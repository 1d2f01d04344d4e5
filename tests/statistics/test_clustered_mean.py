"""The contract of an accumulator, and standard errors that respect documents."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lesion.errors import LesionError
from lesion.statistics import ClusteredMean

RELATIVE = 1e-12  # float64, moments of some hundred documents


def documents(seed: int, count: int = 60, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sums of 3 cells x 2 metrics over documents of 0 to 39 tokens, and their lengths."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 40, (count,), generator=generator)
    tokens = torch.randn((count, 3, 2), generator=generator, dtype=torch.float64) + offset
    return tokens * counts[:, None, None], counts


def gathered(sums: Tensor, counts: Tensor, cuts: list[int]) -> ClusteredMean:
    mean = ClusteredMean(3, 2)
    for part_sums, part_counts in zip(sums.tensor_split(cuts), counts.tensor_split(cuts), strict=True):
        mean.update(part_sums, part_counts)
    return mean


def assert_same(left: ClusteredMean, right: ClusteredMean) -> None:
    a, b = left.result(), right.result()
    assert (a.n_tokens, a.n_documents) == (b.n_tokens, b.n_documents)
    torch.testing.assert_close(a.mean, b.mean, rtol=RELATIVE, atol=0)
    torch.testing.assert_close(a.sem, b.sem, rtol=RELATIVE, atol=0)


def test_against_the_definition() -> None:
    sums, counts = documents(0)
    result = gathered(sums, counts, []).result()
    s, n = sums.numpy()[counts > 0], counts.numpy()[counts > 0]
    mean = s.sum(0) / n.sum()
    residuals = s - mean * n[:, None, None]
    sem = np.sqrt(len(n) / (len(n) - 1) * (residuals**2).sum(0)) / n.sum()
    np.testing.assert_allclose(result.mean.numpy(), mean, rtol=RELATIVE)
    np.testing.assert_allclose(result.sem.numpy(), sem, rtol=RELATIVE)
    assert (result.n_tokens, result.n_documents) == (n.sum(), len(n))


def test_equal_documents_give_the_usual_standard_error() -> None:
    values = torch.randn((50, 3, 2), dtype=torch.float64)
    result = gathered(values * 7, torch.full((50,), 7), []).result()
    torch.testing.assert_close(result.sem, values.std(dim=0) / 50**0.5, rtol=RELATIVE, atol=0)


def test_tokens_of_a_document_are_not_independent() -> None:
    """Repeating every token of a document tells nothing new: the error stays; independent tokens would shrink it."""
    sums, counts = documents(1)
    once, tenfold = gathered(sums, counts, []).result(), gathered(sums * 10, counts * 10, []).result()
    torch.testing.assert_close(once.sem, tenfold.sem, rtol=RELATIVE, atol=0)


@pytest.mark.parametrize("cuts", [[1], [7, 8, 30], list(range(1, 60))])
def test_any_split(cuts: list[int]) -> None:
    sums, counts = documents(2)
    assert_same(gathered(sums, counts, cuts), gathered(sums, counts, []))


def test_any_order_and_merged_halves_and_the_empty_state() -> None:
    sums, counts = documents(3)
    order = torch.randperm(len(counts))
    whole = gathered(sums, counts, [])
    assert_same(gathered(sums[order], counts[order], [20]), whole)
    merged, empty = ClusteredMean(3, 2), ClusteredMean(3, 2)
    for half in (slice(30, 60), slice(0, 30)):
        merged.merge(gathered(sums[half], counts[half], [11]))
        merged.merge(empty)
    assert_same(merged, whole)


def test_state_goes_and_comes_back() -> None:
    sums, counts = documents(4)
    first, second = gathered(sums[:25], counts[:25], []), ClusteredMean(3, 2)
    second.load_state_dict(first.state_dict())
    second.update(sums[25:], counts[25:])
    assert_same(second, gathered(sums, counts, [25]))
    assert first.result().n_documents < second.result().n_documents  # the state was copied, not shared


def test_large_offsets_keep_their_digits() -> None:
    """Mean 1e6, spread 1: uncentred squares would lose twelve of sixteen digits."""
    counts = torch.full((60,), 3)
    values = torch.randn((60, 3, 2), dtype=torch.float64)
    plain = gathered(values * 3, counts, [13]).result()
    moved = gathered((values + 1e6) * 3, counts, [13]).result()
    torch.testing.assert_close(moved.sem, plain.sem, rtol=1e-8, atol=0)


def test_nothing_is_an_error_and_one_document_has_no_error_bar() -> None:
    with pytest.raises(LesionError, match="no tokens"):
        ClusteredMean(3, 2).result()
    with pytest.raises(LesionError, match="no tokens"):
        gathered(torch.zeros(2, 3, 2), torch.zeros(2, dtype=torch.long), []).result()
    result = gathered(torch.ones(1, 3, 2), torch.tensor([4]), []).result()
    assert torch.equal(result.mean, torch.full((3, 2), 0.25, dtype=torch.float64))
    assert result.sem.isnan().all()


def test_nan_stays_in_its_own_cell() -> None:
    sums, counts = documents(5)
    counts += 1
    sums[7, 1, 0] = torch.nan
    result = gathered(sums, counts, [20]).result()
    assert result.mean.isnan().tolist() == [[False, False], [True, False], [False, False]]
    assert result.sem.isnan().tolist() == [[False, False], [True, False], [False, False]]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(LesionError, match="merge"):
        ClusteredMean(3, 2).merge(ClusteredMean(2, 2))
    with pytest.raises(LesionError, match="fit"):
        ClusteredMean(3, 2).load_state_dict(ClusteredMean(3, 1).state_dict())


def test_counts_are_exact_beyond_float32() -> None:
    mean = ClusteredMean(1, 1)
    for _ in range(3):
        mean.update(torch.zeros(1, 1, 1), torch.tensor([2**24 + 1]))
    assert mean.result().n_tokens == 3 * (2**24 + 1)
