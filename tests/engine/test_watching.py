"""Statistics of activations: which rows they see, in which lane, once each; and that they merge and resume."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lesion.anatomy import Anatomy, Loading, dissect, load
from lesion.data import Batch
from lesion.engine import (
    Bench,
    Here,
    MemoryRunner,
    Plan,
    Skeleton,
    StreamedRunner,
    SweepState,
    Watch,
    lay_out,
    sweep,
)
from lesion.engine.batch_work import BatchWork
from lesion.engine.executors import Job, Processes, Source
from lesion.errors import InputError, InterventionError, ModelError, NonFiniteError
from lesion.interventions import Intervention, drop, drop_mlp, swap
from lesion.results import ShardStore
from lesion.statistics import Positions, SumOfSquares
from tests.conftest import SENTENCES
from tests.engine.test_streaming import in_memory, saved, streamed
from tests.support import Documents, save_tiny_folder, tiny_model, token_documents

LENGTHS = [40, 40, 36, 20, 40, 12]
SHARDS = [[[0, 1], [2, 3]], [[4, 5]]]
INTERVENTIONS = [drop_mlp(1), swap(0), drop(2)]


def squares(block: int, module: str, width: int, side: str = "input", lane: int = 0) -> Watch:
    return Watch(block, module, side, partial(SumOfSquares, width), lane)  # type: ignore[arg-type]


WATCHES = (
    squares(0, "self_attn.q_proj", 32),
    squares(2, "mlp.down_proj", 80),
    squares(1, "mlp.up_proj", 80, "output"),
    squares(1, "", 32, "output"),
)
PLAN = Plan(SHARDS, [], stack_tokens=256, chunk=64)


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return dissect(tiny_model("llama"))


@pytest.fixture(scope="module")
def data() -> Documents:
    return Documents(token_documents(97, LENGTHS), n_domains=2)


def bench_of(
    anatomy: Anatomy,
    data: Documents,
    watches: Sequence[Watch] = WATCHES,
    *,
    interventions: Sequence[Intervention] = (),
    plan: Plan = PLAN,
    scored: bool = False,
) -> Bench:
    return Bench(anatomy, data, lay_out(interventions, 3), plan, tuple(watches), scored)


def slow_squares(model: nn.Module, data: Documents, watch: Watch) -> Tensor:
    """One document at a time through the whole model, a hook of torch's own, float64."""
    total = torch.zeros((), dtype=torch.float64)
    module = model.model.layers[watch.block].get_submodule(watch.module)

    def look(module: nn.Module, given: tuple[Tensor, ...], output: object = None) -> None:
        nonlocal total
        value = given[0] if watch.side == "input" else output[0] if isinstance(output, tuple) else output
        assert isinstance(value, Tensor)
        total = total + value.detach().double().reshape(-1, value.shape[-1]).square().sum(0)

    register = module.register_forward_pre_hook if watch.side == "input" else module.register_forward_hook
    handle = register(look)
    with torch.inference_mode():
        for document in data.documents:
            model(torch.from_numpy(document)[None], use_cache=False)
    handle.remove()
    return total


def sums(state: SweepState, index: int) -> Tensor:
    return state.watched[index].state_dict()["sums"]


def assert_same_bits(a: SweepState, b: SweepState) -> None:
    assert len(a.watched) == len(b.watched) > 0
    for left, right in zip([*a.watched, *a.means], [*b.watched, *b.means], strict=True):
        for key, value in left.state_dict().items():
            assert torch.equal(value, right.state_dict()[key]), key


def test_every_real_token_counts_and_padding_does_not(anatomy: Anatomy, data: Documents) -> None:
    state = sweep(bench_of(anatomy, data))
    for index, watch in enumerate(WATCHES):
        statistic = state.watched[index]
        assert isinstance(statistic, SumOfSquares)
        assert statistic.n_positions == sum(LENGTHS)  # the last token of a document too, which has no target
        # float32 activations of padded batches against single documents: some 1e-6 relative
        torch.testing.assert_close(sums(state, index), slow_squares(anatomy.model, data, watch), rtol=1e-5, atol=1e-6)
    padded = Documents([np.append(d, 1) for d in data.documents])  # what padding would have added
    other = slow_squares(anatomy.model, padded, WATCHES[0])
    assert not torch.allclose(sums(state, 0), other, rtol=1e-3)


@pytest.mark.parametrize("changes", [
    {"shards": [[[0]], [[1]], [[2]], [[3]], [[4]], [[5]]]},
    {"shards": [[[5, 3, 1, 0, 2, 4]]]},
], ids=str)  # fmt: skip
def test_how_it_is_laid_out_changes_rounding_at_most(
    anatomy: Anatomy, data: Documents, changes: dict[str, object]
) -> None:
    one, other = (sweep(bench_of(anatomy, data, plan=plan)) for plan in (PLAN, replace(PLAN, **changes)))  # type: ignore[arg-type]
    for index in range(len(WATCHES)):
        torch.testing.assert_close(sums(one, index), sums(other, index), rtol=1e-5, atol=1e-6)  # another kernel's


def test_the_table_keeps_its_bits_whatever_is_watched(anatomy: Anatomy, data: Documents) -> None:
    plan = replace(PLAN, groups=[[1, 2, 3]])
    plain, watched = (
        sweep(bench_of(anatomy, data, chosen, interventions=INTERVENTIONS, plan=plan, scored=True))
        for chosen in ((), WATCHES)
    )
    for left, right in zip(plain.means, watched.means, strict=True):
        for key, value in left.state_dict().items():
            assert torch.equal(value, right.state_dict()[key]), key
    assert (plain.watched, plain.moved) == ([], watched.moved)
    assert_same_bits(watched, watched)
    alone = sweep(bench_of(anatomy, data))
    for index in range(len(WATCHES)):
        torch.testing.assert_close(sums(alone, index), sums(watched, index), rtol=1e-5, atol=1e-6)  # stacked: rounding


@pytest.mark.parametrize("groups", [[[1, 2, 3]], [[1], [2, 3]], [[1], [2], [3]]], ids=str)
@pytest.mark.parametrize("stack_tokens", [1, 4096])
def test_a_watch_sees_its_own_lane(
    anatomy: Anatomy, data: Documents, groups: list[list[int]], stack_tokens: int
) -> None:
    """Against the context manager on the whole model; before its fork a lane is the clean one, and is seen in it."""
    watches = [squares(block, "mlp.down_proj", 80, lane=lane) for lane in range(3) for block in range(3)]
    plan = replace(PLAN, groups=groups, stack_tokens=stack_tokens)
    state = sweep(bench_of(anatomy, data, watches, interventions=INTERVENTIONS, plan=plan))
    slow = {}
    for lane, intervention in enumerate([Intervention("clean"), *INTERVENTIONS[:2]]):
        with intervention.on(anatomy.model):
            for block in range(3):
                slow[lane, block] = slow_squares(anatomy.model, data, watches[block])
    for index, watch in enumerate(watches):
        torch.testing.assert_close(sums(state, index), slow[watch.lane, watch.block], rtol=1e-5, atol=1e-6)
        statistic = state.watched[index]
        assert isinstance(statistic, SumOfSquares)
        assert statistic.n_positions == sum(LENGTHS)
    assert torch.allclose(slow[1, 1], slow[0, 1])  # the MLP's input is not changed by taking away what it gives
    assert not torch.allclose(slow[1, 2], slow[0, 2], rtol=1e-2)
    assert not torch.allclose(slow[2, 0], slow[0, 0], rtol=1e-2)


def test_a_watch_behind_an_edit_sees_what_was_edited(anatomy: Anatomy, data: Documents) -> None:
    watches = [squares(1, "mlp.down_proj", 32, "output", lane) for lane in (0, 1)]
    state = sweep(
        bench_of(anatomy, data, watches, interventions=[drop_mlp(1)], plan=replace(PLAN, groups=[[1]]), scored=True)
    )
    assert sums(state, 0).min() > 0
    assert not sums(state, 1).any()


def test_streamed_blocks_give_the_bits_of_memory_and_are_read_once(tmp_path: Path, data: Documents) -> None:
    folder = saved("llama", tmp_path / "model")
    watches = [*WATCHES, squares(2, "mlp.down_proj", 80, lane=2)]
    plan = replace(PLAN, groups=[[1], [2, 3]])
    for scored in (False, True):
        changes = {"interventions": INTERVENTIONS, "plan": plan, "scored": scored}
        whole = sweep(bench_of(in_memory("llama", folder), data, watches, **changes))  # type: ignore[arg-type]
        anatomy, blocks = streamed("llama", folder)
        bench = bench_of(anatomy, data, watches, **changes)  # type: ignore[arg-type]
        assert_same_bits(sweep(bench, executor=Here(StreamedRunner(bench, blocks, memory=1 << 30))), whole)
        assert blocks.loads == [len(SHARDS)] * 3


class Counting(Documents):
    asked: ClassVar[list[list[int]]] = []

    def batch(self, indices: Sequence[int]) -> Batch:
        self.asked.append(list(indices))
        return super().batch(indices)


def test_shards_keep_what_was_seen(anatomy: Anatomy, data: Documents, tmp_path: Path) -> None:
    counting = Counting(data.documents, n_domains=2)
    counting.asked.clear()
    store = ShardStore(tmp_path / "shards", "plan")
    whole = sweep(bench_of(anatomy, counting), store=store)
    assert counting.asked == [[0, 1], [2, 3], [4, 5]]
    for damaged, again in ((1, [[4, 5]]), (None, [])):
        if damaged is not None:
            (tmp_path / "shards" / f"{damaged:06d}.safetensors").write_bytes(b"damaged")
        counting.asked.clear()
        assert_same_bits(sweep(bench_of(anatomy, counting), store=store), whole)
        assert counting.asked == again


def test_a_batch_that_runs_out_of_memory_is_counted_once(
    anatomy: Anatomy, data: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory ends while block 2 is watched: what blocks 0 and 1 gave is forgotten, and both halves count once."""
    update, rows = SumOfSquares.update, []

    def limited(self: SumOfSquares, values: Tensor, positions: Positions) -> None:
        rows.append(len(values))
        if values.shape[1] == 80 and len(values) > 40 and len(rows) < 8:
            raise MemoryError
        update(self, values, positions)

    whole = sweep(bench_of(anatomy, data))
    monkeypatch.setattr(SumOfSquares, "update", limited)
    state = sweep(bench_of(anatomy, data))
    assert (whole.halved, state.halved) == (0, 1)
    for index in range(len(WATCHES)):
        statistic = state.watched[index]
        assert isinstance(statistic, SumOfSquares)
        assert statistic.n_positions == sum(LENGTHS)
        torch.testing.assert_close(sums(state, index), sums(whole, index), rtol=1e-5, atol=1e-6)  # another kernel's


def test_nothing_is_kept_of_a_batch_that_fails(
    anatomy: Anatomy, data: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, measure = bench_of(anatomy, data), BatchWork.measure

    def failing(self: BatchWork, *arguments: object, **keywords: object) -> None:
        measure(self, *arguments, **keywords)  # type: ignore[arg-type]
        if 2 in self.batch.documents.tolist():
            raise RuntimeError("something else")

    monkeypatch.setattr(BatchWork, "measure", failing)
    state = bench.empty_state()
    with pytest.raises(RuntimeError, match="something else"):
        MemoryRunner(bench).run(SHARDS[0], state, lambda tokens: None)
    counted = state.watched[0]
    assert isinstance(counted, SumOfSquares)
    assert counted.n_positions == 80  # the first batch, and nothing of the second


def test_who_wants_no_logits_pays_no_tail(anatomy: Anatomy, data: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(self: Skeleton, chunk: Tensor) -> Tensor:
        raise AssertionError("a head was run")

    monkeypatch.setattr(Skeleton, "leave", leave)
    assert len(sweep(bench_of(anatomy, data)).watched) == len(WATCHES)
    with pytest.raises(AssertionError, match="a head was run"):
        sweep(bench_of(anatomy, data, scored=True))


def test_other_processes_see_the_same(tmp_path: Path) -> None:
    save_tiny_folder(tmp_path / "model", SENTENCES)
    model = load(tmp_path / "model", device="cpu")
    data = Documents(token_documents(320, LENGTHS))
    bench = Bench(model.anatomy, data, lay_out([], 3), PLAN, WATCHES, scored=False)
    job = Job.of(Source.of(model, Loading()), model, bench, None)
    opened = job.open("cpu").bench
    assert (opened.watches, opened.scored) == (job.watches, False)
    assert_same_bits(sweep(bench, executor=Processes(job, ["cpu"])), sweep(bench))


class Seen:
    """A statistic of this test's own, which only notes what it is given."""

    rows: ClassVar[list[tuple[Tensor, Positions]]] = []

    def update(self, values: Tensor, positions: Positions) -> None:
        self.rows.append((values.clone(), positions))

    def merge(self, other: "Seen") -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


def test_positions_say_where_rows_come_from(anatomy: Anatomy, data: Documents) -> None:
    Seen.rows.clear()
    sweep(bench_of(anatomy, data, [Watch(0, "", "input", Seen)]))
    embedding = anatomy.model.get_input_embeddings().weight.detach()
    found: dict[int, list[int]] = {}
    for values, positions in Seen.rows:
        assert positions.ids is not None
        assert torch.equal(values, embedding[positions.ids])
        assert torch.equal(positions.domains, positions.documents % 2)
        for document, column, token in zip(
            positions.documents.tolist(), positions.columns.tolist(), positions.ids.tolist(), strict=True
        ):
            assert column == len(found.setdefault(document, []))
            found[document].append(token)
    assert found == {index: document.tolist() for index, document in enumerate(data.documents)}


@pytest.mark.parametrize(("watch", "says"), [
    (squares(3, "mlp.up_proj", 32), "input of mlp.up_proj in block 3: the model has blocks 0 to 2"),
    (squares(-1, "mlp.up_proj", 32), "blocks 0 to 2"),
    (squares(0, "mlp.up", 32), "blocks of llama have no such part"),
    (squares(0, "mlp.up_proj", 32, lane=4), "there is no lane 4; the sweep has lanes 0 to 3"),
    (squares(2, "mlp.up_proj", 32, lane=3), "lane drop:2 runs that block 0 times, not once"),
])  # fmt: skip
def test_what_cannot_be_watched_is_refused_beforehand(
    anatomy: Anatomy, data: Documents, watch: Watch, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        bench_of(anatomy, data, [watch], interventions=INTERVENTIONS)


def test_a_list_of_modules_is_never_called(data: Documents) -> None:
    model = tiny_model("llama")
    model.model.layers[0].spare = nn.ModuleList([nn.Linear(32, 32)])
    with pytest.raises(InputError, match="ModuleList is never called as a whole"):
        bench_of(dissect(model), data, [squares(0, "spare", 32)])
    with pytest.raises(InterventionError, match=r"nothing passed through input of spare.0 in block 0"):
        sweep(bench_of(dissect(model), data, [squares(0, "spare.0", 32)]))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_are_refused_by_name(name: str, data: Documents) -> None:
    with pytest.raises(InputError, match=r"input of mlp.experts in block 1 cannot be watched: it is spread over exp"):
        bench_of(dissect(tiny_model(name)), data, [squares(1, "mlp.experts", 32)])
    router = sweep(bench_of(dissect(tiny_model(name)), data, [squares(1, "mlp.gate", 32)])).watched[0]
    assert isinstance(router, SumOfSquares)
    assert router.n_positions == sum(LENGTHS)


class Infinite(nn.Module):
    """Makes one coordinate of one token infinite."""

    def forward(self, values: Tensor) -> Tensor:
        values = values.clone()
        values[-1, 5, 3] = torch.inf
        return values


class Finite(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.nan_to_num(0, 0, 0)


def test_what_is_not_finite_is_named_also_where_nobody_sees_it_afterwards(data: Documents) -> None:
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    mlp.gate_proj = nn.Sequential(Infinite(), Finite(), mlp.gate_proj)
    hidden = dissect_changed(model)
    assert len(sweep(bench_of(hidden, data, [WATCHES[0], squares(1, "mlp.gate_proj.2", 32)])).watched) == 2
    says = (
        r"^the input of mlp.gate_proj.1 in block 1 is not finite: coordinate 3 is inf at token 5 of document 1 \(lane"
    )
    with pytest.raises(NonFiniteError, match=says):
        sweep(bench_of(hidden, data, [squares(1, "mlp.gate_proj.1", 32)]))


def dissect_changed(model: nn.Module) -> Anatomy:
    """The anatomy of a model some of whose modules are no longer what its family has."""
    return replace(dissect(tiny_model("llama")), model=model, blocks=tuple(model.model.layers))


class Twice(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, values: Tensor) -> Tensor:
        return self.inner(values) + self.inner(values)


class Partly(Twice):
    def forward(self, values: Tensor) -> Tensor:
        return torch.cat(
            [self.inner(values[:, :7]), self.inner.weight.new_zeros(len(values), values.shape[1] - 7, 80)], 1
        )


@pytest.mark.parametrize(("around", "says"), [
    (Twice, "input of mlp.up_proj.inner in block 1 passes more than once a batch"),
    (Partly, r"input of mlp.up_proj.inner in block 1 is a tensor of shape \(2, 7, 32\), which is no row for each"),
])  # fmt: skip
def test_a_place_that_does_not_see_each_token_once_is_refused(around: type[Twice], says: str, data: Documents) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj = around(model.model.layers[1].mlp.up_proj)
    with pytest.raises(ModelError, match=says):
        sweep(bench_of(dissect_changed(model), data, [squares(1, "mlp.up_proj.inner", 32)]))
    assert sweep(bench_of(dissect_changed(model), data, [squares(1, "mlp.up_proj", 32)])).watched
