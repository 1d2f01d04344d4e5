"""Metrics of a chunk against SciPy in float64, and on distributions whose answers are known."""

import math

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

from lesion.data.batches import NO_TARGET
from lesion.statistics import kl_nats, predict

FLOAT32 = {"rtol": 2e-5, "atol": 2e-6}  # sums of 500 terms in float32


def chunk(seed: int, scale: float = 3.0, shape: tuple[int, int] = (40, 500)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_against_scipy() -> None:
    clean, other = chunk(0), chunk(1) + 40
    targets = torch.arange(40) * 3
    a, b = predict(clean, targets), predict(other, targets)
    p, q = special.log_softmax(clean.double().numpy(), -1), special.log_softmax(other.double().numpy(), -1)
    np.testing.assert_allclose(a.loss_nats, -p[np.arange(40), targets], **FLOAT32)
    np.testing.assert_allclose(a.entropy_bits, -(np.exp(p) * p).sum(-1) / math.log(2), **FLOAT32)
    np.testing.assert_allclose(kl_nats(a, b), (np.exp(p) * (p - q)).sum(-1), **FLOAT32)
    assert a.top1.tolist() == p.argmax(-1).tolist()
    assert a.correct.tolist() == (p.argmax(-1) == targets.numpy()).astype(float).tolist()


def test_uniform_and_certain() -> None:
    uniform = predict(torch.full((2, 64), 5.0), torch.tensor([3, 0]))
    assert uniform.entropy_bits.tolist() == pytest.approx([6.0, 6.0], abs=1e-6)
    assert uniform.loss_nats.tolist() == pytest.approx([math.log(64)] * 2, abs=1e-6)
    assert uniform.top1.tolist() == [0, 0]  # ties go to the lowest id
    certain = predict(torch.eye(64)[:2] * 1e4, torch.tensor([0, 0]))
    assert certain.entropy_bits.tolist() == [0.0, 0.0]
    assert certain.loss_nats.tolist() == [0.0, 1e4]


def test_equal_logits_diverge_by_exactly_nothing() -> None:
    clean = chunk(2)
    targets = torch.zeros(40, dtype=torch.long)
    assert kl_nats(predict(clean, targets), predict(clean.clone(), targets)).abs().max() == 0
    shifted = kl_nats(predict(clean, targets), predict(clean + 1, targets))  # the same distribution
    assert shifted.abs().max() < 1e-5
    moved = kl_nats(predict(clean, targets), predict(clean + chunk(3, 0.01), targets))
    assert (moved > 0).all()


def test_small_divergences_keep_their_digits() -> None:
    clean, step = chunk(4).double(), chunk(5, 1e-3).double()
    targets = torch.zeros(40, dtype=torch.long)
    p, q = special.log_softmax(clean.numpy(), -1), special.log_softmax((clean + step).numpy(), -1)
    exact = (np.exp(p) * (p - q)).sum(-1)
    ours = kl_nats(predict(clean.float(), targets), predict((clean + step).float(), targets))
    assert exact.max() < 2e-6
    np.testing.assert_allclose(ours, exact, atol=4e-7)  # a few units in the last place of logits near 10


def test_without_a_target_only_loss_and_accuracy_are_missing() -> None:
    logits = chunk(6)
    some = predict(logits, torch.where(torch.arange(40) < 5, NO_TARGET, 1))
    full = predict(logits, torch.ones(40, dtype=torch.long))
    assert some.loss_nats.isnan().tolist() == some.correct.isnan().tolist() == [True] * 5 + [False] * 35
    assert torch.equal(some.entropy_bits, full.entropy_bits)
    assert torch.equal(some.loss_nats[5:], full.loss_nats[5:])


def test_half_precision_is_read_in_float32() -> None:
    logits = chunk(7).bfloat16()
    targets = torch.ones(40, dtype=torch.long)
    assert torch.equal(predict(logits, targets).loss_nats, predict(logits.float(), targets).loss_nats)
