"""Sums, losses and small pictures of matrices against loops in plain Python."""

import math

import numpy as np
import pytest
import torch

from lesion.checkpoints import neurons, pixels
from lesion.checkpoints.neurons import lost, sums
from lesion.checkpoints.pixels import above, grey, shares


def matrix(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn((7, 11), generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kept", [0, 1])
def test_sums_are_sums(dtype: torch.dtype, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons, "_BLOCK", 23)  # two rows in one go, and one in the last
    weight, chosen = matrix(dtype), matrix() > 0.3
    found, all_of_it = sums(weight, chosen, kept), sums(weight, None, kept)
    for index in range(weight.shape[kept]):
        line = [(i, index) if kept else (index, i) for i in range(weight.shape[1 - kept])]
        values = [float(weight[place]) for place in line if chosen[place]]
        assert found.signed[index] == pytest.approx(math.fsum(values), abs=1e-14)  # of eleven numbers of size 1
        assert found.absolute[index] == pytest.approx(math.fsum(map(abs, values)), abs=1e-14)
        assert all_of_it.signed[index] == pytest.approx(math.fsum(float(weight[place]) for place in line), abs=1e-14)
    assert not np.allclose(found.absolute, all_of_it.absolute)
    assert torch.equal(weight, matrix(dtype))  # also where nothing needs to be widened
    assert np.allclose((all_of_it - found).absolute, sums(weight, ~chosen, kept).absolute)


def test_a_neuron_all_of_which_is_taken_loses_exactly_everything() -> None:
    weight, chosen = matrix(), matrix() > 0.3
    chosen[4] = True
    share = lost(sums(weight, None, 0).absolute, sums(weight, chosen, 0).absolute)
    assert share[4] == 1.0
    assert np.delete(share, 4).max() < 1.0
    assert (share >= 0).all()


def test_a_neuron_of_zeros_has_nothing_to_lose() -> None:
    weight = matrix()
    weight[2] = 0
    share = lost(sums(weight, None, 0).absolute, sums(weight, torch.ones_like(weight, dtype=torch.bool), 0).absolute)
    assert np.isnan(share).tolist() == [index == 2 for index in range(7)]


def test_above_compares_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_BLOCK", 23)
    weight = matrix(torch.bfloat16)
    size = float(weight[0, 0].abs())
    assert not above(weight, size)[0, 0]
    assert above(weight, size * (1 - 1e-9))[0, 0]  # a distance that bfloat16 does not know
    for dtype in (torch.bfloat16, torch.float64):
        weight = matrix(dtype)
        assert torch.equal(above(weight, 0.5), weight.double().abs() > 0.5)
        assert torch.equal(weight, matrix(dtype))


@pytest.mark.parametrize("largest", [1, 3, 4, 7, 256])
def test_cells_hold_the_share_of_ones(largest: int) -> None:
    ones = matrix() > 0.2
    found = shares(ones, largest)
    tall, wide = math.ceil(7 / largest), math.ceil(11 / largest)
    assert found.shape == (math.ceil(7 / tall), math.ceil(11 / wide))
    assert max(found.shape) <= largest
    n_seen = 0
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            inside = [
                bool(ones[i, j])
                for i in range(row * tall, min((row + 1) * tall, 7))
                for j in range(column * wide, min((column + 1) * wide, 11))
            ]
            n_seen += len(inside)
            assert found[row, column] == pytest.approx(sum(inside) / len(inside))
    assert n_seen == 77
    if largest == 256:
        assert np.array_equal(found, ones.numpy())


def test_stripes_survive_the_grid() -> None:
    ones = torch.zeros((1024, 600), dtype=torch.bool)
    ones[512:] = True
    found = shares(ones)
    assert found.shape == (256, 200)
    assert found[:128].max() == 0.0
    assert found[128:].min() == 1.0


def test_greys() -> None:
    values = np.array([[-1.0, 0.0, 0.5], [1.0, 2.0, 0.25]])
    assert grey(values, 0.0, 1.0).tolist() == [[0, 0, 128], [255, 255, 64]]
    assert grey(values, 0.0, 2.0).tolist() == [[0, 0, 64], [128, 255, 32]]
    assert grey(values, 1.0, 1.0).tolist() == [[0, 0, 0], [0, 0, 0]]
