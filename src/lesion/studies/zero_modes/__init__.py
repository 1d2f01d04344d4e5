"""Zero modes between checkpoints, found in their files and looked at (paper `zero-modes`)."""

from lesion.studies.zero_modes.ablate import ablate
from lesion.studies.zero_modes.diff import diff
from lesion.studies.zero_modes.dynamics import dynamics
from lesion.studies.zero_modes.overlap import overlap
from lesion.studies.zero_modes.wanda import wanda

__all__ = ["ablate", "diff", "dynamics", "overlap", "wanda"]
