"""The figures of a layers run: the counterparts of figures 3 and 13–15 of the paper on stages of inference."""

from collections.abc import Iterator, Sequence

import pandas as pd

from lesion.report import axes
from lesion.report.content import FigureSpec, Panel, Series
from lesion.report.palette import DOMAIN_MARKERS, MARKERS
from lesion.report.sections.layers.rows import INTERVENTIONS, Rows, floats

BLOCKS, PARTS = ("drop", "swap"), ("drop_attn", "drop_mlp")
DEEDS = {
    "drop": "Dropping a block",
    "swap": "Swapping a block with the next",
    "drop_attn": "Dropping the attention of a block",
    "drop_mlp": "Dropping the MLP of a block",
}
BOTH = {
    BLOCKS: "Dropping a block, and swapping it with the next",
    PARTS: "Dropping the attention or the MLP of a block",
}
LABELS = {"drop": "drop", "swap": "swap with next", "drop_attn": "drop attention", "drop_mlp": "drop MLP"}


def figures(rows: Rows, by_domain: pd.DataFrame | None) -> Iterator[FigureSpec]:
    """The figures for which the run has rows."""
    blocks = [name for name in BLOCKS if not rows.of(name).empty]
    parts = [name for name in PARTS if not rows.of(name).empty]
    quantities = "KL divergence, agreement of the top-1 prediction, and change in entropy."
    if blocks:
        text = f"{_deed(blocks, BLOCKS)}, against the whole model: {quantities}"
        yield _figure(rows, "layers_blocks", "Effect of dropping and swapping blocks", text, _three(rows, blocks))
    if parts:
        text = f"{_deed(parts, PARTS)}, against the whole model: {quantities}"
        yield _figure(rows, "layers_parts", "Effect of dropping attention and MLPs", text, _three(rows, parts))
    if rows.has_loss:
        halves = ((blocks, "whole blocks"), (parts, "parts of blocks"))
        panels = tuple(_loss(rows, names, note) for names, note in halves if names)
        shared = ", on one axis for whole blocks and for their parts" if blocks and parts else ""
        text = f"Change in loss per {rows.noun}{shared}."
        yield _figure(rows, "layers_loss", "Change in loss", text, panels, shared_y=True)
    if by_domain is not None:
        yield _domains(rows, by_domain)


def _deed(found: Sequence[str], both: tuple[str, str]) -> str:
    """What a figure shows, naming only what the run holds."""
    return BOTH[both] if tuple(found) == both else DEEDS[found[0]]


def _figure(
    rows: Rows, name: str, label: str, text: str, panels: tuple[Panel, ...], *, shared_y: bool = False, columns: int = 3
) -> FigureSpec:
    beyond = "Points beyond an axis are named at its edge. " if axes.has_beyond(panels, shared=shared_y) else ""
    swap = "Swap ℓ, which exchanges blocks ℓ and ℓ+1, is drawn at ℓ. " if not rows.of("swap").empty else ""
    caption = f"{text} {swap if name != 'layers_parts' else ''}{beyond}{_band(rows)} Over {rows.amount}."
    return FigureSpec(name, caption, label, panels, columns=columns, shared_y=shared_y)


def _three(rows: Rows, names: Sequence[str]) -> tuple[Panel, ...]:
    return (
        Panel(f"KL (nats {rows.per})", _series(rows, names, "kl_nats"), scale="log"),
        Panel("agreement with clean top-1 (%)", _series(rows, names, "agreement", 100.0), scale="percent"),
        Panel("change in entropy (bits)", _series(rows, names, "entropy_change_bits"), zero=True),
    )


def _loss(rows: Rows, names: Sequence[str], note: str) -> Panel:
    title, lines = f"change in loss (nats {rows.per})", _series(rows, names, "loss_change_nats")
    return Panel(title, lines, scale="log", zero=True, note=note)


def _series(rows: Rows, names: Sequence[str], column: str, factor: float = 1.0) -> tuple[Series, ...]:
    return tuple(_line(rows.of(name), column, LABELS[name], name, MARKERS[name], factor) for name in names)


def _line(table: pd.DataFrame, column: str, label: str, role: str, marker: str, factor: float = 1.0) -> Series:
    value, sem = floats(table, column), floats(table, f"{column}_sem")
    return Series(label, role, marker, floats(table, "layer"), factor * value, factor * sem)


def _domains(rows: Rows, by_domain: pd.DataFrame) -> FigureSpec:
    sizes = by_domain.groupby("domain", sort=False)["n_tokens"].max().sort_values(ascending=False, kind="stable")
    shown = list(sizes.index[: len(DOMAIN_MARKERS)])
    panels = []
    for name in (name for name in INTERVENTIONS if not rows.of(name).empty):
        lines = []
        for index, domain in enumerate(shown):
            part = Rows(by_domain[by_domain["domain"] == domain], rows.manifest).of(name)
            lines.append(_line(part, "kl_nats", str(domain), f"domain_{index}", DOMAIN_MARKERS[index]))
        panels.append(Panel(f"KL (nats {rows.per})", tuple(lines), scale="log", note=LABELS[name]))
    chosen = (
        "" if len(shown) == len(sizes) else f" The {len(shown)} largest of {len(sizes)} domains; the table has all."
    )
    text = f"KL divergence from the whole model by domain, one panel an intervention, on one axis.{chosen}"
    columns = min(len(panels), 4)
    label = "KL divergence by domain"
    return _figure(rows, "layers_domains", label, text, tuple(panels), shared_y=True, columns=columns)


def _band(rows: Rows) -> str:
    if not rows.has_errors:
        return "No band: there are no standard errors."
    return f"Bands and bars: ± {rows.standard_error}, often narrower than the line."
