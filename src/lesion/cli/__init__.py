"""The command line: a thin shell over the studies. torch is imported only once a model is needed."""

from importlib import metadata
from typing import Annotated

import typer

from lesion.cli.console import write_anything
from lesion.cli.copying import copying
from lesion.cli.inspection import check, models
from lesion.cli.interrupts import INTERRUPTS
from lesion.cli.pages import report
from lesion.cli.sweeps import demo, layers
from lesion.cli.training import train
from lesion.cli.zero_modes import zero_modes

app = typer.Typer(
    name="lesion",
    help="Find out what the parts of a transformer do, by taking them away.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (layers, copying, demo, check, models, report):
    app.command()(command)
app.add_typer(zero_modes, name="zero-modes")
app.add_typer(train, name="train")


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"lesion {metadata.version('lesion')}")
        raise typer.Exit
    return asked


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find out what the parts of a transformer do, by taking them away."""


def main() -> None:
    """Entry point of the `lesion` command. Being terminated ends a run as an interrupt does."""
    write_anything()
    INTERRUPTS.install()
    app()
