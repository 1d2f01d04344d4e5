"""`lesion zero-modes`: weights that fine-tuning has not moved, and checkpoints without them."""

import typer

from lesion.cli.zero_modes.ablate import ablate
from lesion.cli.zero_modes.apply import apply
from lesion.cli.zero_modes.diff import diff
from lesion.cli.zero_modes.dynamics import dynamics
from lesion.cli.zero_modes.overlap import overlap
from lesion.cli.zero_modes.wanda import wanda

zero_modes = typer.Typer(
    help="Weights with the same bits in a base checkpoint and in its fine-tuned derivative.", no_args_is_help=True
)
for command in (diff, apply, ablate, overlap, dynamics, wanda):
    zero_modes.command()(command)
