"""Every projection in the blocks of every family can be watched, or is refused by name."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lesion.anatomy import dissect
from lesion.engine import Bench, Plan, Watch, lay_out, sweep
from lesion.errors import InputError
from lesion.statistics import SumOfSquares
from tests.support import TINY, Documents, Pictures, tiny_model, token_documents

LENGTHS = [40, 12, 33, 40]
PLAN = Plan([[[0, 1]], [[2, 3]]], [], stack_tokens=256, chunk=64)


def data_for(name: str) -> Documents | Pictures:
    objective = TINY[name][0].objective
    return Pictures(4) if objective == "image" else Documents(token_documents(97, LENGTHS), objective=objective)


def projections(block: nn.Module) -> dict[str, tuple[int, int]]:
    """Paths of the projections in a block, with what goes in and what comes out."""
    found = {}
    for path, module in block.named_modules():
        if isinstance(module, nn.Linear):
            found[path] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            found[path] = (module.weight.shape[0], module.weight.shape[1])
    return found


class Slow:
    """Hooks of torch's own on one document at a time, in float64."""

    def __init__(self, model: nn.Module, blocks: tuple[nn.Module, ...]) -> None:
        self.model, self.blocks = model, blocks
        self.sums: dict[tuple[int, str, str], Tensor] = {}

    def add(self, key: tuple[int, str, str], value: Tensor) -> None:
        total = value.double().reshape(-1, value.shape[-1]).square().sum(0)
        self.sums[key] = self.sums.get(key, torch.zeros_like(total)) + total

    @torch.inference_mode()
    def run(self, data: Documents | Pictures) -> dict[tuple[int, str, str], Tensor]:
        handles = []
        for block, module in enumerate(self.blocks):
            for path in projections(module):

                def look(m: nn.Module, given: tuple[Tensor, ...], output: Tensor, at: object = (block, path)) -> None:
                    self.add((*at, "input"), given[0])  # type: ignore[misc]
                    self.add((*at, "output"), output)  # type: ignore[misc]

                handles.append(module.get_submodule(path).register_forward_hook(look))
        for index in range(len(data.lengths)):
            self.model(**data.batch([index]).model_inputs())
        for handle in handles:
            handle.remove()
        return self.sums


@pytest.mark.parametrize("name", TINY)
def test_every_projection_is_watched_or_refused(name: str) -> None:
    model = tiny_model(name)
    anatomy, data = dissect(model), data_for(name)
    empty = {width: partial(SumOfSquares, width) for width in range(400)}  # shared: a tensor is worked on once
    watches = [
        Watch(block, path, side, empty[width])  # type: ignore[arg-type]
        for block, module in enumerate(anatomy.blocks)
        for path, widths in projections(module).items()
        for side, width in zip(("input", "output"), widths, strict=True)
    ]
    assert len(watches) >= 2 * 3 * (3 if anatomy.n_experts > 1 else 4)
    state = sweep(Bench(anatomy, data, lay_out([], 3), PLAN, tuple(watches), scored=False))
    expected = Slow(model, anatomy.blocks).run(data)
    positions = 4 * anatomy.n_positions if anatomy.objective == "image" else sum(LENGTHS)
    assert len(expected) == len(watches)
    for watch, statistic in zip(watches, state.watched, strict=True):
        assert isinstance(statistic, SumOfSquares)
        assert statistic.n_positions == positions
        found = statistic.state_dict()["sums"]
        # float32 activations: padded batches of two against single documents
        torch.testing.assert_close(found, expected[watch.block, watch.module, watch.side], rtol=1e-4, atol=1e-5)
    if anatomy.family.experts:
        path = anatomy.family.experts
        with pytest.raises(InputError, match=f"{path} in block 2 cannot be watched"):
            Bench(anatomy, data, lay_out([], 3), PLAN, (Watch(2, path, "input", lambda: SumOfSquares(32)),))
