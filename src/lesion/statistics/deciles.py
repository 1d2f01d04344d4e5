"""How many marked weights lie in each tenth of a ranking; ties favour nobody."""

from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Integer

from lesion.errors import LesionError

PARTS = 10


def edges(size: int) -> list[int]:
    """Where the tenths of `size` ranks begin, and the end of the last; their sizes differ by one at most."""
    return [size * part // PARTS for part in range(PARTS + 1)]


def marked_in_deciles(
    scores: Float32[np.ndarray, "row weight"], marked: Bool[np.ndarray, "row weight"]
) -> Float[np.ndarray, "10"]:
    """Ranks the weights of each row by their scores and counts the marked ones in each tenth, from the lowest.

    Weights of equal score share their places: where an edge cuts through such a group, each side gets the marked ones
    that it would get on average over all orders of the group. Counts are therefore not whole numbers.

    Args:
        scores: not negative, not NaN; -0 counts as 0.

    Returns:
        Marked weights in each tenth, summed over rows; they add up to all marked ones.

    Raises:
        LesionError: a score is negative or NaN.
    """
    if not (scores >= 0).all():
        raise LesionError("scores that are ranked must be numbers from 0 on")
    # Bits of floats from 0 on are in the order of the floats, and leave the highest free: score and mark fit one word.
    keys = ((scores + np.float32(0)).view(np.uint32) << 1) | marked
    keys.sort(axis=1)
    bits = (keys & 1).view(np.int32).astype(bool)
    cuts = edges(scores.shape[1])
    counts = np.stack([np.count_nonzero(bits[:, a:b], axis=1) for a, b in pairwise(cuts)], axis=1)
    below: np.ndarray[Any, Any] = np.concatenate([np.zeros((len(keys), 1)), counts.cumsum(axis=1)], axis=1)
    for part, cut in enumerate(cuts[1:-1], start=1):
        if 0 < cut < scores.shape[1]:
            below[:, part] += _shift(keys, cut)
    in_parts: np.ndarray[Any, Any] = np.diff(below, axis=1).sum(axis=0)
    return in_parts


def _shift(keys: Integer[np.ndarray, "row weight"], cut: int) -> Float[np.ndarray, " row"]:
    """What is to be added to the marked weights left of a cut, in rows whose cut goes through a group of ties.

    In a sorted group the unmarked come first, so that too few marked ones are on the left.
    """
    shift = np.zeros(len(keys))
    for row in np.flatnonzero(keys[:, cut - 1] >> 1 == keys[:, cut] >> 1):
        score = keys[row, cut] >> 1 << 1
        first, first_marked, end = np.searchsorted(keys[row], [score, score | 1, score + 2])
        shift[row] = (end - first_marked) * ((cut - first) / (end - first)) - max(0, cut - first_marked)
    return shift


def weights_in_deciles(rows: int, size: int) -> list[int]:
    """How many weights each tenth has in `rows` rows of `size`."""
    cuts = edges(size)
    return [rows * (b - a) for a, b in pairwise(cuts)]


def marked_in_shared_deciles(
    scores: Float32[np.ndarray, " weight"], marked: Integer[np.ndarray, " weight"]
) -> Float[np.ndarray, "10"]:
    """The same for rows that all have the same scores.

    Args:
        scores: of one row.
        marked: how many rows have that weight marked.
    """
    order = np.argsort(scores, kind="stable")
    ranked, cumulated = scores[order], np.concatenate([[0], np.cumsum(marked[order], dtype=np.int64)])
    below = np.zeros(PARTS + 1)
    for part, cut in enumerate(edges(len(scores))):
        if cut == len(scores):
            below[part] = cumulated[-1]
            continue
        first, end = np.searchsorted(ranked, ranked[cut], "left"), np.searchsorted(ranked, ranked[cut], "right")
        below[part] = cumulated[first] + (cumulated[end] - cumulated[first]) * ((cut - first) / (end - first))
    return np.diff(below)
