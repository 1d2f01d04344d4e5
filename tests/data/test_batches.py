"""Batches: padding, targets, fixed masking, and the plan of which documents share one."""

import json
import random

import numpy as np
import pytest
import torch

from lesion.data import load_text, plan_batches
from lesion.data.masking import build_masking
from lesion.errors import InputError


def load(tmp_path, tokenizer, rows, **options):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return load_text(str(path), tokenizer, cache=tmp_path / "cache", **{"context": 64, **options})


def test_causal_batch_by_hand(tmp_path, no_bos):
    data = load(tmp_path, no_bos, ["a b c d", "e f", "b c d"])
    batch = data.batch([2, 1])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 9, 3]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.targets.tolist() == [[6, 7, -100], [9, -100, -100]]
    assert batch.keep.tolist() == [[True, True, False], [True, False, False]]
    assert batch.documents.tolist() == [2, 1]
    assert batch.domains.tolist() == [0, 0]
    assert batch.n_tokens == 5
    assert set(batch.model_inputs()) == {"input_ids", "attention_mask"}


def test_unpadded_batch_has_no_mask(tmp_path, no_bos):
    batch = load(tmp_path, no_bos, ["a b", "c d"]).batch([0, 1])
    assert batch.mask is None
    assert set(batch.model_inputs()) == {"input_ids"}
    assert batch.n_tokens == 4


def test_to_moves_every_tensor(tmp_path, no_bos):
    batch = load(tmp_path, no_bos, ["a b c", "c d"]).batch([0, 1])
    moved = batch.to("meta")
    for name in ("ids", "mask", "keep", "targets", "documents", "domains"):
        assert getattr(moved, name).is_meta
        assert not getattr(batch, name).is_meta
    assert moved.pixels is None


def test_domains_of_a_batch(tmp_path, no_bos):
    (tmp_path / "y.txt").write_text("d e")
    (tmp_path / "x.txt").write_text("a b")
    data = load_text([str(tmp_path / "x.txt"), str(tmp_path / "y.txt")], no_bos, context=4, cache=tmp_path)
    assert data.batch([1, 0, 1]).domains.tolist() == [1, 0, 1]


def random_texts(n, longest=60):
    chooser = random.Random(0)
    return [" ".join(chooser.choices("abcdefghijklmnopqrstuvwxyz", k=chooser.randint(1, longest))) for _ in range(n)]


def test_masking_keeps_to_its_rules(tmp_path, bert):
    data = load(tmp_path, bert, random_texts(40), objective="masked")
    for index in range(data.n_documents):
        batch, original = data.batch([index]), data.document(index)
        (seen,), (keep,), (targets,) = batch.ids.numpy(), batch.keep.numpy(), batch.targets.numpy()
        assert keep.sum() == max(1, int(0.15 * (original.size - 2)))
        assert not keep[[0, -1]].any()
        assert (seen[~keep] == original[~keep]).all()
        assert (targets[keep] == original[keep]).all()
        assert (targets[~keep] == -100).all()


def test_masking_shares(bert):
    masking = build_masking(bert, seed=0, vocabulary_size=20)
    original = np.full(20_000, 5)
    corrupted, chosen = masking.corrupt(original, 0)
    assert chosen.size == 3000
    assert (np.delete(corrupted, chosen) == 5).all()
    fates = corrupted[chosen]
    # binomial: 3 standard deviations of 3000 draws are at most 0.022
    assert (fates == 4).mean() == pytest.approx(0.8, abs=0.022)
    assert (fates == 5).mean() == pytest.approx(0.1 + 0.1 / 15, abs=0.022)
    assert set(fates) == {4, *range(5, 20)}  # ordinary tokens that the model knows, every one of them


def test_masking_depends_on_seed_and_document_and_not_on_the_batch(tmp_path, bert):
    texts = ["a b c d e f g h i j k l m n o p q r s t"] * 6
    data = load(tmp_path, bert, texts, objective="masked")
    together = data.batch(range(6))
    for index in range(6):
        alone = data.batch([index])
        assert torch.equal(together.ids[index], alone.ids[0])
        assert torch.equal(together.targets[index], alone.targets[0])
    shuffled = data.batch([5, 0, 3])
    assert torch.equal(shuffled.ids, together.ids[[5, 0, 3]])
    assert len({tuple(row) for row in together.targets.tolist()}) > 1  # documents differ
    other = load(tmp_path, bert, texts, objective="masked", seed=1)
    assert other.fingerprint != data.fingerprint  # other positions count: a run on them is another run
    assert not torch.equal(other.batch(range(6)).targets, together.targets)
    again = load(tmp_path, bert, texts, objective="masked")
    assert torch.equal(again.batch(range(6)).ids, together.ids)


def test_padding_is_never_asked_about(tmp_path, bert):
    data = load(tmp_path, bert, random_texts(8), objective="masked")
    batch = data.batch(range(8))
    assert not (batch.keep & (batch.mask == 0)).any()
    assert (batch.ids[batch.mask == 0] == 0).all()
    assert batch.n_tokens == data.n_tokens


def padded(lengths, batch):
    return len(batch) * max(lengths[index] for index in batch)


@pytest.mark.parametrize("trial", range(100))
def test_plan_properties(trial):
    chooser = random.Random(trial)
    lengths = [chooser.choice([256, chooser.randint(1, 300)]) for _ in range(chooser.randint(1, 200))]
    max_tokens, max_documents = chooser.randint(1, 3000), chooser.choice([None, 1, 7])
    plan = plan_batches(np.array(lengths), max_tokens=max_tokens, max_documents=max_documents)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    for batch in plan:
        longest, shortest = lengths[batch[0]], lengths[batch[-1]]
        assert len(batch) == 1 or padded(lengths, batch) <= max_tokens
        assert longest - shortest <= 0.25 * longest
        assert max_documents is None or len(batch) <= max_documents
    flat = [index for batch in plan for index in batch]
    assert flat == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    assert plan == plan_batches(lengths, max_tokens=max_tokens, max_documents=max_documents)


def test_plan_by_hand():
    assert plan_batches([4, 9, 8, 3], max_tokens=18) == [[1, 2], [0, 3]]
    assert plan_batches([4, 9, 8, 3], max_tokens=17) == [[1], [2], [0, 3]]
    assert plan_batches([12, 11, 10, 10, 9], max_tokens=24) == [[0, 1], [2, 3], [4]]
    assert plan_batches([100, 75], max_tokens=1000) == [[0, 1]]
    assert plan_batches([100, 74], max_tokens=1000) == [[0], [1]]
    assert plan_batches([50], max_tokens=10) == [[0]]
    assert plan_batches([], max_tokens=10) == []


def test_plan_keeps_equal_lengths_unpadded_where_that_fills_half_a_batch():
    assert plan_batches([10, 10, 10, 9, 9], max_tokens=50) == [[0, 1, 2], [3, 4]]
    assert plan_batches([10, 10, 9, 9], max_tokens=50) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("limits", [{"max_tokens": 0}, {"max_tokens": 8, "max_documents": 0}])
def test_plan_without_room(limits):
    with pytest.raises(InputError, match="batches need room"):
        plan_batches([1], **limits)
    with pytest.raises(InputError, match="document 1 has length 0"):
        plan_batches([1, 0], max_tokens=8)
