"""What weights alone show of zero modes: spectra, pictures and neurons, with random controls beside them.

Paper `zero-modes`: Figs 1, 2 and 17 (spectra, binarised matrices, masks), 4 and 9 (neurons), section 5.1 (spectra in
two dimensions). Controls are drawn as `lesion zero-modes apply` draws them, from the same seeds: `random`, as many
weights of the matrix, and `matched`, as many of each exponent of |w|; zero modes are large weights, so that only the
second can tell their places from their sizes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from lesion.checkpoints import spectra
from lesion.checkpoints.masks import Masks
from lesion.checkpoints.neurons import Sums, lost, sums
from lesion.checkpoints.opened import Checkpoint
from lesion.checkpoints.pixels import grey, shares
from lesion.checkpoints.scopes import Region
from lesion.checkpoints.selection import Kind, select, tensor_seed
from lesion.studies.zero_modes.looking import HEADS, NEURONS, Part, Plan

N_SEEDS = 3
"""Draws of each control."""
ARRAYS = "pictures"
"""Name of the arrays that hold the pictures."""
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
    "zero_modes_neurons": _NEURON,
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


def look(
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
    tables, images = _Tables(plan.parts), dict[str, NDArray[np.uint8]]()
    looked_at, notes = [], defaultdict[str, list[str]](list)
    for part in plan.parts:
        if part.tensor not in masks:
            notes["no counterpart in BASE: not looked at"].append(part.name)
            continue
        if on_part is not None:
            on_part(part.name)
        weight, mask = part.weight(tuned.tensors[part.tensor], cast), part.mask(masks)
        if not all(bool(torch.isfinite(row).all()) for row in weight):
            notes["weights that are not finite: not looked at"].append(part.name)
            continue
        if not bool(mask.any()):
            notes["no zero modes: what is relative to them is NaN"].append(part.name)
        _Matrix(part, weight, mask, plan, tables, images, notes).measure(seed)
        looked_at.append(part.name)
    lines = [f"{', '.join(dict.fromkeys(names))}: {note}" for note, names in notes.items()]
    return Looked(tables.joined(), images, list(dict.fromkeys(looked_at)), [*plan.warnings, *lines])


class _Tables:
    """Tables in pieces, one a matrix."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._types = _TYPES | {
            "tensor": pd.CategoricalDtype(list(dict.fromkeys(part.tensor for part in parts))),
            "component": pd.CategoricalDtype(list(dict.fromkeys(part.component for part in parts))),
        }
        self._pieces = defaultdict[str, list[pd.DataFrame]](list)

    def add(self, table: str, part: Part, columns: Mapping[str, Any]) -> None:
        """Adds rows about one matrix; a column is an array, or a number or a word for all rows."""
        assert set(columns) == set(COLUMNS[table]), (table, set(columns) ^ set(COLUMNS[table]))
        n_rows = max((len(value) for value in columns.values() if isinstance(value, np.ndarray)), default=1)
        given = {"tensor": part.tensor, "layer": part.layer, "component": part.component}
        given |= {name: columns[name] for name in COLUMNS[table]}
        made = {
            name: pd.Series(value, index=range(n_rows), dtype=self._types.get(name, "float64"))
            for name, value in given.items()
        }
        self._pieces[table].append(pd.DataFrame(made))

    def joined(self) -> dict[str, pd.DataFrame]:
        return {name: pd.concat(self._pieces[name], ignore_index=True) for name in COLUMNS if self._pieces[name]}


class _Matrix:
    """One matrix that is looked at: `weight` and `mask` are as they lie in the file."""

    def __init__(
        self,
        part: Part,
        weight: Float[Tensor, "..."],
        mask: Bool[Tensor, "..."],
        plan: Plan,
        tables: _Tables,
        images: dict[str, NDArray[np.uint8]],
        notes: dict[str, list[str]],
    ) -> None:
        self._part, self._stored, self._mask, self._plan = part, weight, mask, plan
        self._tables, self._images, self._notes = tables, images, notes
        self._weight = part.oriented(weight)
        size = self._weight.abs()
        self._above: Bool[Tensor, "outputs inputs"] = size > size.mean(dtype=torch.float64)

    def measure(self, seed: int) -> None:
        """Everything that is measured of it; `seed` is the first of the controls'."""
        kept = (HEADS | NEURONS).get(self._part.component)
        whole = None if kept is None else sums(self._weight, None, kept)
        pictures = dict[str, NDArray[np.float64]]()
        parts = list[tuple[str, int | None, Sums]]()
        self._plane("binarised", None, self._above)
        for of, own_seed, ones in self._sets(seed):
            self._plane(of, own_seed, ones)
            if kept is not None:
                parts.append((of, own_seed, sums(self._weight, ones, kept)))
            pictures.setdefault(of, shares(ones))
        self._draw(pictures)
        if whole is not None and self._part.component in HEADS:
            self._spectra(whole, parts)
        if whole is not None and self._part.component in NEURONS:
            self._neurons(whole, parts)

    def _sets(self, seed: int) -> Iterator[Drawn]:
        """The mask, then each control; the next one is drawn in a thread of its own meanwhile."""
        wanted = list(product(CONTROLS, range(seed, seed + N_SEEDS)))
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(self._control, *wanted[0])
            yield Drawn("mask", None, self._part.oriented(self._mask))
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
        self._tables.add("zero_modes_spectra_2d", self._part, row)
        if of == "binarised" and found.low is not None:
            unit = "log10 of amplitude over root mean square"
            self._image("spectrum_2d", found.low, float(found.low.min()), float(found.low.max()), unit)

    def _draw(self, masks: Mapping[str, NDArray[np.float64]]) -> None:
        """Pictures; the mask and its controls have one scale."""
        self._image("binarised", shares(self._above), 0.0, 1.0, "share above mean |w|")
        most = max(float(picture.max()) for picture in masks.values())
        for of, picture in masks.items():
            unit = "share of zero modes" if of == "mask" else "share drawn"
            self._image(of, picture, 0.0, most or 1.0, unit)

    def _image(self, of: str, values: NDArray[np.floating], low: float, high: float, unit: str) -> None:
        name = f"{self._part.key}/{of}"
        self._images[name] = grey(values, low, high)
        (n_outputs, n_inputs), (height, width) = self._weight.shape, values.shape
        row = {
            **{"of": of, "image": name, "n_outputs": n_outputs, "n_inputs": n_inputs, "height": height},
            **{"width": width, "value_at_0": low, "value_at_255": high, "unit": unit},
        }
        self._tables.add("zero_modes_images", self._part, row)

    def _spectra(self, whole: Sums, parts: Sequence[tuple[str, int | None, Sums]]) -> None:
        names = {"mask": ("zero_modes", "ablated")} | {name: (name, f"{name}_ablated") for name in CONTROLS}
        variants: list[tuple[str, int | None, Sums]] = [("original", None, whole)]
        for of, seed, part in parts:
            alone, ablated = names[of]
            variants += [(ablated, seed, whole - part), (alone, seed, part)]
        n_averaged = self._weight.shape[1 - HEADS[self._part.component]]
        for weights, seed, found in variants:
            for of, summed in (("mean", found.signed), ("mean_abs", found.absolute)):
                self._spectrum({"of": of, "weights": weights, "seed": seed}, summed / n_averaged)

    def _spectrum(self, row: dict[str, Any], means: NDArray[np.float64]) -> None:
        plan, component, n = self._plan, self._part.component, len(means)
        assert plan.heads is not None
        assert plan.rotary is not None
        spectrum = spectra.amplitudes(means)
        points = {"frequency": np.arange(1, len(spectrum) + 1), "amplitude": spectrum}
        self._tables.add("zero_modes_spectra", self._part, row | points)
        frequency, reason = spectra.fundamental(component, n, plan.heads, plan.rotary)
        found = spectra.Harmonics(np.nan, np.nan, np.nan)
        if frequency is not None:
            found = spectra.harmonics(spectrum, n, frequency)
        elif self._part.name not in self._notes[reason]:
            self._notes[reason].append(self._part.name)
        numbers = {
            "fundamental": frequency,
            "fundamental_reason": reason,
            "amplitude_at_fundamental": found.at_fundamental,
            "share_at_harmonics": found.share,
            "share_expected": found.expected,
            "over_expected": found.over_expected,
        }
        self._tables.add("zero_modes_harmonics", self._part, row | numbers)

    def _neurons(self, whole: Sums, parts: Sequence[tuple[str, int | None, Sums]]) -> None:
        kept = NEURONS[self._part.component]
        n_weights = self._weight.shape[1 - kept]
        mask = self._part.oriented(self._mask)
        changes = {
            of: np.stack([lost(whole.absolute, part.absolute) for name, _, part in parts if name == of])
            for of in ("mask", *CONTROLS)
        }
        taken = next(part for of, _, part in parts if of == "mask")
        n_zero_modes = np.count_nonzero(mask.numpy(), axis=1 - kept)
        columns: dict[str, Any] = {
            "neuron": np.arange(len(whole.absolute)),
            "mean_abs": whole.absolute / n_weights,
            "share_above_mean": np.count_nonzero(self._above.numpy(), axis=1 - kept) / n_weights,
            "n_zero_modes": n_zero_modes,
            "fraction": n_zero_modes / n_weights,
            "mean_abs_ablated": (whole - taken).absolute / n_weights,
            "change": changes["mask"][0],
        }
        for of in CONTROLS:
            columns[f"change_{of}"] = changes[of].mean(axis=0)
            columns[f"change_{of}_sd"] = changes[of].std(axis=0, ddof=1)
        self._tables.add("zero_modes_neurons", self._part, columns)
        self._most_affected(columns, changes)

    def _most_affected(self, columns: Mapping[str, Any], changes: Mapping[str, NDArray[np.float64]]) -> None:
        """The neuron that loses most, beside the largest losses of the controls: a maximum needs a maximum."""
        known = np.flatnonzero(~np.isnan(changes["mask"][0]))
        if not len(known):
            self._notes["neurons of nothing but zeros: none is most affected"].append(self._part.name)
            return
        top = known[np.argmax(changes["mask"][0][known])]
        row = {name: np.asarray(values)[top].item() for name, values in columns.items()}
        row["change_median"] = float(np.median(changes["mask"][0][known]))
        for of in CONTROLS:
            largest = changes[of][:, known].max(axis=1)
            row[f"largest_{of}"] = float(largest.mean())
            row[f"largest_{of}_sd"] = float(largest.std(ddof=1))
        self._tables.add("zero_modes_neurons_top", self._part, row)
