"""Tenths of a ranking: against sorting by hand, and ties that favour nobody."""

from fractions import Fraction

import numpy as np
import pytest

from lesion.errors import LesionError
from lesion.statistics.deciles import PARTS, edges, marked_in_deciles, marked_in_shared_deciles, weights_in_deciles


def slow(scores: np.ndarray, marked: np.ndarray) -> list[Fraction]:
    """Row by row in exact fractions: each weight is spread evenly over the places of all weights equal to it."""
    found = [Fraction(0)] * PARTS
    size = scores.shape[1]
    part_of = [next(p for p in range(PARTS) if size * p // PARTS <= r < size * (p + 1) // PARTS) for r in range(size)]
    for row, marks in zip(scores.tolist(), marked.tolist(), strict=True):
        for score, mark in zip(row, marks, strict=True):
            first = sum(other < score for other in row)
            places = range(first, first + sum(other == score for other in row))
            for place in places if mark else ():
                found[part_of[place]] += Fraction(1, len(places))
    return found


def example(seed: int, size: int, levels: int | None) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shape = (7, size)
    scores = generator.random(shape) if levels is None else generator.integers(0, levels, shape) / 3
    return scores.astype(np.float32), generator.random(shape) < 0.3


@pytest.mark.parametrize("size", [1, 3, 9, 10, 11, 64, 103])
@pytest.mark.parametrize("levels", [None, 1, 2, 5, 40])
def test_against_the_slow_way(size: int, levels: int | None) -> None:
    scores, marked = example(size, size, levels)
    found = marked_in_deciles(scores, marked)
    np.testing.assert_allclose(found, [float(part) for part in slow(scores, marked)], rtol=0, atol=1e-12)  # float64
    assert found.sum() == pytest.approx(marked.sum(), abs=1e-12)


def test_without_ties_counts_are_whole_and_are_those_of_argsort() -> None:
    scores, marked = example(0, 64, None)
    ranked = np.take_along_axis(marked, np.argsort(scores, axis=1), axis=1)
    expected = [ranked[:, a:b].sum() for a, b in zip(edges(64)[:-1], edges(64)[1:], strict=True)]
    assert marked_in_deciles(scores, marked).tolist() == expected
    assert marked_in_deciles(-scores + 1, marked).tolist() != expected


def test_planted() -> None:
    """The marked weights are those with the highest scores: all are in the last tenth, and none in another."""
    scores = np.tile(np.arange(50, dtype=np.float32), (3, 1))[:, ::-1].copy()
    assert marked_in_deciles(scores, scores >= 45).tolist() == [0] * 9 + [15]
    assert marked_in_deciles(scores, scores < 5).tolist() == [15] + [0] * 9


def test_ties_favour_nobody() -> None:
    """All scores equal: each tenth has its share, whichever weights are marked, and wherever they are stored."""
    marked = np.zeros((1, 40), dtype=bool)
    marked[0, :8] = True
    assert marked_in_deciles(np.ones((1, 40), np.float32), marked).tolist() == pytest.approx([0.8] * 10)
    assert marked_in_deciles(np.ones((1, 40), np.float32), marked[:, ::-1]).tolist() == pytest.approx([0.8] * 10)


def test_signed_zeros_are_equal_and_infinity_is_highest() -> None:
    scores = np.array([[0.0, -0.0] * 9 + [np.inf, 3e38]], dtype=np.float32)
    marked = np.zeros((1, 20), dtype=bool)
    marked[0, [1, 3, 18]] = True
    expected = [float(part) for part in slow(scores, marked)]
    np.testing.assert_allclose(marked_in_deciles(scores, marked), expected, rtol=0, atol=1e-12)
    assert expected[-1] == 1


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_scores_that_cannot_be_ranked_are_refused(bad: float) -> None:
    scores = np.ones((2, 10), dtype=np.float32)
    scores[1, 3] = bad
    with pytest.raises(LesionError, match="numbers from 0 on"):
        marked_in_deciles(scores, np.zeros((2, 10), dtype=bool))


@pytest.mark.parametrize("levels", [None, 4])
def test_rows_of_the_same_scores_are_counted_together(levels: int | None) -> None:
    scores, marked = example(5, 43, levels)
    same = np.tile(scores[:1], (7, 1))
    shared = marked_in_shared_deciles(scores[0], marked.sum(axis=0))
    np.testing.assert_allclose(shared, marked_in_deciles(same, marked), rtol=0, atol=1e-12)
    assert shared.tolist() != marked_in_deciles(scores, marked).tolist()


def test_tenths_differ_by_one_at_most() -> None:
    for size in range(1, 200):
        sizes = weights_in_deciles(1, size)
        assert (sum(sizes), max(sizes) - min(sizes) <= 1) == (size, True)
    assert weights_in_deciles(3, 25) == [6, 9, 6, 9, 6, 9, 6, 9, 6, 9]
