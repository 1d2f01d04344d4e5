"""What every study that runs a model shares: a sweep over a bench, in a run folder, here or elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from lesion.anatomy import Anatomy, Loading, Model
from lesion.checkpoints.masks import Masks, mask_file
from lesion.engine import Bench, Here, Progress, SweepState, make_runner, on_demand, sweep, telling_document, verify
from lesion.engine.executors import Job, Source, make_executor
from lesion.interventions import Intervention, in_eval_mode
from lesion.results import RunFolder, digest, file_digest, versions


@dataclass(frozen=True)
class Swept:
    """What a sweep gathered, and the facts of it for a manifest.

    Attributes:
        weights: where the weights were, and what was read of them.
    """

    state: SweepState
    weights: dict[str, object]


def run_sweep(
    model: Model,
    bench: Bench,
    *,
    base: Intervention | None = None,
    loading: Loading | None = None,
    executor: str = "here",
    folder: RunFolder | None = None,
    progress: Progress | None = None,
) -> Swept:
    """Looks whether the model is what its anatomy says, and runs all lanes over all data.

    Args:
        base: the edits under which everything is measured.
        loading: how other processes load the model, and how much memory there is.
        executor: who runs the shards: `here`, `local[:N]` or `ray[:ADDRESS]`.
        folder: keeps the shards, so that the same call again goes on where this one stopped.

    Raises:
        ModelError: the model is not what its anatomy says.
        NonFiniteError: the model itself gives numbers that are not finite.
        InterventionError: an edit that did nothing.
    """
    anatomy, lengths = model.anatomy, [int(n) for n in bench.data.lengths]
    loading = loading or Loading()
    runner = make_runner(bench, model.streamed, loading.max_memory)
    others = make_executor(executor, lambda: Job.of(Source.of(model, loading), model, bench, base))
    with in_eval_mode(anatomy.model):
        with on_demand(anatomy, model.streamed):
            verify(anatomy, bench.data.batch([telling_document(lengths)]).to(anatomy.device))
        checking = model.streamed.bytes_read if model.streamed else 0
        store = folder.shard_store(_shard_key(bench, anatomy)) if folder else None
        with _off_its_gpu(model) if others else nullcontext():
            state = sweep(bench, store=store, progress=progress, executor=others or Here(runner))
    return Swept(state, _weights(model, state, checking))


def masks_read(base: Intervention | None) -> dict[str, dict[str, str]]:
    """The files of masks that edits read, for `Study.beside`: another file under the same name is another run."""
    paths = sorted({edit.masks for edit in base.weights}) if base else []
    if not paths:
        return {}
    for path in paths:
        Masks.load(path)  # says in one line what is wrong with it
    digests = {path: file_digest(mask_file(path)) for path in paths}
    return {"edits": {"sha256": digest(sorted(digests.values())), **digests}}


def timings(n_tokens: int, seconds: float, *, resumed: bool) -> dict[str, float]:
    """Of this session; a resumed one did not read all the tokens, so that it has no speed."""
    speed = {} if resumed else {"tokens_per_second": round(n_tokens / seconds, 1)}
    return {"seconds": round(seconds, 3), **speed}


@contextmanager
def _off_its_gpu(model: Model) -> Iterator[None]:
    """Moves a model to the host while workers, which have their own, need the room on the GPU."""
    device = model.anatomy.device
    if device.type != "cuda" or model.streamed is not None:
        yield
        return
    model.anatomy.model.to("cpu")
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        model.anatomy.model.to(device)


def _shard_key(bench: Bench, anatomy: Anatomy) -> str:
    """Names shards that may be merged: another kind of device, or another version, rounds otherwise."""
    made_by = {name: version for name, version in versions().items() if name in ("lesion", "torch", "transformers")}
    watched = {"watches": repr(bench.watches), "scored": bench.scored} if bench.watches else {}
    compared = {"contrasts": repr(bench.contrasts)} if bench.contrasts else {}
    known = {"plan": bench.plan.fingerprint(), "device": anatomy.device.type, "versions": made_by}
    return digest({**known, **watched, **compared})


def _weights(model: Model, state: SweepState, checking: int) -> dict[str, object]:
    """Where the weights were, and what was read of them: by the sweep, and by the look at the model before it."""
    if model.streamed is None:
        return {"streamed": False}
    stored = sum(model.streamed.stored_bytes(block) for block in range(model.anatomy.n_layers))
    read = {"bytes_of_blocks": stored, "bytes_read": state.bytes_read, "bytes_read_checking": checking}
    return {"streamed": True, **read}
