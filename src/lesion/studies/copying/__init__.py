"""Copy tasks and induction heads, with and without edits (paper `zero-modes`, section 3.1 and App. B)."""

from lesion.studies.copying.conditions import Sets
from lesion.studies.copying.setting import Looking, read_heads
from lesion.studies.copying.study import copying

__all__ = ["Looking", "Sets", "copying", "read_heads"]
