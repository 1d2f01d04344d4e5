"""The section of `lesion layers`: what the model loses when a block, or a part of one, is taken away or moved."""

import pandas as pd

from lesion.report.content import Section, TableSpec
from lesion.report.facts import about_model
from lesion.report.sections.layers import drawings, measured, overview
from lesion.report.sections.layers.rows import read
from lesion.results import RunView

FIRST = ("domain", "intervention", "layer", "relative_depth", "loss_change_nats", "kl_nats", "agreement", "top1")


def section(run: RunView) -> Section:
    """The section of one `layers` run, from `tables/layers` and `tables/layers_by_domain`."""
    rows, by_domain = read(run)
    data = rows.amount
    tables = [TableSpec("layers", f"All interventions, pooled over domains ({data}).", _ordered(rows.table))]
    if by_domain is not None:
        tables.append(TableSpec("layers_by_domain", "The same for each domain.", _ordered(by_domain), is_open=False))
    return Section(
        title="Layer interventions",
        subject=str(run.manifest["model"]["name"]),
        byline=about_model(run.manifest),
        overview=tuple(overview.sentences(rows, by_domain)),
        measured=tuple(measured.notes(rows)),
        definitions=measured.definitions(rows),
        figures=tuple(drawings.figures(rows, by_domain)),
        tables=tuple(tables),
        missing=tuple(measured.missing(rows)),
    )


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """The same table with what is read most on the left."""
    first = [name for name in (*FIRST, "entropy_change_bits") if name in table.columns]
    return table[first + [name for name in table.columns if name not in first]]
