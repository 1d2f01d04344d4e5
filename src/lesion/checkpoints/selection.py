"""Which weights of a tensor an edit sets: its zero modes, everything else, or as many others drawn at random."""

import hashlib
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from numpy.typing import NDArray
from torch import Tensor

from lesion.checkpoints.scopes import Region
from lesion.errors import InterventionError, ModelError

Kind = Literal["zero_modes", "complement", "keep_only", "random", "random_matched"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""`complement` and `keep_only` select the same weights, all in the scope that are no zero modes: the one is read as
taking those away, with any value; the other as keeping nothing but the zero modes, which only the value 0 does."""
RANDOM: tuple[Kind, ...] = ("random", "random_matched")

PIECE = 1 << 20
"""Weights whose exponents are worked out at once."""
_MANTISSA_BITS = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23, torch.float64: 52}
_SAME_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def select(
    kind: Kind,
    mask: Bool[Tensor, "..."],
    weight: Float[Tensor, "..."] | None,
    region: Region,
    *,
    seed: int = 0,
    disjoint: bool = False,
) -> Bool[Tensor, "..."]:
    """The weights of one tensor that an edit sets.

    Args:
        kind: `zero_modes`; `complement` and `keep_only`: all others in the region; `random`: as many, drawn without
            replacement from the region; `random_matched`: as many of each exponent of |w|.
        mask: zero modes of the tensor.
        weight: the tensor of the model that is edited, as stored; only `random_matched` looks at it.
        region: the slice that is in the scope.
        seed: of this tensor (see `tensor_seed`); only the random kinds use it.
        disjoint: draw from the weights that are no zero modes.

    Returns:
        True where a weight is to be set; nothing outside the region. `random_matched` with `disjoint` takes all that
        there are of an exponent of which too few are no zero modes, and so fewer than the region has zero modes.

    Raises:
        InterventionError: `random` with `disjoint`, and more than half of the region are zero modes.
    """
    inside = region.take(mask)
    if kind == "zero_modes":
        return region.put(inside, tuple(mask.shape))
    if kind in ("complement", "keep_only"):
        return region.put(~inside, tuple(mask.shape))
    bins = None
    if kind == "random_matched":
        assert weight is not None
        bins = exponents(region.take(weight)).flatten().numpy()
    chosen = _drawn(inside.flatten().numpy(), bins, np.random.PCG64(seed), disjoint=disjoint)
    return region.put(torch.from_numpy(chosen).reshape(inside.shape), tuple(mask.shape))


def tensor_seed(seed: int, name: str) -> int:
    """The seed of one tensor, so that neither the order of tensors nor their files matter."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8], "little")


def exponents(weight: Float[Tensor, "..."]) -> Integer[Tensor, "..."]:
    """The exponent bits of each weight, as stored: |w| in [2^(e - bias), 2^(e - bias + 1)).

    0 is the bin of zeros and subnormals; the greatest is that of what is not finite.

    Raises:
        ModelError: the weights are no floating-point numbers of a known kind.
    """
    if weight.dtype not in _MANTISSA_BITS:
        raise ModelError(f"weights stored as {weight.dtype} have no exponents that can be matched")
    size, mantissa = weight.dtype.itemsize, _MANTISSA_BITS[weight.dtype]
    n_bits = 8 * size - 1 - mantissa
    bits = weight.contiguous().view(_SAME_SIZE[size]).view(-1)
    found = torch.empty(bits.shape, dtype=torch.int16 if n_bits > 8 else torch.uint8)
    for start in range(0, len(bits), PIECE):  # whole numbers as wide as the weights would be a second matrix
        piece = slice(start, start + PIECE)
        found[piece] = (bits[piece] >> mantissa) & ((1 << n_bits) - 1)
    return found.view(weight.shape)


def _drawn(
    mask: NDArray[np.bool_], bins: NDArray[np.integer] | None, source: np.random.BitGenerator, *, disjoint: bool
) -> NDArray[np.bool_]:
    """As many as the mask has, of each bin; every set of that size is as likely as any other."""
    chosen = np.zeros(mask.size, np.bool_)
    if bins is None:
        wanted = int(np.count_nonzero(mask))
        n_pool = mask.size - wanted if disjoint else mask.size
        if wanted > n_pool:
            raise InterventionError(
                f"{wanted:,} of {mask.size:,} weights are zero modes: so many others are not there; "
                "leave out --disjoint, which lets the random weights overlap them"
            )
        if not disjoint:
            return _subset(n_pool, wanted, source)
        chosen[~mask] = _subset(n_pool, wanted, source)
        return chosen
    counts = np.bincount(bins[mask])
    members = np.empty(mask.size, np.bool_)  # kept: new pages for each exponent would take most of the time
    for value in np.flatnonzero(counts):
        np.equal(bins, value, out=members)
        if disjoint:
            np.greater(members, mask, out=members)
        pool = np.flatnonzero(members)
        chosen[pool[_subset(len(pool), min(int(counts[value]), len(pool)), source)]] = True
        del pool  # eight bytes a weight: two of them at once would be the peak of a whole comparison
    return chosen


def _subset(size: int, count: int, source: np.random.BitGenerator) -> NDArray[np.bool_]:
    """A random set of `count` of `size` things, every such set equally likely; a byte of memory each and little more.

    A coin for each gives nearly enough; given their number, every set of them is equally likely, and stays so when
    the rest is added one at a time. Only raw bits are asked for, whose stream numpy promises to keep.
    """
    if 2 * count > size:
        return ~_subset(size, size - count, source)
    threshold = int(max(0.0, count - 5.0 * count**0.5 - 5.0) / max(size, 1) * 2**32)
    while True:
        chosen = _coins(size, threshold, source)
        if (missing := count - int(chosen.sum())) >= 0:
            break
    while missing:
        # the remainder favours small numbers by size / 2^64, less than 1e-9
        found = (source.random_raw(2 * missing + 8) % np.uint64(size)).astype(np.int64)
        found = found[np.sort(np.unique(found, return_index=True)[1])]
        found = found[~chosen[found]][:missing]
        chosen[found] = True
        missing -= len(found)
    return chosen


def _coins(size: int, threshold: int, source: np.random.BitGenerator, piece: int = 1 << 20) -> NDArray[np.bool_]:
    """`size` coins that show True with a chance of threshold / 2^32."""
    if not threshold:
        return np.zeros(size, np.bool_)
    coins = np.empty(size, np.bool_)
    for start in range(0, size, piece):
        part = coins[start : start + piece]
        part[:] = source.random_raw(-(-len(part) // 2)).view(np.uint32)[: len(part)] < threshold
    return coins
