"""Blocks on disk: the numbers of the model in memory, each weight read once a shard, and few of them held."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from lesion.anatomy import Anatomy, dissect
from lesion.anatomy.files import weight_files
from lesion.anatomy.streaming import StreamedBlocks, open_streamed
from lesion.engine import (
    Bench,
    Here,
    MemoryRunner,
    Plan,
    Skeleton,
    StreamedRunner,
    SweepState,
    lay_out,
    make_runner,
    on_demand,
    sweep,
    verify,
)
from lesion.engine.lanes import Walk
from lesion.errors import ModelError
from lesion.interventions import ActivationEdit, Intervention, drop, drop_attn, drop_mlp, swap
from tests.support import TINY, Documents, Pictures, tiny_model, token_documents

INTERVENTIONS = [kind(layer) for kind in (drop, drop_attn, drop_mlp) for layer in range(3)] + [swap(0), swap(1)]
SHARDS = [[[0, 1], [2, 3]], [[4]]]
PLAN = Plan(SHARDS, [list(range(1, 6)), list(range(6, len(INTERVENTIONS) + 1))], stack_tokens=256, chunk=64)


def saved(name: str, folder: Path, **options: object) -> Path:
    tiny_model(name).save_pretrained(folder, **options)
    return folder


def streamed(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Anatomy, StreamedBlocks]:
    family = TINY[name][0]
    architecture = getattr(transformers, family.architectures[0])
    weights = weight_files(folder, allow_pickle=False)
    model, blocks = open_streamed(
        architecture,
        AutoConfig.from_pretrained(folder),
        family,
        weights,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    return dissect(model), blocks


def in_memory(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Anatomy:
    family = TINY[name][0]
    architecture = getattr(transformers, family.architectures[0])
    model = architecture.from_pretrained(folder, dtype=dtype, attn_implementation=family.attention).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # as `lesion.load` does: out of the mapped file
    return dissect(model)


def data_for(name: str) -> Documents | Pictures:
    objective = TINY[name][0].objective
    if objective == "image":
        return Pictures(5)
    return Documents(token_documents(97, [40, 40, 36, 20, 40]), objective=objective)


def bench_of(anatomy: Anatomy, name: str) -> Bench:
    return Bench(anatomy, data_for(name), lay_out(INTERVENTIONS, 3), PLAN)


def assert_same_bits(a: SweepState, b: SweepState) -> None:
    for left, right in zip(a.means, b.means, strict=True):
        for key, value in left.state_dict().items():
            assert torch.equal(value, right.state_dict()[key]), key
    assert (a.moved, a.changed, a.incidents) == (b.moved, b.changed, b.incidents)


@pytest.mark.parametrize("name", TINY)
def test_the_same_bits_as_in_memory(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path / "model")
    whole = sweep(bench_of(in_memory(name, folder), name))
    anatomy, blocks = streamed(name, folder)
    bench = bench_of(anatomy, name)
    assert_same_bits(sweep(bench, executor=Here(StreamedRunner(bench, blocks, memory=1 << 30))), whole)
    assert blocks.loads == [len(SHARDS)] * 3
    assert all(parameter.is_meta for block in anatomy.blocks for parameter in block.parameters())
    again = Here(StreamedRunner(bench, blocks, memory=0))  # everything in a memory-mapped file
    assert_same_bits(sweep(bench, executor=again), whole)


def test_three_blocks_at_most_are_held_and_swaps_read_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    tiny_model("gpt2", n_layer=8).save_pretrained(tmp_path / "model")
    anatomy, blocks = streamed("gpt2", tmp_path / "model")
    most = 0
    load = StreamedBlocks.load

    def counting(self: StreamedBlocks, block: int) -> None:
        nonlocal most
        load(self, block)
        held = [index for index, b in enumerate(anatomy.blocks) if not next(b.parameters()).is_meta]
        most = max(most, len(held))

    monkeypatch.setattr(StreamedBlocks, "load", counting)
    visit = Walk.visit

    def slowly(self: Walk, *arguments: Any) -> None:
        time.sleep(0.05)  # a tiny block is done before a busy machine has fetched the next one
        visit(self, *arguments)

    monkeypatch.setattr(Walk, "visit", slowly)
    lanes = lay_out([swap(layer) for layer in range(7)] + [drop(layer) for layer in range(8)], 8)
    plan = Plan([[[0, 1]]], [list(range(1, 16))], stack_tokens=256, chunk=64)
    bench = Bench(anatomy, data_for("gpt2"), lanes, plan)
    before = blocks.bytes_read
    sweep(bench, executor=Here(StreamedRunner(bench, blocks, memory=1 << 30)))
    assert blocks.loads == [1] * 8
    assert blocks.bytes_read - before == sum(blocks.stored_bytes(block) for block in range(8))
    assert most == 3  # two in use and the next one: less would mean that nothing was fetched ahead


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_halves_are_widened_as_transformers_does(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_model("llama").to(torch.bfloat16).save_pretrained(folder)
    anatomy, blocks = streamed("llama", folder, dtype)
    whole = in_memory("llama", folder, dtype).model.state_dict()
    for block in range(3):
        blocks.load(block)
    for name, value in anatomy.model.state_dict().items():
        assert value.dtype == whole[name].dtype == dtype
        assert torch.equal(value, whole[name]), name


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_tied_weights_and_many_files(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path / "model", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    anatomy, blocks = streamed(name, folder)
    assert anatomy.model.lm_head.weight is anatomy.model.get_input_embeddings().weight
    blocks.load(1)
    expected = in_memory(name, folder).blocks[1].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in anatomy.blocks[1].state_dict().items())


def load_all(name: str, folder: Path) -> None:
    _, blocks = streamed(name, folder)
    for block in range(3):
        blocks.load(block)


def rewritten(folder: Path, change: object) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("change", "says"), [
    (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "lack 1 tensors.*layers.1.mlp.up_proj"),
    (lambda t: t.pop("lm_head.weight"), "lack 1 tensors.*lm_head"),
    (lambda t: t.update({"model.layers.7.mlp.up_proj.weight": torch.zeros(2, 2)}), "1 tensors.*no place.*layers.7"),
    (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(2, 2)}), "shapes.*layers.2.mlp.up_proj"),
    (lambda t: t["model.layers.2.mlp.up_proj.weight"][3].fill_(torch.nan), r"block 2.*up_proj.weight\[3, 0\]"),
])  # fmt: skip
def test_weights_that_do_not_fit_are_refused(change: object, says: str, tmp_path: Path) -> None:
    folder = rewritten(saved("llama", tmp_path / "model"), change)
    with pytest.raises(ModelError, match=says):
        load_all("llama", folder)


def test_files_that_change_during_a_run_are_noticed(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "model")
    anatomy, blocks = streamed("llama", folder)
    bench = bench_of(anatomy, "llama")
    runner = StreamedRunner(bench, blocks, memory=1 << 30)
    state = SweepState.empty(len(bench.lanes), 1)
    runner.run(SHARDS[0], state, lambda tokens: None)
    saved("llama", folder)
    with pytest.raises(ModelError, match="changed while the run was reading"):
        runner.run(SHARDS[1], state, lambda tokens: None)


def test_a_file_that_is_cut_off_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "model")
    _, blocks = streamed("llama", folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    with pytest.raises(ModelError, match="became shorter"):
        blocks.load(2)


def test_a_streamed_model_runs_whole(tmp_path: Path) -> None:
    """Each block comes when it is called: the model's own forward, and the check before a study, work as they are."""
    folder = saved("gemma2", tmp_path / "model")
    anatomy, blocks = streamed("gemma2", folder)
    batch = data_for("gemma2").batch([0, 1])
    with torch.inference_mode():
        whole = Skeleton(in_memory("gemma2", folder)).whole(batch)
        with on_demand(anatomy, blocks):
            assert torch.equal(Skeleton(anatomy).whole(batch), whole)
            verify(anatomy, batch)
    assert all(parameter.is_meta for block in anatomy.blocks for parameter in block.parameters())
    assert all("forward" not in block.__dict__ for block in anatomy.blocks)


def test_a_lane_that_breaks_is_reported_as_in_memory(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "model")
    overflow = Intervention("overflow", edits=(ActivationEdit(1, "mlp_out", lambda x: x / 0),))
    plan = Plan(SHARDS, [[1, 2]], stack_tokens=256, chunk=64)
    anatomy, blocks = streamed("llama", folder)
    states = []
    for each in (anatomy, in_memory("llama", folder)):
        bench = Bench(each, data_for("llama"), lay_out([drop(0), overflow], 3), plan)
        runner = StreamedRunner(bench, blocks, memory=1 << 30) if each is anatomy else MemoryRunner(bench)
        states.append(sweep(bench, executor=Here(runner)))
    assert [str(incident) for incident in states[0].incidents] == [str(incident) for incident in states[1].incidents]
    assert states[0].means[0].result().mean[2].isnan().all()


def test_memory_that_is_too_little_is_said_before_anything_runs(tmp_path: Path) -> None:
    anatomy, blocks = streamed("llama", saved("llama", tmp_path / "model"))
    bench = bench_of(anatomy, "llama")
    need = blocks.need
    stored = sum(p.numel() for p in in_memory("llama", tmp_path / "model").model.parameters()) * 4
    assert need.whole == stored
    assert need.streamed == need.rest + 3 * need.blocks[0]
    runner = make_runner(bench, blocks, need.streamed + 1000)
    assert isinstance(runner, StreamedRunner)
    assert runner.memory == 1000
    with pytest.raises(ModelError, match="too little, also block by block"):
        make_runner(bench, blocks, need.streamed - 1)
