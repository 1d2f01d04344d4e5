"""What weights alone show of zero modes: spectra, pictures and neurons, with random controls beside them.

Paper `zero-modes`: Figs 1, 2 and 17 (spectra, binarised matrices, masks), 4 and 9 (neurons), section 5.1 (spectra in
two dimensions). Controls are drawn as `lesion zero-modes apply` draws them, from the same seeds: `random`, as many
weights of the matrix, and `matched`, as many of each exponent of |w|; zero modes are large weights, so that only the
second can tell their places from their sizes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from lesion.checkpoints import spectra
from lesion.checkpoints.masks import Masks
from lesion.checkpoints.neurons import Sums, lost, sums
from lesion.checkpoints.opened import Checkpoint
from lesion.checkpoints.pixels import above, grey, shares
from lesion.checkpoints.scopes import Region
from lesion.checkpoints.selection import Kind, select, tensor_seed
from lesion.engine.memory import give_back
from lesion.studies.zero_modes.looking import HEADS, NEURONS, Part, Plan

N_SEEDS = 3
"""Draws of each control."""
ARRAYS = "pictures"
"""Name of the arrays that hold the pictures."""
AHEAD = 1 << 25
"""Weights of the largest matrix of which a control is drawn while another is measured: both take memory."""
CONTROLS: dict[str, Kind] = {"random": "random", "matched": "random_matched"}
VARIANTS = ("original", "ablated", "zero_modes", "random", "random_ablated", "matched", "matched_ablated")
"""What `weights` says in tables of spectra: which weights of the matrix are kept, the others being 0."""
OF = ("mean", "mean_abs", "binarised", "mask", "random", "matched", "spectrum_2d")

_NEURON = (
    *("neuron", "mean_abs", "share_above_mean", "n_zero_modes", "fraction", "mean_abs_ablated", "change"),
    *("change_random", "change_random_sd", "change_matched", "change_matched_sd"),
)
COLUMNS = {
    "zero_modes_spectra": ("of", "weights", "seed", "frequency", "amplitude"),
    "zero_modes_harmonics": (
        *("of", "weights", "seed", "fundamental", "fundamental_reason", "amplitude_at_fundamental"),
        *("share_at_harmonics", "share_expected", "over_expected"),
    ),
    "zero_modes_spectra_2d": (
        *("of", "seed", "share_on_axes", "share_between_outputs", "share_between_inputs", "share_expected"),
        "amplitude_share_on_axes",
    ),
    "zero_modes_neurons": (*_NEURON, *(f"change_{of}_{draw + 1}" for of in CONTROLS for draw in range(N_SEEDS))),
    "zero_modes_neurons_top": (
        *_NEURON,
        *("change_median", "largest_random", "largest_random_sd", "largest_matched", "largest_matched_sd"),
    ),
    "zero_modes_images": (
        *("of", "image", "n_outputs", "n_inputs", "height", "width", "value_at_0", "value_at_255", "unit"),
    ),
}
"""Columns of each table behind `tensor`, `layer` and `component`."""
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("layer", "seed", "fundamental"), "Int64"),
    **dict.fromkeys(("frequency", "neuron", "n_zero_modes", "n_outputs", "n_inputs", "height", "width"), "int64"),
    **dict.fromkeys(("fundamental_reason", "image", "unit"), "str"),
    "of": pd.CategoricalDtype(list(OF)),
    "weights": pd.CategoricalDtype(list(VARIANTS)),
}
"""Of columns that are no float64; names that repeat are categories, which keeps millions of rows small."""


@dataclass(frozen=True)
class Looked:
    """What was found.

    Attributes:
        tables: by the names of `COLUMNS`; those of which there is nothing are left out.
        images: pictures of at most 256 by 256 pixels, by name; `zero_modes_images` says what their greys mean.
        looked_at: LAYER/COMPONENT of each matrix.
        warnings: what was left out, and why.
    """

    tables: dict[str, pd.DataFrame]
    images: dict[str, NDArray[np.uint8]]
    looked_at: list[str]
    warnings: list[str]


class Drawn(NamedTuple):
    """A set of weights: the mask, or a control.

    Attributes:
        of: `mask`, `random` or `matched`.
        seed: of a control; None for the mask.
        ones: (outputs, inputs), True for what is in the set.
    """

    of: str
    seed: int | None
    ones: Bool[Tensor, "outputs inputs"]


def look_at(
    tuned: Checkpoint,
    masks: Masks,
    plan: Plan,
    *,
    cast: str | None = None,
    seed: int = 0,
    on_part: Callable[[str], None] | None = None,
) -> Looked:
    """Looks at the matrices of a plan, one after the other, in two threads.

    Args:
        tuned: the checkpoint whose weights are looked at.
        masks: its zero modes; matrices that were not compared have none and are left out.
        plan: which matrices.
        cast: what both sides were rounded to before they were compared.
        seed: the first of three for each control.
        on_part: told LAYER/COMPONENT of each matrix before it is looked at.
    """
    found = _Found(_Tables(plan.parts))
    give_back()
    for part in plan.parts:
        if part.tensor not in masks:
            found.notes["no counterpart in BASE: not looked at"].append(part.name)
            continue
        if on_part is not None:
            on_part(part.name)
        _Matrix(part, tuned, masks, cast, plan, found).measure(seed)
        give_back()
    lines = [f"{', '.join(dict.fromkeys(names))}: {note}" for note, names in found.notes.items()]
    looked_at = list(dict.fromkeys(found.looked_at))
    return Looked(found.tables.joined(), found.images, looked_at, [*plan.warnings, *lines])


def seeds(first: int) -> list[int]:
    """Seeds of the draws of each control."""
    return list(range(first, first + N_SEEDS))


class _Tables:
    """Tables as they grow, matrix by matrix."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._types = _TYPES | {
            "tensor": pd.CategoricalDtype(list(dict.fromkeys(part.tensor for part in parts))),
            "component": pd.CategoricalDtype(list(dict.fromkeys(part.component for part in parts))),
        }
        self._pieces = defaultdict[str, list[pd.DataFrame]](list)
        self._rows = defaultdict[str, list[dict[str, Any]]](list)

    def add(self, table: str, part: Part, columns: Mapping[str, Any], n_rows: int) -> None:
        """Adds rows about one matrix; a column is as long as they are many, or one value for all of them."""
        made = {
            name: pd.Series(value, index=range(n_rows), dtype=self._types.get(name, "float64"))
            for name, value in self._in_order(table, part, columns).items()
        }
        self._pieces[table].append(pd.DataFrame(made))

    def add_row(self, table: str, part: Part, row: Mapping[str, Any]) -> None:
        """Adds one row."""
        self._rows[table].append(self._in_order(table, part, row))

    def joined(self) -> dict[str, pd.DataFrame]:
        """All tables of which there are rows."""
        for table, rows in self._rows.items():
            types = {name: self._types.get(name, "float64") for name in rows[0]}
            self._pieces[table] = [pd.DataFrame(rows).astype(types)]
        return {name: pd.concat(self._pieces[name], ignore_index=True) for name in COLUMNS if self._pieces[name]}

    def _in_order(self, table: str, part: Part, given: Mapping[str, Any]) -> dict[str, Any]:
        assert set(given) == set(COLUMNS[table]), (table, set(given) ^ set(COLUMNS[table]))
        own = {"tensor": part.tensor, "layer": part.layer, "component": part.component}
        return own | {name: given[name] for name in COLUMNS[table]}


@dataclass
class _Found:
    """What comes together as matrices are looked at; `notes` are what is to be said, and of which matrices."""

    tables: _Tables
    images: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    notes: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    looked_at: list[str] = field(default_factory=list)


class _Matrix:
    """One matrix that is looked at, as it lies in the file and as (outputs, inputs)."""

    def __init__(
        self, part: Part, tuned: Checkpoint, masks: Masks, cast: str | None, plan: Plan, found: _Found
    ) -> None:
        self._part, self._plan, self._found = part, plan, found
        self._stored, self._mask = part.weight(tuned.tensors[part.tensor], cast), part.mask(masks)
        self._weight = part.oriented(self._stored)
        self._kept = (HEADS | NEURONS).get(part.component)
        self._whole = sums(self._weight, None, self._kept or 0)

    def measure(self, seed: int) -> None:
        """Everything that is measured of it; `seed` is the first of the controls'."""
        if not np.isfinite(self._whole.absolute).all():
            self._note("weights that are not finite: not looked at")
            return
        if not bool(self._mask.any()):
            self._note("no zero modes: what is relative to them is NaN")
        self._found.looked_at.append(self._part.name)
        pictures = dict[str, NDArray[np.float64]]()
        taken = list[tuple[str, int | None, Sums]]()
        self._binarised()
        for of, own_seed, ones in self._sets(seed):
            self._plane(of, own_seed, ones)
            if self._kept is not None:
                taken.append((of, own_seed, sums(self._weight, ones, self._kept)))
            if of not in pictures:
                pictures[of] = shares(ones)
            del ones  # before the next is drawn
            give_back()
        self._draw(pictures)
        if self._part.component in HEADS:
            self._spectra(taken)
        if self._part.component in NEURONS:
            self._neurons(taken)

    def _binarised(self) -> None:
        """What there is of |w| above its mean; the matrix of zeros and ones is not kept."""
        ones = above(self._weight, float(self._whole.absolute.sum()) / self._weight.numel())
        self._plane("binarised", None, ones)
        self._image("binarised", shares(ones), 0.0, 1.0, "share above mean |w|")
        self._n_above = np.count_nonzero(ones.numpy(), axis=1 - (self._kept or 0))

    def _note(self, note: str) -> None:
        self._found.notes[note].append(self._part.name)

    def _sets(self, seed: int) -> Iterator[Drawn]:
        """The mask, then each control; of matrices that are not too large the next is drawn meanwhile, in a thread."""
        wanted = list(product(CONTROLS, seeds(seed)))
        yield Drawn("mask", None, self._part.oriented(self._mask))
        if self._mask.numel() > AHEAD:
            yield from (Drawn(of, own_seed, self._control(of, own_seed)) for of, own_seed in wanted)
            return
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(self._control, *wanted[0])
            for (of, own_seed), after in zip(wanted, [*wanted[1:], None], strict=True):
                ones = following.result()
                if after is not None:
                    following = pool.submit(self._control, *after)
                yield Drawn(of, own_seed, ones)

    def _control(self, of: str, seed: int) -> Bool[Tensor, "outputs inputs"]:
        own = tensor_seed(seed, self._part.tensor)
        return self._part.oriented(select(CONTROLS[of], self._mask, self._stored, Region(), seed=own))

    def _plane(self, of: str, seed: int | None, ones: Bool[Tensor, "outputs inputs"]) -> None:
        found = spectra.plane(ones)
        row = {
            "of": of,
            "seed": seed,
            "share_on_axes": found.on_axes,
            "share_between_outputs": found.between_rows,
            "share_between_inputs": found.between_columns,
            "share_expected": found.expected,
            "amplitude_share_on_axes": found.amplitude_on_axes,
        }
        self._found.tables.add_row("zero_modes_spectra_2d", self._part, row)
        if of == "binarised" and found.low is not None:
            unit = "log10 of amplitude over root mean square"
            self._image("spectrum_2d", found.low, float(found.low.min()), float(found.low.max()), unit)

    def _draw(self, masks: Mapping[str, NDArray[np.float64]]) -> None:
        """Pictures of the mask and its controls, on one scale."""
        most = max(float(picture.max()) for picture in masks.values())
        for of, picture in masks.items():
            unit = "share of zero modes" if of == "mask" else "share drawn"
            self._image(of, picture, 0.0, most or 1.0, unit)

    def _image(self, of: str, values: NDArray[np.floating], low: float, high: float, unit: str) -> None:
        name = f"{self._part.key}/{of}"
        self._found.images[name] = grey(values, low, high)
        (n_outputs, n_inputs), (height, width) = self._weight.shape, values.shape
        row = {
            **{"of": of, "image": name, "n_outputs": n_outputs, "n_inputs": n_inputs, "height": height},
            **{"width": width, "value_at_0": low, "value_at_255": high, "unit": unit},
        }
        self._found.tables.add_row("zero_modes_images", self._part, row)

    def _spectra(self, taken: Sequence[tuple[str, int | None, Sums]]) -> None:
        names = {"mask": ("zero_modes", "ablated")} | {name: (name, f"{name}_ablated") for name in CONTROLS}
        variants: list[tuple[str, int | None, Sums]] = [("original", None, self._whole)]
        for of, seed, part in taken:
            alone, ablated = names[of]
            variants += [(ablated, seed, self._whole - part), (alone, seed, part)]
        n_averaged = self._weight.shape[1 - HEADS[self._part.component]]
        rows, found = [], []
        for weights, seed, summed in variants:
            for of, values in (("mean", summed.signed), ("mean_abs", summed.absolute)):
                rows.append({"of": of, "weights": weights, "seed": seed})
                found.append(spectra.amplitudes(values / n_averaged))
        n_points = len(found[0])
        columns = {
            name: np.repeat(np.array([row[name] for row in rows], dtype=object), n_points)
            for name in ("of", "weights", "seed")
        }
        columns["frequency"] = np.tile(np.arange(1, n_points + 1), len(rows))
        columns["amplitude"] = np.concatenate(found)
        self._found.tables.add("zero_modes_spectra", self._part, columns, len(rows) * n_points)
        self._harmonics(rows, found)

    def _harmonics(self, rows: Sequence[Mapping[str, Any]], found: Sequence[spectra.Amplitudes]) -> None:
        assert self._plan.heads is not None
        assert self._plan.rotary is not None
        component = self._part.component
        n = self._weight.shape[HEADS[component]]
        frequency, reason = spectra.fundamental(component, n, self._plan.heads, self._plan.rotary)
        if frequency is None:
            self._note(reason)
        for row, spectrum in zip(rows, found, strict=True):
            share = spectra.Harmonics(np.nan, np.nan, np.nan)
            if frequency is not None:
                share = spectra.harmonics(spectrum, n, frequency)
            numbers = {
                "fundamental": frequency,
                "fundamental_reason": reason,
                "amplitude_at_fundamental": share.at_fundamental,
                "share_at_harmonics": share.share,
                "share_expected": share.expected,
                "over_expected": share.over_expected,
            }
            self._found.tables.add_row("zero_modes_harmonics", self._part, {**row, **numbers})

    def _neurons(self, taken: Sequence[tuple[str, int | None, Sums]]) -> None:
        kept, whole = NEURONS[self._part.component], self._whole
        n_weights = self._weight.shape[1 - kept]
        mask = self._part.oriented(self._mask)
        changes = {
            of: np.stack([lost(whole.absolute, part.absolute) for name, _, part in taken if name == of])
            for of in ("mask", *CONTROLS)
        }
        ablated = whole - next(part for of, _, part in taken if of == "mask")
        n_zero_modes = np.count_nonzero(mask.numpy(), axis=1 - kept)
        columns: dict[str, Any] = {
            "neuron": np.arange(len(whole.absolute)),
            "mean_abs": whole.absolute / n_weights,
            "share_above_mean": self._n_above / n_weights,
            "n_zero_modes": n_zero_modes,
            "fraction": n_zero_modes / n_weights,
            "mean_abs_ablated": ablated.absolute / n_weights,
            "change": changes["mask"][0],
        }
        for of in CONTROLS:
            columns[f"change_{of}"] = changes[of].mean(axis=0)
            columns[f"change_{of}_sd"] = changes[of].std(axis=0, ddof=1)
            columns |= {f"change_{of}_{draw + 1}": change for draw, change in enumerate(changes[of])}
        self._found.tables.add("zero_modes_neurons", self._part, columns, len(whole.absolute))
        self._most_affected(columns, changes)

    def _most_affected(self, columns: Mapping[str, Any], changes: Mapping[str, NDArray[np.float64]]) -> None:
        """The neuron that loses most, beside the largest losses of the controls: a maximum needs a maximum."""
        known = np.flatnonzero(~np.isnan(changes["mask"][0]))
        if not len(known):
            self._note("neurons of nothing but zeros: none is most affected")
            return
        top = known[np.argmax(changes["mask"][0][known])]
        row = {name: np.asarray(columns[name])[top].item() for name in _NEURON}
        row["change_median"] = float(np.median(changes["mask"][0][known]))
        for of in CONTROLS:
            largest = changes[of][:, known].max(axis=1)
            row[f"largest_{of}"] = float(largest.mean())
            row[f"largest_{of}_sd"] = float(largest.std(ddof=1))
        self._found.tables.add_row("zero_modes_neurons_top", self._part, row)
