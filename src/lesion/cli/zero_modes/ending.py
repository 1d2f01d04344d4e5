"""What commands that look at checkpoints' files say at their end."""

import json
import math
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from lesion.cli.console import TABLE_WIDTH, Output, shown


def say(output: Output, outcome: Any, **more: object) -> None:
    """Warnings on standard error; with `--json` the run, its tables and `more` on standard output."""
    if outcome.resumed_complete:
        output.console.print("This run was complete already.", markup=False)
    for warning in outcome.warnings:
        output.console.print(shown(f"warning: {warning}"), markup=False, soft_wrap=True)
    if output.as_json:
        tables = {name: str(outcome.path / "tables" / f"{name}.parquet") for name in outcome.tables}
        typer.echo(json.dumps({"run": str(outcome.path), "warnings": outcome.warnings, "tables": tables, **more}))


def page_of(outcome: Any) -> Path:
    """The run's page: drawn now, unless the run was complete before and has its page."""
    from lesion.report import write_report

    page: Path = outcome.path / "report.html"
    return page if outcome.resumed_complete and page.is_file() else write_report(outcome.path)


def print_grid(title: str, headings: list[str], rows: list[list[str]]) -> None:
    """A table whose first column is text and whose others are numbers."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, header_style="bold", pad_edge=False, title=Text(shown(title)), title_justify="left")
    for at, heading in enumerate(headings):
        grid.add_column(heading, justify="right" if at else "left")
    for row in rows:
        grid.add_row(*(Text(shown(cell)) for cell in row))
    console = Console(highlight=False)
    Console(highlight=False, width=max(TABLE_WIDTH, console.width)).print(grid)


def number(value: float, form: str) -> str:
    """A number, or nothing where it is not known."""
    return "" if value is None or math.isnan(value) else format(value, form)
