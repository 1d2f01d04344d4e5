"""Spectra of weights: harmonics that heads leave in a matrix's means, and regularity of the matrix as a picture.

Paper `zero-modes`: section 2 and Figs 1, 2, 17 (one dimension), section 5.1 (two). A head is a block of rows; where
rotary positions pair a dimension with the one half a head further on, a block is half a head.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from lesion.checkpoints.scopes import Heads

Amplitudes = NDArray[np.float64]

LOW = 64
"""Frequencies on either side of 0 that the picture of a spectrum in two dimensions shows."""
_BLOCK = 1 << 19
"""Numbers that are transformed in one go."""
_PANEL = 1 << 23
"""Numbers between the transform along rows and that along columns, 8 bytes each; more need the first one again."""
_LIKE_LLAMA = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text")
_HALVES = frozenset((*_LIKE_LLAMA, "gpt_neox", "phi", "falcon"))
"""Families whose rotary positions pair dimension i of a head with i + d_head / 2."""
_NEIGHBOURS = frozenset(("gptj",))
"""Families whose rotary positions pair neighbours."""
_NO_ROTARY = frozenset(("gpt2", "opt", "bloom", "bert", "roberta", "vit", "deit"))


class Rotary(NamedTuple):
    """Whether rotary positions make two blocks of each head, and why."""

    halves: bool
    reason: str

    @classmethod
    def of(cls, config: Any) -> "Rotary":
        """Told from a transformers configuration; from nothing but its family where that says it."""
        kind = config.model_type
        if kind in _NO_ROTARY or (kind == "falcon" and config.alibi):
            return cls(False, f"a block a head: {kind} has no rotary positions")
        if kind in _NEIGHBOURS:
            return cls(False, f"a block a head: rotary positions of {kind} pair neighbouring dimensions")
        if kind not in _HALVES:
            return cls(False, f"a block a head: how {kind} pairs dimensions for positions is not known")
        if (share := _turned(config)) < 1:
            return cls(False, f"a block a head: rotary positions turn {share:g} of each head, not all of it")
        return cls(True, "two blocks a head: rotary positions pair dimension i with i + d_head / 2")


def _turned(config: Any) -> float:
    """The share of each head that rotary positions turn; the smallest, where layers differ."""
    given = getattr(config, "rope_parameters", None) or {}
    by_layer = [found for found in given.values() if isinstance(found, dict)] or [given]
    return min(float(found.get("partial_rotary_factor", 1.0)) for found in by_layer)


def fundamental(component: str, size: int, heads: Heads, rotary: Rotary) -> tuple[int | None, str]:
    """The frequency, in cycles a matrix, whose multiples heads of one shape leave along their side of a matrix.

    Twice the heads for q, and twice the heads of keys for k, where rotary positions halve them (paper, section 2:
    4 heads, frequency 8). v and o pass no rotation, so that theirs is the number of heads.

    Args:
        component: q, k, v or o.
        size: of the heads' side.

    Returns:
        The frequency and the reason for it; None where heads do not fit.
    """
    n_blocks = heads.n_kv_heads if component in "kv" else heads.n_heads
    if size % n_blocks:
        return None, f"{n_blocks} heads do not fit {size} dimensions; config.json and the weights disagree"
    if component in "vo":
        return n_blocks, f"a block a head: rotary positions do not turn {component}"
    if rotary.halves and size // n_blocks % 2:
        return None, f"heads of {size // n_blocks} dimensions have no halves; config.json and the weights disagree"
    return (2 if rotary.halves else 1) * n_blocks, rotary.reason


def amplitudes(means: NDArray[np.float64]) -> Amplitudes:
    """|FFT| of n numbers minus their mean, at 1 to n // 2 cycles over all of them (at 0 nothing is left)."""
    found: Amplitudes = np.abs(np.fft.rfft(means - means.mean()))[1:]
    return found


@dataclass(frozen=True)
class Harmonics:
    """How much of a spectrum lies at multiples of a frequency.

    Attributes:
        at_fundamental: amplitude at the frequency itself.
        share: of the power, at its multiples; NaN where there is no power.
        expected: what white noise gives: the share of frequencies that are such multiples.
    """

    at_fundamental: float
    share: float
    expected: float

    @property
    def over_expected(self) -> float:
        """1 for white noise."""
        return self.share / self.expected if self.expected else math.nan


def harmonics(spectrum: Amplitudes, n: int, frequency: int) -> Harmonics:
    """What lies at a frequency and at its multiples.

    Args:
        spectrum: `amplitudes` of n numbers.
        n: how many; a divisor of it is `frequency`.
    """
    assert len(spectrum) == n // 2, (len(spectrum), n)
    assert n % frequency == 0, (n, frequency)
    times = np.full(len(spectrum), 2.0)  # all but the highest of an even number stand for a negative frequency too
    if n % 2 == 0:
        times[-1:] = 1.0
    power = times * spectrum**2
    at = slice(frequency - 1, None, frequency)
    total = float(power.sum())
    return Harmonics(
        at_fundamental=float(spectrum[frequency - 1]) if frequency <= len(spectrum) else math.nan,
        share=float(power[at].sum()) / total if total else math.nan,
        expected=float(times[at].sum() / times.sum()) if n > 1 else math.nan,
    )


@dataclass(frozen=True)
class Plane:
    """The spectrum in two dimensions of a matrix of zeros and ones, minus its mean.

    Attributes:
        between_rows: share of the power where kx = 0: of rows that differ in their number of ones.
        between_columns: where ky = 0, likewise.
        amplitude_on_axes: share of the summed amplitudes on both axes (paper, section 5.1).
        expected: share of frequencies on the axes: what ones in random places give, in power.
        low: log10 of amplitude over the root mean square of all, for frequencies around 0, which is in the middle
            and has the least of the values there.
    """

    between_rows: float
    between_columns: float
    amplitude_on_axes: float
    expected: float
    low: NDArray[np.float32] | None

    @property
    def on_axes(self) -> float:
        """Share of the power where kx = 0 or ky = 0."""
        return self.between_rows + self.between_columns


def plane(ones: Bool[Tensor, "rows columns"]) -> Plane:
    """The spectrum in two dimensions of zeros and ones.

    Memory beside the matrix does not grow with it. All but `expected` are NaN where the entries do not differ.
    """
    n_rows, n_columns = ones.shape
    n_ones = int(np.count_nonzero(ones.numpy()))
    expected = (n_rows + n_columns - 2) / (n_rows * n_columns - 1) if n_rows * n_columns > 1 else math.nan
    if n_ones in (0, n_rows * n_columns):
        return Plane(math.nan, math.nan, math.nan, expected, None)
    mean = np.float32(n_ones / (n_rows * n_columns))
    first, total = _Moments(), _Moments()
    low = np.empty((n_rows, 0), np.float32)
    for panel in _blocks(n_columns // 2 + 1, n_rows, _PANEL):
        for sizes, times in _amplitudes_2d(ones.numpy(), mean, panel):
            total.add(sizes, times)
            first.add(sizes[:1], times)
            if low.shape[1] <= LOW:
                low = np.hstack([low, sizes[:, : LOW + 1 - low.shape[1]]])
    rows = _Moments()
    rows.add(low[:, :1], np.ones(1))
    return Plane(
        between_rows=rows.power / total.power,
        between_columns=first.power / total.power,
        amplitude_on_axes=(rows.amplitude + first.amplitude) / total.amplitude,
        expected=expected,
        low=_low(low, n_columns, math.sqrt(total.power / (n_rows * n_columns - 1))),
    )


@dataclass
class _Moments:
    """Sums over frequencies, in double precision."""

    power: float = 0.0
    amplitude: float = 0.0

    def add(self, sizes: NDArray[np.float32], times: NDArray[np.float64]) -> None:
        self.power += float(np.dot(times, (sizes * sizes).sum(axis=0, dtype=np.float64)))
        self.amplitude += float(np.dot(times, sizes.sum(axis=0, dtype=np.float64)))


def _blocks(count: int, length: int, most: int) -> list[slice]:
    """Stretches of rows or columns of a length, of at most so many numbers each."""
    step = max(most // length, 1)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _amplitudes_2d(
    ones: NDArray[np.bool_], mean: np.float32, panel: slice
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float64]]]:
    """Amplitudes at some frequencies along rows, and how many frequencies each of them stands for.

    0 and the highest of an even number stand for themselves, all others for their negative too.
    """
    n_rows, n_columns = ones.shape
    half = np.empty((n_rows, panel.stop - panel.start), np.complex64)
    for block in _blocks(n_rows, n_columns, _BLOCK):
        half[block] = scipy.fft.rfft(ones[block].astype(np.float32) - mean, axis=1, workers=1)[:, panel]
    for block in _blocks(half.shape[1], n_rows, _BLOCK):
        sizes = np.abs(scipy.fft.fft(half[:, block], axis=0, workers=1))
        frequencies = panel.start + np.arange(block.start, block.stop)
        if frequencies[0] == 0:
            sizes[0, 0] = 0  # of the mean, which is gone up to rounding
        yield sizes, np.where((frequencies == 0) | (2 * frequencies == n_columns), 1.0, 2.0)


def _low(low: NDArray[np.float32], n_columns: int, root_mean_square: float) -> NDArray[np.float32] | None:
    """The picture around frequency 0, whose left half mirrors the right one."""
    n_rows = len(low)
    up, right = min(LOW, n_rows // 2), min(LOW, n_columns // 2)
    if not up or not right:
        return None
    ky, kx = np.arange(-up, up)[:, None], np.arange(-right, right)[None]
    sizes = low[np.where(kx < 0, -ky, ky) % n_rows, np.abs(kx)]
    least = sizes[sizes > 0].min()
    shown: NDArray[np.float32] = np.log10(np.maximum(sizes, least) / np.float32(root_mean_square))
    return shown
