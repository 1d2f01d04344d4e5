"""Shards run elsewhere: the numbers of a run here, and what happens when something dies."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from lesion.anatomy import Loading, adopt, load
from lesion.data import load_images, load_text
from lesion.engine import Bench, Here, Plan, SweepState, lay_out, make_runner, sweep
from lesion.engine.executors import Job, Processes, Source, local_devices, make_executor, read_choice
from lesion.engine.executors.dispatch import Dispatch, Event, Finished, Lost, Ready, Refused, Told
from lesion.engine.executors.job import _name_elsewhere
from lesion.engine.executors.ray import RayActors, Seat, _environment, _seats
from lesion.engine.executors.station import Station
from lesion.engine.executors.travel import pack, unpack
from lesion.engine.maker import Maker, unlike
from lesion.engine.state import save_state
from lesion.errors import InputError, InterventionError, LesionError, ModelError, NonFiniteError
from lesion.interventions import combine, drop, drop_attn, drop_mlp, swap
from lesion.results import ShardStore
from lesion.studies.layers_results import warnings_of
from tests.conftest import SENTENCES
from tests.engine.exec_data import FAIL, KILL, Faulty
from tests.support import Documents, save_tiny_folder, tiny_model, token_documents

INTERVENTIONS = [drop(1), swap(0), drop_attn(2), combine([drop_mlp(0), drop(2)])]
BASE = drop_mlp(1)
SHARDS = [[[index]] for index in range(6)]
PLAN = Plan(SHARDS, [[1, 2, 3, 4]], stack_tokens=256, chunk=64)
ME = Maker.here(torch.device("cpu"))
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray (lesion[cluster]) is not installed")


def job_of(folder: Path, faults: dict[int, str], *, stream: bool | None = None) -> tuple[Job, Bench]:
    """A job on a tiny model in `folder`, and the bench that runs it here."""
    if not (folder / "model").exists():
        save_tiny_folder(folder / "model", SENTENCES)
    model = load(folder / "model", device="cpu", stream=stream)
    data = Faulty(token_documents(320, [40, 40, 36, 20, 40, 12]), faults, folder)
    bench = Bench(model.anatomy, data, lay_out(INTERVENTIONS, 3, base=BASE), PLAN)
    return Job.of(Source.of(model, Loading(stream=stream)), model, bench, BASE), bench


def assert_same_bits(a: SweepState, b: SweepState) -> None:
    for left, right in zip(a.means, b.means, strict=True):
        for key, value in left.state_dict().items():
            assert torch.equal(value, right.state_dict()[key]), key
    assert (a.moved, a.changed, a.incidents) == (b.moved, b.changed, b.incidents)


def here_without(bench: Bench, shard: int | None = None) -> SweepState:
    """What a run here gives, of all shards but one."""
    states: dict[int, SweepState] = {}
    runner = make_runner(bench, None, None)
    kept = [index for index in range(len(SHARDS)) if index != shard]
    Here(runner).run(kept, states.__setitem__, lambda tokens: None)
    merged = SweepState.empty(len(bench.lanes), 1)
    for index in kept:
        merged.merge(states[index])
    return merged


def soon_gone(processes: set[int]) -> bool:
    """Whether all of these end within five seconds (what nobody has waited for has ended too)."""
    ended = time.monotonic() + 5
    while any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in processes):
        if time.monotonic() > ended:
            return False
        time.sleep(0.05)
    return True


class Script:
    """A crew that says what it is told to say: a list of events for each hiring or assignment, in turn."""

    def __init__(self, seats: int, opening: Sequence[Event], working: Callable[[int, int], list[Event]]) -> None:
        self.seats, self._opening, self._working = seats, deque(opening), working
        self.hired: list[int] = []
        self.assigned: list[int] = []
        self.closed = 0
        self._news: deque[tuple[int, Event]] = deque()

    def hire(self, seat: int) -> None:
        self.hired.append(seat)
        self._news.append((seat, self._opening.popleft() if self._opening else Ready(ME)))

    def assign(self, seat: int, shard: int) -> None:
        self.assigned.append(shard)
        self._news.extend((seat, event) for event in self._working(shard, self.assigned.count(shard)))

    def events(self, seconds: float) -> list[tuple[int, Event]]:
        return [self._news.popleft()]

    def dismiss(self, seat: int) -> None:
        self._news = deque((other, event) for other, event in self._news if other != seat)

    def close(self) -> None:
        self.closed += 1


class Run:
    """One dispatch, and what came of it."""

    def __init__(self, crew: Script, shards: int) -> None:
        self.done: list[int] = []
        self.advances: list[int] = []
        self.dispatch = Dispatch(
            crew, range(shards), lambda index, state: self.done.append(index), self.advances.append
        )


def well(shard: int, attempt: int) -> list[Event]:
    return [Told(5), Told(10), Finished(SweepState.empty(1, 1))]


def test_all_shards_are_done_once_by_as_few_workers_as_they_need() -> None:
    crew = Script(8, [], well)
    run = Run(crew, 3)
    assert run.dispatch.run() == {}
    assert (sorted(run.done), sorted(crew.assigned), sum(run.advances)) == ([0, 1, 2], [0, 1, 2], 30)
    assert (crew.hired, crew.closed) == ([0, 1, 2], 1)


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_shard_that_kills_its_worker_is_run_again_by_a_fresh_one(deaths: int) -> None:
    def work(shard: int, attempt: int) -> list[Event]:
        return [Told(5), Lost("killed")] if shard == 1 and attempt <= deaths else well(shard, attempt)

    crew = Script(1, [], work)
    run = Run(crew, 3)
    assert run.dispatch.run() == {}
    assert (run.done, crew.assigned) == ([0, 2, 1], [0, 1, 2] + [1] * deaths)
    assert crew.hired == [0] * (1 + deaths)
    assert sum(run.advances) == 30
    assert min(run.advances) >= 0


def test_a_shard_that_always_kills_is_left_out_and_the_others_are_done() -> None:
    crew = Script(2, [], lambda shard, attempt: [Lost(f"death {attempt}")] if shard == 1 else well(shard, attempt))
    run = Run(crew, 4)
    assert run.dispatch.run() == {1: "death 3; tried 3 times"}
    assert (sorted(run.done), crew.assigned.count(1), crew.closed) == ([0, 2, 3], 3, 1)


def test_devices_on_which_no_worker_starts_are_given_up() -> None:
    lost = Lost("no room")
    crew = Script(2, [Ready(ME), lost, lost, lost, lost], well)
    run = Run(crew, 5)
    assert run.dispatch.run() == {}
    assert crew.hired == [0, 1, 1, 1]
    nobody = Script(2, [lost] * 6, well)
    run = Run(nobody, 2)
    assert run.dispatch.run() == dict.fromkeys([0, 1], "no worker could be started: no room")
    assert (run.done, nobody.closed, len(nobody.hired)) == ([], 1, 6)


def test_what_a_user_must_mend_ends_the_run_at_once() -> None:
    error = NonFiniteError("at block 3")
    crew = Script(1, [], lambda shard, attempt: [Refused(error)] if shard == 1 else well(shard, attempt))
    run = Run(crew, 4)
    with pytest.raises(NonFiniteError, match="at block 3") as caught:
        run.dispatch.run()
    assert caught.value is error
    assert (run.done, crew.assigned, crew.closed) == ([0], [0, 1], 1)


def test_workers_end_when_the_driver_is_interrupted_or_cannot_keep_a_shard() -> None:
    def interrupted(tokens: int) -> None:
        raise KeyboardInterrupt

    crew = Script(2, [], well)
    with pytest.raises(KeyboardInterrupt):
        Dispatch(crew, [0, 1], lambda index, state: None, interrupted).run()
    assert crew.closed == 1


def test_workers_of_other_versions_are_refused() -> None:
    crew = Script(1, [Ready(replace(ME, host="node7", versions="lesion 9"))], well)
    with pytest.raises(LesionError, match=r"node7 runs lesion 9, this process lesion 0.*same versions"):
        Run(crew, 1).dispatch.run()
    assert crew.closed == 1
    assert crew.assigned == []


def test_unlike_makers_are_named_and_alike_ones_are_not() -> None:
    assert unlike([ME, replace(ME, host="another")]) is None
    named = unlike([ME, replace(ME, device="H200", host="gpu1")])
    assert named
    assert "H200" in named
    assert "gpu1" in named
    assert ME.device in named
    assert unlike([ME, replace(ME, threads=ME.threads + 1)])


def test_a_run_whose_shards_unlike_machines_made_says_so_also_after_a_resume(tmp_path: Path) -> None:
    _, bench = job_of(tmp_path, {})
    for other, expected in ((ME, 0), (replace(ME, device="another"), 1)):
        store = ShardStore(tmp_path / other.device, "plan")
        earlier = SweepState.empty(len(bench.lanes), 1)
        earlier.made_by = {other}
        save_state(store, 0, earlier)
        state = sweep(bench, store=store)
        assert state.made_by == {ME, other}
        assert len([line for line in warnings_of(state, bench) if "unlike machines" in line]) == expected


@pytest.mark.parametrize("spec", ["", "Here", "local:0", "local:", "local:two", "local:-1", "ray:", "ray: ", "slurm:4"])
def test_other_words_for_executor_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match=r"--executor .* is not known; give here, local, local:N, ray or ray:ADDRESS"):
        read_choice(spec)


def test_the_executors_that_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_job() -> Job:
        raise AssertionError("a run here needs none")

    assert make_executor("here", no_job) is None
    assert (read_choice("local:3").workers, read_choice("ray:head:6379").address) == (3, "head:6379")
    job, _ = job_of(tmp_path, {})
    assert isinstance(make_executor("local:2", lambda: job), Processes)
    assert local_devices("cpu", 3) == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_devices("cuda", None) == local_devices("cuda", 2) == ["cuda:0", "cuda:1"]
    with pytest.raises(InputError, match="local:3 needs 3 GPUs; this machine has 2"):
        local_devices("cuda", 3)


def test_ray_is_asked_for_by_its_extra_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"install lesion\[cluster\]"):
        make_executor("ray", lambda: pytest.fail("the job is not needed yet"))


def test_mapped_files_travel_by_path_here_and_by_value_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "ids.bin"
    np.arange(1000, dtype="<u2").tofile(path)
    mapped = np.memmap(path, dtype="<u2", mode="r")
    named, carried = pack({"ids": mapped}, by_value=False), pack({"ids": mapped}, by_value=True)
    part = pack({"ids": mapped[10:20]}, by_value=False)
    assert sum(array.nbytes for array in named.arrays) == 0
    assert sum(a.nbytes for a in carried.arrays) == 2000
    assert isinstance(unpack(named)["ids"], np.memmap)
    assert np.array_equal(unpack(named)["ids"], mapped)
    assert type(unpack(carried)["ids"]) is np.ndarray
    assert np.array_equal(unpack(carried)["ids"], mapped)
    assert np.array_equal(unpack(part)["ids"], np.arange(10, 20))
    with path.open("r+b") as file:
        file.write(b"\x01")
    with pytest.raises(InputError, match="is not the file that the run was started with"):
        unpack(named)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read again: No such file"):
        unpack(named)
    assert np.array_equal(unpack(carried)["ids"][1:], np.arange(1, 1000))


def test_text_travels_with_all_its_tokens(tiny_folder: Path, text_file: Path) -> None:
    text = load_text(str(text_file), load(tiny_folder, device="cpu").tokenizer, context=32)
    for by_value in (False, True):
        again = unpack(pack(text, by_value=by_value))
        assert torch.equal(again.batch([0, 5]).ids, text.batch([0, 5]).ids)
        assert (again.fingerprint, again.domains) == (text.fingerprint, text.domains)


def test_pictures_travel_without_their_files_to_other_machines(tmp_path: Path) -> None:
    for index in range(2):
        Image.fromarray(np.full((8, 8), 40 * index, dtype=np.uint8)).save(tmp_path / f"{index}.png")
    images = load_images(str(tmp_path), size=8, channels=1)
    before = images.batch([0, 1]).pixels
    named, carried = pack(images, by_value=False), pack(images, by_value=True)
    assert torch.equal(unpack(named).batch([0, 1]).pixels, before)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert torch.equal(unpack(carried).batch([0, 1]).pixels, before)
    with pytest.raises(InputError, match="No such file"):
        unpack(named).batch([0])


def test_data_that_cannot_travel_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="cannot be handed to another process"):
        pack(lambda: 0, by_value=False)
    lost = pack(Documents(token_documents(10, [3])), by_value=False)
    gone = replace(lost, content=lost.content.replace(b"Documents", b"Dacuments"))
    with pytest.raises(InputError, match="module that can be imported"):
        unpack(gone)
    assert isinstance(unpack(lost), Documents)


def test_a_job_lays_out_the_lanes_that_it_was_made_for(tmp_path: Path) -> None:
    job, bench = job_of(tmp_path, {})
    assert job.interventions == ("drop:1", "swap:0", "drop-attn:2", "drop-mlp:0+drop:2")
    assert job.base == "drop-mlp:1"
    assert job.lanes(3) == list(bench.lanes)
    assert replace(job, base=None).lanes(3) != list(bench.lanes)
    assert [job.tokens(0), job.tokens(5)] == [40, 12]
    renamed = replace(drop(1), name="drop:2")
    model = load(tmp_path / "model", device="cpu")
    with pytest.raises(InterventionError, match="is not what its name says"):
        Job.of(job.source, model, replace(bench, lanes=lay_out([renamed], 3)), None)


def test_only_a_model_with_files_can_be_opened_again(tmp_path: Path) -> None:
    model = adopt(tiny_model("gpt2"), None)
    with pytest.raises(InputError, match="is in memory, where other processes cannot get it"):
        Source.of(model, Loading())
    job, _ = job_of(tmp_path, {})
    assert job.open("cpu").bench.anatomy.n_layers == 3
    with pytest.raises(ModelError, match="not the model that this run was started with"):
        replace(job, fingerprint="another").open("cpu")


def test_other_machines_get_a_name_that_means_the_same_there(tmp_path: Path) -> None:
    snapshot = "/cache/models--gpt2/snapshots/abc123"
    assert (
        _name_elsewhere("openai/gpt2", snapshot)
        == _name_elsewhere("openai/gpt2@main", snapshot)
        == ("openai/gpt2@abc123")
    )
    assert _name_elsewhere("zoo:python-8l", "/somewhere/snapshots/python-8l") == "zoo:python-8l"
    assert _name_elsewhere(str(tmp_path), str(tmp_path)) == str(tmp_path)


def test_a_station_says_what_went_wrong_and_raises_nothing(tmp_path: Path) -> None:
    job, _ = job_of(tmp_path, {3: FAIL})
    job.data.home = 0  # type: ignore[attr-defined]
    station = Station()
    ready = station.open(pack(job, by_value=False), "cpu", elsewhere=False, threads=None)
    assert ready == Ready(replace(ME, threads=torch.get_num_threads()))
    told: list[Event] = []
    finished = station.run(2, told.append)
    assert isinstance(finished, Finished)
    assert finished.state.made_by == {ME}
    assert told == [Told(36)]
    assert station.run(3, told.append) == Lost("OSError: document 3 is poison")
    assert isinstance(station.run(4, told.append), Finished)
    refused = Station().open(pack(replace(job, fingerprint="x"), by_value=False), "cpu", elsewhere=False, threads=None)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, ModelError)
    broken = pack({"no": "job"}, by_value=False)
    assert Station().open(broken, "cpu", elsewhere=False, threads=None) == Lost(
        "AttributeError: 'dict' object has no attribute 'open'"
    )


def test_processes_give_the_bits_of_a_run_here_also_when_one_is_killed(tmp_path: Path) -> None:
    job, bench = job_of(tmp_path, {2: KILL})
    seen: list[tuple[int, int]] = []
    state = sweep(
        bench, executor=Processes(job, ["cpu", "cpu"]), progress=lambda done, total: seen.append((done, total))
    )
    assert_same_bits(state, here_without(bench))
    assert (state.failed, unlike(state.made_by), seen[-1]) == ({}, None, (188, 188))
    assert (tmp_path / "killed-2").exists()
    assert len(job.data.readers()) >= 2
    assert not any(psutil.pid_exists(process) for process in job.data.readers())  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_poison_shard_is_left_out_by_processes(tmp_path: Path) -> None:
    job, bench = job_of(tmp_path, {4: FAIL})
    state = sweep(bench, executor=Processes(job, ["cpu", "cpu"]))
    assert state.failed == {4: "OSError: document 4 is poison; tried 3 times"}
    assert_same_bits(state, here_without(bench, 4))


@pytest.mark.slow
def test_errors_of_a_worker_are_the_drivers(tmp_path: Path) -> None:
    job, bench = job_of(tmp_path, {})
    with (tmp_path / "model" / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(ModelError, match="is not the model that this run was started with"):
        sweep(bench, executor=Processes(job, ["cpu"]))


@pytest.mark.slow
def test_processes_stream_blocks_from_disk(tmp_path: Path) -> None:
    job, bench = job_of(tmp_path, {})
    streamed = replace(job, source=replace(job.source, loading=replace(job.source.loading, stream=True)))
    assert_same_bits(sweep(bench, executor=Processes(streamed, ["cpu"])), here_without(bench))


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_driver(signal_number: signal.Signals, tmp_path: Path) -> None:
    job_of(tmp_path, {})  # saving a model is not silent
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.engine.exec_driver", str(tmp_path)],
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("reader-*"))) < 2:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    readers = {int(path.name.removeprefix("reader-")) for path in tmp_path.glob("reader-*")}
    assert all(psutil.pid_exists(process) for process in readers)
    os.killpg(driver.pid, signal_number)
    _, said = driver.communicate(timeout=30)
    assert (driver.returncode, said) == (130 if signal_number == signal.SIGINT else -signal.SIGKILL, "")
    assert soon_gone(readers)


@needs_ray
@pytest.mark.slow
def test_ray_gives_the_bits_of_a_run_here_and_leaves_out_a_poison_shard(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job, bench = job_of(tmp_path, {2: KILL, 4: FAIL})
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    seen: list[tuple[int, int]] = []
    capfd.readouterr()
    state = sweep(bench, executor=RayActors(job, workers=2), progress=lambda done, total: seen.append((done, total)))
    assert state.failed == {4: "OSError: document 4 is poison; tried 3 times"}
    assert_same_bits(state, here_without(bench, 4))
    assert seen[-1] == (148, 188)
    assert (tmp_path / "killed-2").exists()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert soon_gone(job.data.readers())  # type: ignore[attr-defined]
    assert capfd.readouterr() == ("", "")


def test_an_actor_sits_at_each_gpu_or_at_each_nodes_cpu() -> None:
    def cluster(*resources: dict[str, float]) -> SimpleNamespace:
        nodes = [{"Alive": True, "NodeID": f"node{i}", "Resources": found} for i, found in enumerate(resources)]
        return SimpleNamespace(
            nodes=lambda: [*nodes, {"Alive": False, "NodeID": "gone", "Resources": {"CPU": 8, "GPU": 8}}]
        )

    mixed = cluster({"CPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}, {})
    assert _seats(mixed, "cuda", None) == [Seat(1, 1, None, "cuda:0", None)] * 2
    assert _seats(mixed, "cpu", None) == [Seat(4, 0, "node0", "cpu", 4), Seat(16, 0, "node1", "cpu", 16)]
    assert _seats(cluster({"CPU": 4.0}), "cpu", 2) == [Seat(2, 0, "node0", "cpu", 2)] * 2
    with pytest.raises(InputError, match="Ray has no GPU"):
        _seats(cluster({"CPU": 4.0}), "cuda", None)
    with pytest.raises(InputError, match="Ray has no CPU"):
        _seats(cluster({}), "cpu", None)


def test_an_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_KEPT", "mine")
    with _environment({"RAY_KEPT": "other", "RAY_ADDED": "1"}):
        os.environ["RAY_BY_RAY"] = "1"
        assert (os.environ["RAY_KEPT"], os.environ["RAY_ADDED"]) == ("mine", "1")
    assert {name for name in os.environ if name.startswith("RAY_")} >= {"RAY_KEPT"}
    assert not {"RAY_ADDED", "RAY_BY_RAY"} & set(os.environ)


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    job, bench = job_of(tmp_path, {})
    with pytest.raises(InputError, match=r"^Ray cannot be reached at 127.0.0.1:9: .+"):
        sweep(bench, executor=RayActors(job, "127.0.0.1:9"))
