"""How it runs: sweeps of lanes over batches, one pass over the blocks for all of them."""

from lesion.engine.lanes import Lane, Walk, lay_out
from lesion.engine.memory import keep_pages
from lesion.engine.plan import Plan, make_plan
from lesion.engine.skeleton import Call, Skeleton
from lesion.engine.sweep import METRICS, Data, Incident, Progress, SweepState, sweep
from lesion.engine.verify import telling_document, verify

__all__ = [
    "METRICS",
    "Call",
    "Data",
    "Incident",
    "Lane",
    "Plan",
    "Progress",
    "Skeleton",
    "SweepState",
    "Walk",
    "keep_pages",
    "lay_out",
    "make_plan",
    "sweep",
    "telling_document",
    "verify",
]
