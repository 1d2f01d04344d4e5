"""Zero modes between checkpoints, found in their files and looked at (paper `zero-modes`)."""

from lesion.studies.zero_modes.diff import diff

__all__ = ["diff"]
