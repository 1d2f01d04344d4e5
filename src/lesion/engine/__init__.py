"""How it runs: sweeps of lanes over batches, one pass over the blocks for all of them."""

from lesion.engine.batch_work import Bench, Data
from lesion.engine.forecast import Forecast, forecast
from lesion.engine.lanes import Lane, Walk, lay_out
from lesion.engine.memory import keep_pages
from lesion.engine.plan import Plan, make_plan
from lesion.engine.residency import on_demand
from lesion.engine.runners import MemoryRunner, Runner, StreamedRunner, make_runner
from lesion.engine.skeleton import Call, Skeleton
from lesion.engine.state import METRICS, Contrast, Incident, Progress, SweepState
from lesion.engine.sweep import Executor, Here, sweep
from lesion.engine.verify import telling_document, verify
from lesion.engine.watching import Watch

__all__ = [
    "METRICS",
    "Bench",
    "Call",
    "Contrast",
    "Data",
    "Executor",
    "Forecast",
    "Here",
    "Incident",
    "Lane",
    "MemoryRunner",
    "Plan",
    "Progress",
    "Runner",
    "Skeleton",
    "StreamedRunner",
    "SweepState",
    "Walk",
    "Watch",
    "forecast",
    "keep_pages",
    "lay_out",
    "make_plan",
    "make_runner",
    "on_demand",
    "sweep",
    "telling_document",
    "verify",
]
