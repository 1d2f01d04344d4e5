"""The engine: what a plan may not change, what resumes, and what must not be passed over."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch

from lesion.anatomy import Anatomy, dissect
from lesion.data import Batch
from lesion.engine import METRICS, Bench, Plan, Skeleton, SweepState, Walk, lay_out, make_plan, sweep
from lesion.errors import InterventionError, ModelError, NonFiniteError
from lesion.interventions import ActivationEdit, Intervention, combine, drop, drop_attn, drop_mlp, swap
from lesion.results import ShardStore
from tests.support import Documents, tiny_model, token_documents

INTERVENTIONS = [kind(layer) for kind in (drop, drop_attn, drop_mlp) for layer in range(3)] + [swap(0), swap(1)]
LANES = len(INTERVENTIONS)


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return dissect(tiny_model("llama"))


@pytest.fixture(scope="module")
def data() -> Documents:
    return Documents(token_documents(97, [40, 40, 36, 40, 20, 40, 33, 40]), n_domains=2)


def plan_with(**changes: object) -> Plan:
    fields = {
        "shards": [[[0, 1, 3], [5, 7]], [[2, 6], [4]]],
        "groups": [list(range(1, LANES + 1))],
        "stack_tokens": 2048,
        "chunk": 64,
    }
    return Plan(**{**fields, **changes})  # type: ignore[arg-type]


def run(anatomy: Anatomy, data: Documents, plan: Plan, **options: object) -> SweepState:
    return sweep(Bench(anatomy, data, lay_out(INTERVENTIONS, 3), plan), **options)  # type: ignore[arg-type]


def assert_same(a: SweepState, b: SweepState, tolerance: float = 0.0) -> None:
    for left, right in zip(a.means, b.means, strict=True):
        for key, value in left.state_dict().items():
            torch.testing.assert_close(value, right.state_dict()[key], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("changes", [
    {"stack_tokens": 1},
    {"stack_tokens": 400},
    {"groups": [[1, 2, 3], [4, 5], list(range(6, LANES + 1))]},
    {"chunk": 7},
    {"shards": [[[0]], [[1, 3, 5, 7, 2], [6]], [[4]]]},
], ids=str)  # fmt: skip
def test_how_it_is_laid_out_changes_rounding_at_most(
    anatomy: Anatomy, data: Documents, changes: dict[str, object]
) -> None:
    # float32 rounding of another kernel or summation, summed over some 200 tokens
    assert_same(run(anatomy, data, plan_with(**changes)), run(anatomy, data, plan_with()), tolerance=2e-4)


def test_the_same_plan_gives_the_same_bits(anatomy: Anatomy, data: Documents) -> None:
    assert_same(run(anatomy, data, plan_with()), run(anatomy, data, plan_with()))


def test_every_document_and_domain_is_counted_once(anatomy: Anatomy, data: Documents) -> None:
    state = run(anatomy, data, plan_with())
    for domain, mean in enumerate(state.means):
        lengths = data.lengths[data.domain_of == domain]
        assert (mean.result().n_documents, mean.result().n_tokens) == (4, int((lengths - 1).sum()))


def test_the_clean_lane_against_itself(anatomy: Anatomy, data: Documents) -> None:
    mean = run(anatomy, data, plan_with()).means[0].result().mean
    column = {name: index for index, name in enumerate(METRICS)}
    assert mean[0, column["kl_nats"]] == mean[0, column["loss_change_nats"]] == 0
    assert mean[0, column["agreement"]] == 1
    assert (mean[1:, column["kl_nats"]] > 0.01).all()


def test_lanes_fork_where_they_first_differ() -> None:
    lanes = lay_out([drop(2), swap(1), drop_mlp(0), Intervention("nothing")], 3)
    assert [lane.fork for lane in lanes] == [3, 2, 1, 0, 3]
    edited = lay_out([drop(1), drop(2)], 3, base=drop(1))
    assert [lane.fork for lane in edited] == [3, 3, 2]
    assert edited[2].order == (0, None, None)


def test_a_base_edit_is_under_every_lane(anatomy: Anatomy, data: Documents) -> None:
    """The clean lane of an edited sweep is the edited model: its loss is that of the intervention alone."""
    plan = plan_with(groups=[[1]])
    loss, kl = METRICS.index("loss_nats"), METRICS.index("kl_nats")
    alone = sweep(Bench(anatomy, data, lay_out([drop_attn(1)], 3), plan)).means[0].result().mean
    under = sweep(Bench(anatomy, data, lay_out([drop(0)], 3, base=drop_attn(1)), plan)).means[0].result().mean
    both = sweep(Bench(anatomy, data, lay_out([combine([drop_attn(1), drop(0)])], 3), plan)).means[0].result().mean
    assert under[0, loss] == pytest.approx(float(alone[1, loss]), rel=1e-6)
    assert under[1, loss] == pytest.approx(float(both[1, loss]), rel=1e-6)
    assert under[1, kl] != pytest.approx(float(both[1, kl]), rel=1e-3)  # against another clean model


def test_shards_that_are_done_are_not_run_again(anatomy: Anatomy, data: Documents, tmp_path: Path) -> None:
    class Counting(Documents):
        asked: ClassVar[list[list[int]]] = []

        def batch(self, indices: object) -> Batch:
            self.asked.append(list(indices))  # type: ignore[call-overload]
            return super().batch(indices)  # type: ignore[arg-type]

    counting = Counting(data.documents, n_domains=2)
    plan, seen = plan_with(), []
    store = ShardStore(tmp_path / "shards", plan.fingerprint())
    whole = run(anatomy, counting, plan, store=store)
    assert counting.asked == [[0, 1, 3], [5, 7], [2, 6], [4]]
    (tmp_path / "shards" / "000001.safetensors").write_bytes(b"damaged")
    counting.asked.clear()
    again = run(anatomy, counting, plan, store=store, progress=lambda done, total: seen.append((done, total)))
    assert counting.asked == [[2, 6], [4]]
    assert_same(again, whole)
    assert again.moved == whole.moved == set(range(1, LANES + 1))
    assert seen[0] == (200, 289)
    assert seen[-1] == (289, 289)
    other = plan_with(chunk=32)
    counting.asked.clear()
    run(anatomy, counting, other, store=ShardStore(tmp_path / "shards", other.fingerprint()))
    assert len(counting.asked) == 4


def test_a_lane_that_stops_being_finite_is_reported_and_poisoned(anatomy: Anatomy, data: Documents) -> None:
    overflow = Intervention("overflow", edits=(ActivationEdit(1, "mlp_out", lambda x: x / 0),))
    lanes = lay_out([drop(0), overflow, drop(2)], 3)
    state = sweep(Bench(anatomy, data, lanes, plan_with(groups=[[1, 2, 3]])))
    assert {(incident.lane, incident.block) for incident in state.incidents} == {("overflow", 1)}
    mean = state.means[0].result().mean
    assert mean[2].isnan().all()
    assert not mean[[0, 1, 3]].isnan().any()
    plain = (
        sweep(Bench(anatomy, data, lay_out([drop(0), drop(2)], 3), plan_with(groups=[[1, 2]]))).means[0].result().mean
    )
    torch.testing.assert_close(mean[[0, 1, 3]], plain, rtol=1e-5, atol=1e-6)


def test_a_model_that_is_not_finite_is_an_error(data: Documents) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1e30)
        model.model.layers[1].mlp.down_proj.weight.mul_(1e30)
    with pytest.raises(NonFiniteError, match="clean: not finite"):
        run(dissect(model), data, plan_with())


def test_an_edit_that_changes_activations_and_nothing_else_is_an_error(anatomy: Anatomy, data: Documents) -> None:
    """Changed and changed back within the block: the site fired, and nothing came of it."""
    undone = Intervention(
        "undone", edits=(ActivationEdit(1, "attn_out", lambda x: x + 1), ActivationEdit(1, "attn_out", lambda x: x))
    )

    class Undoing:
        def __init__(self) -> None:
            self.kept: torch.Tensor | None = None

        def change(self, x: torch.Tensor) -> torch.Tensor:
            self.kept = x
            return x + 1

        def back(self, x: torch.Tensor) -> torch.Tensor:
            assert self.kept is not None
            return self.kept

    undoing = Undoing()
    idle = Intervention(
        "idle", edits=(ActivationEdit(1, "attn_out", undoing.change), ActivationEdit(1, "attn_out", undoing.back))
    )
    with pytest.raises(InterventionError, match=r"idle.*nothing came out differently"):
        sweep(Bench(anatomy, data, lay_out([idle], 3), plan_with(groups=[[1]])))
    assert sweep(Bench(anatomy, data, lay_out([undone], 3), plan_with(groups=[[1]]))).moved == {1}


def test_a_component_that_adds_nothing_is_told_apart_from_a_fault(data: Documents) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    state = sweep(Bench(dissect(model), data, lay_out([drop_attn(1), drop_attn(0)], 3), plan_with(groups=[[1, 2]])))
    assert (state.changed, state.moved) == ({2}, {2})


def test_a_model_that_works_between_its_blocks_is_refused(data: Documents) -> None:
    """The skeleton would miss what happens there; it must not go on."""
    model = tiny_model("llama")
    blocks = dissect(model).blocks
    handle = blocks[1].register_forward_pre_hook(lambda module, arguments: (arguments[0] * 2, *arguments[1:]))
    with pytest.raises(ModelError, match="between block 0 and block 1"):
        run(dissect(model), data, plan_with())
    handle.remove()


@torch.inference_mode()
def test_arguments_grow_with_the_stack() -> None:
    """Masks that hold a row for each sequence are repeated, those that are the same for all are not."""
    for name in ("mistral", "bert"):
        anatomy, data = dissect(tiny_model(name)), Documents(token_documents(97, [40, 38]))
        batch = data.batch([0, 1])
        stream, calls = Skeleton(anatomy).enter(batch)
        grown = calls[0].grown(3)
        masks = [v for v in (*grown.arguments, *grown.keywords.values()) if isinstance(v, torch.Tensor) and v.ndim == 4]
        assert [mask.shape[0] for mask in masks] == [6]
        assert torch.equal(masks[0][2:4], masks[0][:2])
        walk = Walk(anatomy, lay_out([drop(0), drop(1)], 3), 10_000, lambda index, step: None)
        apart = Walk(anatomy, lay_out([drop(0), drop(1)], 3), 1, lambda index, step: None)
        for index, together in walk.run(stream, calls, [1, 2]).items():
            torch.testing.assert_close(together, apart.run(stream, calls, [1, 2])[index], rtol=1e-5, atol=1e-5)


def test_plans(anatomy: Anatomy) -> None:
    lengths = [40] * 30 + [7] * 10
    plan = make_plan(anatomy, lengths, 300)
    assert sorted(d for shard in plan.shards for batch in shard for d in batch) == list(range(40))
    assert sorted(lane for group in plan.groups for lane in group) == list(range(1, 301))
    assert plan.fingerprint() == make_plan(anatomy, lengths, 300).fingerprint()
    assert plan.fingerprint() != make_plan(anatomy, lengths, 301).fingerprint()
    assert max(len(batch) for shard in make_plan(anatomy, lengths, 3, batch_size=4).shards for batch in shard) == 4


def test_a_shard_is_half_a_minute_of_work(anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the lanes, half the tokens; never less than a batch; and every document is in one of them."""
    parameters = sum(parameter.numel() for parameter in anatomy.model.parameters())
    monkeypatch.setattr("lesion.engine.plan.SHARD_OPERATIONS", {"cpu": 2 * parameters * (1 + 10 / 2) * 8000})
    few, many = make_plan(anatomy, [1000] * 200, 10), make_plan(anatomy, [1000] * 200, 22)
    assert [sum(len(batch) for batch in shard) for shard in few.shards] == [8] * 25
    assert [sum(len(batch) for batch in shard) for shard in many.shards] == [4] * 50
    assert sorted(d for shard in few.shards for batch in shard for d in batch) == list(range(200))
    monkeypatch.setattr("lesion.engine.plan.SHARD_OPERATIONS", {"cpu": 1})
    assert [len(shard) for shard in make_plan(anatomy, [1000] * 5, 10).shards] == [1] * 5


def test_lanes_are_grouped_to_fit_the_memory(anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lesion.engine.plan.LANE_BYTES", {"cpu": 5 * 1024 * 32 * 4})
    assert [len(group) for group in make_plan(anatomy, [1024] * 4, 10).groups] == [4, 4, 2]
