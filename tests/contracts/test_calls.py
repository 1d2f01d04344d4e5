"""How the arguments of a block grow with the lanes that are stacked on it: exact, on tensors written by hand."""

import pytest
import torch

from lesion.engine import Call
from lesion.errors import ModelError


def grown(tensor: torch.Tensor, *, batch_size: int, copies: int = 3, n_heads: int = 4) -> torch.Tensor:
    call = Call((), {"given": (tensor, None)}, batch_size, n_heads).grown(copies)
    assert call.batch_size == copies * batch_size
    found = call.keywords["given"][0]
    assert isinstance(found, torch.Tensor)
    return found


def test_a_row_for_each_sequence_is_repeated_and_one_for_all_is_not() -> None:
    mask = torch.arange(2 * 5).reshape(2, 1, 1, 5)
    assert torch.equal(grown(mask, batch_size=2), torch.cat([mask, mask, mask]))
    assert grown(mask[:1], batch_size=2).shape[0] == 1
    assert grown(mask[:1], batch_size=1).shape[0] == 1
    assert grown(mask[:1].expand(2, 1, 1, 5), batch_size=2).shape[0] == 1
    assert grown(torch.arange(2), batch_size=2).shape == (2,)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_alibi_has_a_row_for_each_head_of_each_sequence(batch_size: int) -> None:
    """Sequences come before heads, so that copies of the batch follow each other as its rows do."""
    by_sequence = torch.arange(batch_size * 4 * 5).reshape(batch_size, 4, 1, 5)
    found = grown(by_sequence.reshape(batch_size * 4, 1, 5), batch_size=batch_size)
    assert torch.equal(found.reshape(3 * batch_size, 4, 1, 5), by_sequence.repeat(3, 1, 1, 1))


@pytest.mark.parametrize("shape", [(3, 5), (8, 5), (6, 1, 5), (8, 1, 1, 5)])
def test_a_tensor_that_nobody_can_stack(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"shape \(\d.*for 2 sequences; lanes cannot be stacked"):
        grown(torch.zeros(shape), batch_size=2)
    assert Call((torch.zeros(shape),), {}, 2, 4).grown(1).arguments[0].shape == shape
