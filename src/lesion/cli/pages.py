"""`lesion report`."""

from pathlib import Path
from typing import Annotated

import typer

from lesion.cli.console import errors_in_one_line
from lesion.cli.options import DebugOption


def report(
    runs: Annotated[list[Path], typer.Argument(help="One or more run folders.")],
    out: Annotated[
        Path | None, typer.Option(help="Page to write.", show_default="report.html of the first run")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Write the page of one or more finished runs again."""
    from lesion.report import write_report

    with errors_in_one_line(debug):
        typer.echo(write_report(runs, out=out))
