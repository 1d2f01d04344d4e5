"""Pictures of matrices that a `zero-modes diff` looked at: spectra, masks and neurons (Figs 1, 2, 4, 9, 17; §5.1)."""

import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lesion.errors import RunFolderError
from lesion.report.content import Curve, Curves, FigureSpec, Grid, Mark, Picture, TableSpec
from lesion.report.numbers import count, listed
from lesion.report.palette import WEIGHTS
from lesion.report.sections.zero_modes.rows import PROJECTIONS, called, columns, numbers, optional_table, share
from lesion.results import RunView

ON_PAGE = 4
"""Matrices whose spectra and pictures the page shows; the others are files."""
LAYERS_ON_PAGE = 2
"""Layers whose neurons the page shows."""
MARKS = 6
"""Harmonics that are marked."""
LABELS = {
    "original": "all weights",
    "ablated": "zero modes set to 0",
    "zero_modes": "zero modes alone",
    "random": "random weights",
    "matched": "random, same exponents",
}
SHORT = {
    "original": "all weights",
    "ablated": "zero modes removed",
    "zero_modes": "zero modes alone",
    "random": "random weights",
    "matched": "same exponents",
}
VARIANTS = ("original", "ablated", "zero_modes", "random", "matched")
PLANES = {
    "binarised": "|W| above its mean",
    "mask": "zero modes",
    "random": "random weights",
    "matched": "same exponents",
}
TITLES = {
    "binarised": "|W| above its mean",
    "mask": "zero modes",
    "random": "random weights",
    "matched": "random, same exponents",
}
OF = {"mean_abs": "mean of |W|", "mean": "mean of W"}
KEYS = ["tensor", "layer", "component"]


@dataclass(frozen=True)
class Looked:
    """What a run that looked at matrices recorded; a table that it does not have is None.

    Attributes:
        images: pictures as bytes, by the names in `listed_images`.
    """

    spectra: pd.DataFrame | None
    harmonics: pd.DataFrame | None
    planes: pd.DataFrame | None
    neurons: pd.DataFrame | None
    top: pd.DataFrame | None
    listed_images: pd.DataFrame | None
    images: dict[str, np.ndarray]

    @property
    def matrices(self) -> list[tuple[str, int, str]]:
        """Tensor, layer and component of each matrix of which there are pictures, in the order of the run."""
        if self.planes is None:
            return []
        known = self.planes[self.planes["component"].isin(PROJECTIONS)]
        found = known[KEYS].drop_duplicates().itertuples(index=False, name=None)
        return [(str(tensor), int(layer), str(component)) for tensor, layer, component in found]


def read(run: RunView) -> Looked:
    """The tables and images of a run, as far as it has them.

    Raises:
        RunFolderError: the table of images names one that is not there, or that is no image.
    """
    listed_images = optional_table(run, "zero_modes_images")
    images = run.arrays("pictures") if listed_images is not None else {}
    if listed_images is not None:
        bad = [name for name in listed_images["image"] if name not in images or images[name].ndim != 2]
        if bad:
            raise RunFolderError(f"{run.path} has no picture {bad[0]!r}; give the command again with --overwrite")
    return Looked(
        spectra=optional_table(run, "zero_modes_spectra"),
        harmonics=optional_table(run, "zero_modes_harmonics"),
        planes=optional_table(run, "zero_modes_spectra_2d"),
        neurons=optional_table(run, "zero_modes_neurons"),
        top=optional_table(run, "zero_modes_neurons_top"),
        listed_images=listed_images,
        images=images,
    )


def sentences(looked: Looked) -> Iterator[str]:
    """What the pictures show, in numbers of the tables."""
    if looked.harmonics is not None:
        yield from _heads(looked.harmonics)
    if looked.top is not None:
        yield from _most_affected(looked.top)


def _heads(harmonics: pd.DataFrame) -> Iterator[str]:
    """The matrix whose zero modes show most head structure beside those of their exponents."""
    table = harmonics[(harmonics["of"] == "mean_abs") & np.isfinite(numbers(harmonics, "share_at_harmonics"))]
    keys = [*KEYS, "fundamental", "share_expected"]
    means = table.groupby([*keys, "weights"], observed=True)["share_at_harmonics"].mean().unstack("weights")
    compared = ["original", "zero_modes", "matched"]
    if not set(compared) <= set(means.columns):
        return
    found = means.dropna(subset=compared).reset_index().to_dict("records")
    if not found:
        return
    most = max(found, key=lambda row: float(row["zero_modes"]))
    above = sum(row["zero_modes"] > row["matched"] for row in found)
    yield (
        "Structure of heads, as the share of power of the mean |w| at multiples of the heads’ frequency: among zero "
        f"modes it is largest in {_place(most)}, {share(most['zero_modes'])} (frequency {most['fundamental']}; all "
        f"weights {share(most['original'])}, random ones of the same exponents {share(most['matched'])}, white noise "
        f"{share(most['share_expected'])}). It is larger among zero modes than among random ones of the same exponents "
        f"in {above} of {_matrices(len(found))}."
    )


def _place(row: Mapping[Hashable, Any]) -> str:
    return f"{called(str(row['component']))} of layer {row['layer']}"


def _matrices(number_of: int) -> str:
    return "1 matrix" if number_of == 1 else f"{number_of:,} matrices"


def _most_affected(top: pd.DataFrame) -> Iterator[str]:
    """The neuron that loses most, beside the greatest losses of the controls."""
    found = [row for row in top.to_dict("records") if np.isfinite(row["change"])]
    if not found:
        return
    row = max(found, key=lambda one: float(one["change"]))
    above = sum(one["change"] > one["largest_matched"] for one in found)
    yield (
        f"The neuron that setting zero modes to 0 affects most is {row['neuron']} in {_place(row)}: it loses "
        f"{share(row['change'])} of its summed |w| (the median neuron there {share(row['change_median'])}; the most "
        f"affected one under random weights {share(row['largest_random'])}, under those of the same exponents "
        f"{share(row['largest_matched'])}). The most affected neuron loses more than under those of the same exponents "
        f"in {above} of {_matrices(len(found))}."
    )


def notes(looked: Looked) -> Iterator[str]:
    """How controls were drawn."""
    if looked.planes is not None:
        seeds = looked.planes["seed"].dropna().nunique()
        yield (
            f"Looked at with TUNED’s weights: {_matrices(len(looked.matrices))}. Controls: as many random weights of "
            "the same matrix, and as many of each exponent of |w|, because zero modes are large weights; "
            f"{count(seeds, 'draw')} each."
        )


def definitions(looked: Looked) -> Iterator[tuple[str, str]]:
    """One line for each quantity of the pictures."""
    if looked.spectra is not None:
        yield (
            "spectrum",
            "amplitude of the Fourier transform of a matrix’s mean over the side without heads, minus its own mean.",
        )
        yield (
            "harmonics",
            "multiples of the frequency at which heads repeat along the matrix, with halves of heads where ",
        )
        "rotary positions pair them."
    if looked.planes is not None:
        yield (
            "share on the axes",
            "of the power of a picture’s Fourier transform in two dimensions, what lies where kx = 0 or ky = 0.",
        )
    if looked.neurons is not None:
        yield "loss of a neuron", "the share of its summed |w| that is gone once the chosen weights are 0."


def figures(looked: Looked) -> Iterator[FigureSpec]:
    """The summary of all matrices, a figure a matrix, and a figure a layer of neurons."""
    yield from _summary(looked)
    for index, (tensor, layer, component) in enumerate(looked.matrices):
        spectra = list(_spectra(looked, tensor, component))
        images = _pictures(looked, tensor, component, with_spectra=bool(spectra))
        panels: list[Curves | Picture] = [*spectra, *images]
        if panels:
            yield _matrix(tuple(panels), layer, component, on_page=index in _shown(looked))
    if looked.neurons is not None:
        yield from _neurons(looked.neurons, looked.top)


def _shown(looked: Looked) -> set[int]:
    """Which matrices the page shows: those with heads first, in the order of the run."""
    has_heads = set() if looked.spectra is None else set(looked.spectra["tensor"])
    order = sorted(range(len(looked.matrices)), key=lambda index: looked.matrices[index][0] not in has_heads)
    return set(order[:ON_PAGE])


def _summary(looked: Looked) -> Iterator[FigureSpec]:
    """All matrices beside each other: head structure, and regularity in two dimensions."""
    panels = []
    if looked.harmonics is not None:
        for of, name in OF.items():
            rows = looked.harmonics[looked.harmonics["of"] == of]
            panels.append(_by_matrix(rows, "weights", VARIANTS, SHORT, "power at harmonics, × noise", name))
    if looked.planes is not None:
        rows = looked.planes.assign(over_expected=looked.planes["share_on_axes"] / looked.planes["share_expected"])
        panels.append(_by_matrix(rows, "of", tuple(PLANES), PLANES, "power on the axes, × noise", "2-D spectrum"))
    panels = [panel for panel in panels if np.isfinite(panel.values).any()]
    if panels:
        yield FigureSpec(
            "zero_modes_structure",
            "Regularity of each matrix that was looked at, named by layer and component: the share of power at the "
            "harmonics of its heads over the share that white noise has there, and the share of power on the axes of "
            "the transform in two dimensions likewise; 1 is white noise. Harmonics are what heads of one shape leave; "
            "heads that differ only in size leave everything but harmonics, which is below 1 and structure too. "
            "Controls are means over draws.",
            "Regularity of weights, zero modes and controls by matrix",
            tuple(panels),
            columns=columns(panels),
        )


def _by_matrix(
    rows: pd.DataFrame, by: str, names: tuple[str, ...], labels: dict[str, str], title: str, note: str
) -> Grid:
    """Power over what white noise has there: a row a kind of weights, a column a matrix, means over draws."""
    matrices = list(rows[KEYS].drop_duplicates().itertuples(index=False, name=None))
    means = rows.groupby(["tensor", "component", by], observed=True)["over_expected"].mean()
    values = [
        [float(means.get((tensor, component, name), np.nan)) for tensor, _, component in matrices] for name in names
    ]
    places = tuple(f"{layer}/{component}" for _, layer, component in matrices)
    own, array = tuple(labels[name] for name in names), np.array(values)
    return Grid(title, own, places, array, x_label="layer/component", scale="log", include=0.0, note=note)


def _matrix(panels: tuple[Curves | Picture, ...], layer: int, component: str, *, on_page: bool) -> FigureSpec:
    drawn = (
        "Amplitude of the spectrum of the matrix’s mean, for all weights, with zero modes set to 0, for zero modes "
        "alone, and for random weights in their place (mean and range over draws); the deepest dips are cut off, and "
        "of frequencies that share a place the greatest is drawn, which lifts the right end. "
        "Dotted: harmonics of its heads. "
        if any(isinstance(panel, Curves) for panel in panels)
        else ""
    )
    shown = (
        "Pictures: a pixel is the share of weights in its cell of the matrix, from none (white) to the most (black): "
        "weights whose |w| is above the mean, zero modes, as many random weights, and as many of the same exponents."
    )
    low = " The 2-D spectrum is the logarithm of the amplitude around frequency 0." * any(
        panel.title.startswith("2-D") for panel in panels
    )
    text = f"{called(component)} of layer {layer}. {drawn}{shown}{low}"
    name = f"zero_modes_matrix_{layer}_{component}"
    wide = 4 if any(isinstance(panel, Curves) for panel in panels) else 3
    return FigureSpec(name, text, f"{called(component)} of layer {layer}", panels, columns=wide, on_page=on_page)


def _spectra(looked: Looked, tensor: str, component: str) -> Iterator[Curves]:
    if looked.spectra is None:
        return
    own = looked.spectra[(looked.spectra["tensor"] == tensor) & (looked.spectra["component"] == component)]
    for of, name in OF.items():
        rows = own[own["of"] == of]
        if rows.empty:
            continue
        lines = tuple(
            _curve(rows[rows["weights"] == weights], weights)
            for weights in VARIANTS
            if (rows["weights"] == weights).any()
        )
        title = f"amplitude, {name}"
        marks = tuple(_harmonics(looked, tensor, component, int(rows["frequency"].max())))
        yield Curves(
            title,
            lines,
            "frequency (cycles a matrix)",
            scale="log",
            log_x=True,
            from_zero=False,
            peaks=True,
            marks=marks,
        )


def _curve(rows: pd.DataFrame, weights: str) -> Curve:
    """One kind of weights: the mean over draws, and their range where there are several."""
    grouped = rows.groupby("frequency")["amplitude"]
    mean = grouped.mean()
    y = np.where(mean > 0, mean, np.nan)  # nothing on a logarithmic axis
    x = np.asarray(mean.index, dtype=np.float64)
    low = high = None
    if rows["seed"].nunique() > 1:
        low, high = (np.where(ends > 0, ends, np.nan) for ends in (grouped.min(), grouped.max()))
    return Curve(LABELS[weights], WEIGHTS[weights], x, y, low, high, dashed=weights == "ablated")


def _harmonics(looked: Looked, tensor: str, component: str, highest: int) -> Iterator[Mark]:
    if looked.harmonics is None:
        return
    own = looked.harmonics[(looked.harmonics["tensor"] == tensor) & (looked.harmonics["component"] == component)]
    known = own["fundamental"].dropna()
    if len(known):
        first = int(known.iloc[0])
        for times in range(1, min(MARKS, highest // first) + 1):
            yield Mark(str(first) if times == 1 else "", x=float(times * first))


def _pictures(looked: Looked, tensor: str, component: str, *, with_spectra: bool) -> Iterator[Picture]:
    """The zero modes beside both controls; the matrix above its mean and its transform before or behind them."""
    if looked.listed_images is None:
        return
    table = looked.listed_images
    rows = table[(table["tensor"] == tensor) & (table["component"] == component)].to_dict("records")
    own = {str(row["of"]): row for row in rows}
    matrix, masks = ("binarised", "spectrum_2d"), ("mask", "random", "matched")
    for of in (of for of in ((*matrix, *masks) if with_spectra else (*masks, *matrix)) if of in own):
        pixels, row = looked.images[str(own[of]["image"])], own[of]
        if of == "spectrum_2d":
            axes = ("frequency along inputs", "along outputs")
            yield Picture("2-D spectrum of |W| above its mean", pixels, (*pixels.shape,), *axes, centred=True)
            continue
        shape = (int(row["n_outputs"]), int(row["n_inputs"]))
        if of in masks:
            black = f"black: {share(float(row['value_at_255']))}"
            yield Picture(black, pixels, shape, "input", "output", note=TITLES[of])
        else:
            yield Picture(TITLES[of], pixels, shape, "input", "output")


def _neurons(neurons: pd.DataFrame, top: pd.DataFrame | None) -> Iterator[FigureSpec]:
    """A figure a layer: profiles above, losses below."""
    layers = sorted({int(layer) for layer in neurons["layer"]})
    for place, layer in enumerate(layers):
        parts = [
            (str(component), rows.sort_values("neuron"))
            for component, rows in neurons[neurons["layer"] == layer].groupby("component", observed=True, sort=False)
        ]
        profiles = [_profile(rows, component) for component, rows in parts]
        losses = [_losses(rows, component, _top(top, layer, component)) for component, rows in parts]
        yield FigureSpec(
            f"zero_modes_neurons_{layer}",
            f"Neurons of layer {layer}, by {listed([called(component) for component, _ in parts])}. Above: mean |w| of "
            "each neuron, in order of size, with all weights and with zero modes set to 0. Below: the share of its "
            "summed |w| that a neuron loses, the most affected neurons first, when zero modes, as many random weights "
            "or as many of the same exponents are set to 0 (controls: each draw in its own order, then mean and range "
            "over draws; dashed: their most affected neuron, mean over draws). Named: the neuron that zero modes "
            "affect most.",
            f"Neurons of layer {layer}",
            (*profiles, *losses),
            columns=len(parts),
            on_page=place < LAYERS_ON_PAGE,
        )


def _top(top: pd.DataFrame | None, layer: int, component: str) -> pd.Series | None:
    if top is None:
        return None
    rows = top[(top["layer"] == layer) & (top["component"] == component)]
    return rows.iloc[0] if len(rows) == 1 else None


def _profile(rows: pd.DataFrame, component: str) -> Curves:
    ordered = rows.sort_values("mean_abs", ascending=False, kind="stable")
    x = np.arange(1, len(ordered) + 1, dtype=np.float64)
    kept, ablated = numbers(ordered, "mean_abs"), numbers(ordered, "mean_abs_ablated")
    lines = (
        Curve(LABELS["original"], WEIGHTS["original"], x, kept),
        Curve(LABELS["ablated"], WEIGHTS["ablated"], x, ablated),
    )
    marks: tuple[Mark, ...] = ()
    change = numbers(ordered, "change")
    if np.isfinite(change).any():
        place = int(np.nanargmax(change))
        marks = (
            Mark(str(ordered["neuron"].iloc[place]), x=x[place], y=float(ablated[place]), role=WEIGHTS["zero_modes"]),
        )
    return Curves(
        "mean |w| of a neuron", lines, "neurons, by size", whole_x=True, from_zero=False, marks=marks, note=component
    )


def _losses(rows: pd.DataFrame, component: str, top: pd.Series | None) -> Curves:
    lines, marks = [], list[Mark]()
    for weights in ("random", "matched"):
        names = [name for name in map(str, rows) if re.fullmatch(rf"change_{weights}_\d+", name)]
        if not names:
            raise RunFolderError(
                f"zero_modes_neurons has no column change_{weights}_1: an earlier version made this run; "
                "give the command again with --overwrite"
            )
        draws = _sorted([numbers(rows, name) for name in names])
        x = np.arange(1, draws.shape[1] + 1, dtype=np.float64)
        ends = (draws.min(axis=0), draws.max(axis=0))
        lines.append(Curve(LABELS[weights], WEIGHTS[weights], x, draws.mean(axis=0), *ends))
        if top is not None:
            marks.append(Mark("", y=100 * float(top[f"largest_{weights}"]), role=WEIGHTS[weights]))
    values = _sorted([numbers(rows, "change")])[0]
    x = np.arange(1, len(values) + 1, dtype=np.float64)
    lines.append(Curve("zero modes", WEIGHTS["zero_modes"], x, values))
    if top is not None:
        name = f"neuron {top['neuron']}"
        marks.append(Mark(name, x=1.0, y=100 * float(top["change"]), role=WEIGHTS["zero_modes"]))
    return Curves(
        "|w| lost by a neuron (%)",
        tuple(lines),
        "neurons, most affected first",
        log_x=True,
        marks=tuple(marks),
        note=component,
    )


def _sorted(draws: list[np.ndarray]) -> np.ndarray:
    """Losses in per cent, a row a draw, the greatest first.

    Each draw is sorted by itself: the mean of several draws of a neuron spreads less than one draw, and the zero modes
    are one.
    """
    return np.stack([100 * np.sort(draw[np.isfinite(draw)])[::-1] for draw in draws])


def tables(looked: Looked) -> Iterator[TableSpec]:
    """What is short enough to be read; the rest is in files."""
    if looked.top is not None:
        text = (
            "The most affected neuron of each matrix, and the greatest losses of the controls (mean and sd over draws)."
        )
        yield TableSpec("zero_modes_neurons_top", text, looked.top)
    if looked.harmonics is not None:
        text = "Power at the harmonics of heads, by matrix, mean and weights; controls by seed."
        yield TableSpec("zero_modes_harmonics", text, looked.harmonics, is_open=False)
    if looked.planes is not None:
        text = "Power on the axes in two dimensions, by matrix and picture; controls by seed."
        yield TableSpec("zero_modes_spectra_2d", text, looked.planes, is_open=False)


def missing(looked: Looked) -> Iterator[str]:
    """Why pictures are not there."""
    if looked.planes is None:
        yield "No matrix was looked at: there are no spectra, no pictures and no neurons (--look says which are)."
        return
    if looked.spectra is None:
        yield "None of the matrices that were looked at has heads: there are no spectra over heads."
    if looked.neurons is None:
        yield "None of the matrices that were looked at belongs to an MLP: there are no neurons."
    yield "Of tables with a row a frequency or a neuron the page draws figures; they are in tables/."
