"""Blocks on disk: the numbers of the model in memory, each weight read once a shard, and few of them held."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig

from lesion.anatomy import Anatomy, dissect
from lesion.anatomy.files import weight_files
from lesion.anatomy.streaming import StreamedBlocks, open_streamed
from lesion.engine import Bench, MemoryRunner, Plan, StreamedRunner, SweepState, lay_out, sweep
from lesion.engine.sweep import Here
from lesion.errors import ModelError, NonFiniteError
from lesion.interventions import drop, drop_attn, drop_mlp, swap
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
