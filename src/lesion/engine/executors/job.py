"""All that a worker needs to run any shard of a sweep, in a form that travels."""

import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from lesion.anatomy import Loading, Model, load
from lesion.engine.batch_work import Bench, Data
from lesion.engine.lanes import Lane, lay_out
from lesion.engine.plan import Plan
from lesion.engine.runners import Runner, make_runner
from lesion.engine.state import Contrast
from lesion.engine.watching import Watch
from lesion.errors import InputError, InterventionError, ModelError
from lesion.interventions import KINDS, Intervention, combine, parse
from lesion.interventions.weights import WRITTEN

_BETWEEN = re.compile(rf"\+(?=(?:{'|'.join([*KINDS, *WRITTEN])}):)")
"""Between two edits; a path may have a + of its own."""


@dataclass(frozen=True)
class Source:
    """Where a model is loaded from again, and how.

    Attributes:
        folder: where it lies on this machine.
        name: how other machines find it: a hub id with its commit, `zoo:NAME`, or the folder.
        loading: its device is `cpu` or `cuda`; which of several is the worker's affair.
    """

    folder: str
    name: str
    loading: Loading

    @classmethod
    def of(cls, model: Model, loading: Loading) -> "Source":
        """Where a model that was loaded so is loaded from again.

        Raises:
            InputError: it is in memory only.
        """
        folder = getattr(model.anatomy.model, "name_or_path", None)
        if model.stored_fingerprint is None or not folder or not Path(folder).is_dir():
            raise InputError(
                f"{model.name} is in memory, where other processes cannot get it; "
                "give its folder or hub id, or leave the executor at `here`"
            )
        folder = os.path.abspath(folder)  # noqa: PTH100  (a link stays one)
        loading = replace(loading, device=model.anatomy.device.type)
        return cls(folder, _name_elsewhere(model.name, folder), loading)


@dataclass(frozen=True)
class Job:
    """A sweep as data: it can be pickled, sent, and opened on any device.

    Attributes:
        fingerprint: of the model's configuration and weights.
        interventions: in the grammar of edits, one a lane, the clean lane apart.
        base: the edits under which everything is measured, in the same grammar; None for the model as it is.
        watches, scored, contrasts: as `Bench` has them.
    """

    source: Source
    fingerprint: str
    data: Data
    interventions: tuple[str, ...]
    base: str | None
    plan: Plan
    watches: tuple[Watch, ...] = ()
    scored: bool = True
    contrasts: tuple[Contrast, ...] = ()

    @classmethod
    def of(cls, source: Source, model: Model, bench: Bench, base: Intervention | None) -> "Job":
        """The job that a bench was laid out for.

        Raises:
            InterventionError: a lane that the grammar of edits cannot express.
        """
        names = tuple(lane.name for lane in bench.lanes[1:])
        job = cls(
            source,
            model.fingerprint,
            bench.data,
            names,
            base.name if base else None,
            bench.plan,
            bench.watches,
            bench.scored,
            bench.contrasts,
        )
        for ours, theirs in zip(job.lanes(model.anatomy.n_layers), bench.lanes, strict=True):
            if ours != theirs:
                raise InterventionError(
                    f"{theirs.name} is not what its name says in the grammar of edits, so that other processes cannot "
                    "run it; leave the executor at `here`"
                )
        return job

    def lanes(self, n_layers: int) -> list[Lane]:
        """The clean lane, and one for each intervention."""
        base = _written(self.base) if self.base else None
        return lay_out([_written(name) for name in self.interventions], n_layers, base=base)

    def open(self, device: str, *, elsewhere: bool = False, threads: int | None = None) -> Runner:
        """Loads the model and lays out the sweep.

        Args:
            device: `cpu` or `cuda:N`.
            elsewhere: on a machine that may have the model in another place.
            threads: that torch computes with from now on in this process; None leaves them.

        Raises:
            ModelError: the model cannot be loaded, or is another one.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        if device.startswith("cuda"):
            torch.cuda.set_device(torch.device(device))
        place = self.source.name if elsewhere else self.source.folder
        loading = replace(self.source.loading, device=device)
        model = load(place, **asdict(loading))
        if model.fingerprint != self.fingerprint:
            raise ModelError(
                f"{place} is not the model that this run was started with: its files have another hash; "
                "every worker must see the same files, and nothing may write to them"
            )
        lanes = self.lanes(model.anatomy.n_layers)
        bench = Bench(model.anatomy, self.data, lanes, self.plan, self.watches, self.scored, self.contrasts)
        return make_runner(bench, model.streamed, loading.max_memory)

    def with_memory(self, max_memory: int) -> "Job":
        """The same job for workers that may take so many bytes each."""
        loading = replace(self.source.loading, max_memory=max_memory)
        return replace(self, source=replace(self.source, loading=loading))

    def tokens(self, shard: int) -> int:
        """Tokens of data in a shard."""
        return sum(int(self.data.lengths[document]) for batch in self.plan.shards[shard] for document in batch)


def _name_elsewhere(name: str, folder: str) -> str:
    """A hub id is pinned to the commit that was loaded here; a local folder must be visible to all under one path."""
    if Path(name).expanduser().is_dir():
        return folder
    commit = Path(folder)
    pinned = commit.parent.name == "snapshots" and not name.startswith("zoo:")
    return f"{name.partition('@')[0]}@{commit.name}" if pinned else name


def _written(name: str) -> Intervention:
    """An intervention from its name, also of several edits: `drop:3+swap:5`."""
    edits = [parse(part) for part in _BETWEEN.split(name)]
    return edits[0] if len(edits) == 1 else combine(edits)
