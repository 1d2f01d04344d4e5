"""Metrics of a chunk against SciPy in float64, and on distributions whose answers are known."""

import math

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

from lesion.data.batches import NO_TARGET
from lesion.statistics import Scorer, Scores

FLOAT32 = {"rtol": 2e-5, "atol": 2e-6}  # sums of 500 terms in float32


def chunk(seed: int, scale: float = 3.0, shape: tuple[int, int] = (40, 500)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def refer(logits: Tensor, targets: Tensor) -> Scores:
    return Scorer().refer(logits, targets)


def kl_nats(clean: Tensor, other: Tensor) -> Tensor:
    targets = torch.zeros(len(clean), dtype=torch.long)
    scorer = Scorer()
    scorer.refer(clean, targets)
    return scorer.compare(other, targets)[1]


@pytest.mark.parametrize("vocabulary", [7, 128, 256, 500, 641])
def test_against_scipy(vocabulary: int) -> None:
    clean, other = chunk(0, shape=(40, vocabulary)), chunk(1, shape=(40, vocabulary)) + 40
    targets = torch.arange(40) % vocabulary
    scorer = Scorer()
    reference = scorer.refer(clean, targets)
    scores, kl = scorer.compare(other, targets)
    p, q = (special.log_softmax(logits.double().numpy(), -1) for logits in (clean, other))
    for ours, exact in ((reference, p), (scores, q)):
        np.testing.assert_allclose(ours.loss_nats, -exact[np.arange(40), targets], **FLOAT32)
        np.testing.assert_allclose(ours.entropy_bits, -(np.exp(exact) * exact).sum(-1) / math.log(2), **FLOAT32)
        assert ours.top1.tolist() == exact.argmax(-1).tolist()
        assert ours.correct.tolist() == (exact.argmax(-1) == targets.numpy()).astype(float).tolist()
    np.testing.assert_allclose(kl, (np.exp(p) * (p - q)).sum(-1), **FLOAT32)


def test_the_logits_given_are_left_as_they_are() -> None:
    clean, other, targets = chunk(0), chunk(1), torch.zeros(40, dtype=torch.long)
    kept = clean.clone(), other.clone()
    scorer = Scorer()
    scorer.refer(clean, targets)
    first = scorer.compare(other, targets)[1]
    assert torch.equal(clean, kept[0])
    assert torch.equal(other, kept[1])
    assert torch.equal(scorer.compare(other, targets)[1], first)


def test_buffers_are_used_again_for_smaller_and_other_chunks() -> None:
    scorer = Scorer()
    for seed, shape in enumerate([(40, 500), (7, 500), (60, 500), (5, 90), (40, 500)]):
        clean, other, targets = chunk(seed, shape=shape), chunk(seed + 9, shape=shape), torch.zeros(shape[0]).long()
        scores = scorer.refer(clean, targets)
        again, kl = scorer.compare(other, targets)
        assert torch.equal(kl, kl_nats(clean, other))
        assert torch.equal(scores.entropy_bits, refer(clean, targets).entropy_bits)
        assert torch.equal(again.loss_nats, refer(other, targets).loss_nats)


def test_a_chunk_needs_the_clean_one_of_its_positions() -> None:
    scorer, targets = Scorer(), torch.zeros(40, dtype=torch.long)
    with pytest.raises(ValueError, match="refer first"):
        scorer.compare(chunk(0), targets)
    scorer.refer(chunk(0), targets)
    with pytest.raises(ValueError, match="refer first"):
        scorer.compare(chunk(0)[:7], targets[:7])


@pytest.mark.parametrize("vocabulary", [64, 1000])
def test_the_first_of_equal_maxima(vocabulary: int) -> None:
    """Wherever in the vocabulary the ties are, the lowest id is the prediction."""
    generator = np.random.default_rng(0)
    logits = torch.zeros(300, vocabulary)
    expected = []
    for row in logits:
        ties = generator.choice(vocabulary, size=3, replace=False)
        row[ties] = 2.0
        expected.append(int(ties.min()))
    assert refer(logits, torch.zeros(300, dtype=torch.long)).top1.tolist() == expected


def test_uniform_and_certain() -> None:
    uniform = refer(torch.full((2, 64), 5.0), torch.tensor([3, 0]))
    assert uniform.entropy_bits.tolist() == pytest.approx([6.0, 6.0], abs=1e-6)
    assert uniform.loss_nats.tolist() == pytest.approx([math.log(64)] * 2, abs=1e-6)
    assert uniform.top1.tolist() == [0, 0]
    certain = refer(torch.eye(64)[:2] * 1e4, torch.tensor([0, 0]))
    assert certain.entropy_bits.tolist() == [0.0, 0.0]
    assert certain.loss_nats.tolist() == [0.0, 1e4]


def test_equal_logits_diverge_by_exactly_nothing() -> None:
    clean = chunk(2)
    assert kl_nats(clean, clean.clone()).abs().max() == 0
    assert kl_nats(clean, clean + 1).abs().max() < 1e-5  # the same distribution
    assert (kl_nats(clean, clean + chunk(3, 0.01)) > 0).all()


def test_small_divergences_keep_their_digits() -> None:
    clean, step = chunk(4).double(), chunk(5, 1e-3).double()
    p, q = special.log_softmax(clean.numpy(), -1), special.log_softmax((clean + step).numpy(), -1)
    exact = (np.exp(p) * (p - q)).sum(-1)
    assert exact.max() < 2e-6
    # a few units in the last place of logits near 10
    np.testing.assert_allclose(kl_nats(clean.float(), (clean + step).float()), exact, atol=4e-7)


def test_without_a_target_only_loss_and_accuracy_are_missing() -> None:
    logits = chunk(6)
    some = refer(logits, torch.where(torch.arange(40) < 5, NO_TARGET, 1))
    full = refer(logits, torch.ones(40, dtype=torch.long))
    assert some.loss_nats.isnan().tolist() == some.correct.isnan().tolist() == [True] * 5 + [False] * 35
    assert torch.equal(some.entropy_bits, full.entropy_bits)
    assert torch.equal(some.loss_nats[5:], full.loss_nats[5:])


def test_half_precision_is_read_in_float32() -> None:
    logits, targets = chunk(7).bfloat16(), torch.ones(40, dtype=torch.long)
    half, single = refer(logits, targets), refer(logits.float(), targets)
    assert torch.equal(half.loss_nats, single.loss_nats)
    assert torch.equal(half.top1, single.top1)
