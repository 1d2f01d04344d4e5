"""Copy tasks: what is drawn, where it is cut, and that the answer is what the string said before."""

import re
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lesion.data.copy_tasks import CopyTask, Drawing, draw_probes, draw_task, usable_ids
from lesion.errors import InputError
from tests.conftest import SENTENCES

ROOM = {"n_ids": 10_000, "n_positions": 4096}


def made(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def byte_level(size: int = 400) -> PreTrainedTokenizerFast:
    """As GPT-2's: a space belongs to what follows, integers are a token or several."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*SENTENCES, *(f" {n}" for n in range(1000, 1100))], trainer)
    return made(backend, bos_token="<s>")


def digits() -> PreTrainedTokenizerFast:
    """As LLaMA's: a space is a token of its own where a digit follows, and each digit is one."""
    vocabulary = {"<s>": 0, "▁": 1, **{str(digit): 2 + digit for digit in range(10)}}
    vocabulary |= {letter: 12 + place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return made(backend, bos_token="<s>")


def words(n_words: int = 30) -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": 0, "</s>": 1, **{f"w{number}": 2 + number for number in range(n_words)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return made(backend, bos_token="<s>", eos_token="</s>")


class Slow(PreTrainedTokenizerFast):
    is_fast = False


TOKENIZERS = {"byte-level": byte_level, "digits": digits}


def prompts(task: CopyTask, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [str(tokenizer.decode(ids[task.n_special : cut])) for ids, cut in zip(task.ids, task.cuts, strict=True)]


@pytest.mark.parametrize("cut", ["item", "end"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_integers(name: str, cut: str) -> None:
    tokenizer = TOKENIZERS[name]()
    task = draw_task("integers", tokenizer, Drawing(60, cut=cut), **ROOM)  # type: ignore[arg-type]
    places = Counter()
    for example, prompt in enumerate(prompts(task, tokenizer)):
        said = re.findall(r"\d{4}", prompt)
        items = said[:5]
        assert len(set(items)) == 5
        assert all(1000 <= int(item) <= 9999 for item in items)
        assert said == [items[place % 5] for place in range(len(said))]
        assert re.fullmatch(r"(\d{4} ?)+", prompt)  # cut between integers, never inside one
        answer = str(tokenizer.decode([task.answers[example]])).strip()
        assert answer
        assert items[len(said) % 5].startswith(answer)
        whole = str(tokenizer.decode(task.whole(example)[task.n_special :])).rstrip()
        assert whole == " ".join(items * 2)
        places[len(said)] += 1
    assert set(places) == ({6, 7, 8, 9} if cut == "item" else {10})  # nothing says what comes behind the fifth
    assert np.array_equal(task.answers, task.expected(1)[:, 0])


def test_a_space_that_is_a_token_is_no_answer() -> None:
    tokenizer = digits()
    space = tokenizer.convert_tokens_to_ids("▁")
    task = draw_task("integers", tokenizer, Drawing(40), **ROOM)
    assert space not in task.answers
    assert all(ids[cut - 1] == space for ids, cut in zip(task.ids, task.cuts, strict=True))
    assert task.aligned  # five tokens an integer
    assert not draw_task("integers", byte_level(), Drawing(40), **ROOM).aligned


@pytest.mark.parametrize("n_steps", [1, 40])
@pytest.mark.parametrize("cut", ["item", "end"])
def test_tokens(cut: str, n_steps: int) -> None:
    tokenizer = byte_level()
    drawing = Drawing(80, cut=cut, n_steps=n_steps)  # type: ignore[arg-type]
    task = draw_task("tokens", tokenizer, drawing, **ROOM)
    usable = set(usable_ids(tokenizer, 10_000).tolist())
    assert (task.ends == 31).all()
    assert task.aligned
    expected = task.expected(n_steps)
    for example, (ids, place) in enumerate(zip(task.ids, task.cuts, strict=True)):
        items = ids[1:11].tolist()
        assert ids[0] == tokenizer.bos_token_id
        assert len(set(items)) == 10
        assert set(items) <= usable
        assert task.whole(example).tolist() == [ids[0], *items, *items, *items]
        assert expected[example].tolist() == [items[(place - 1 + step) % 10] for step in range(n_steps)]
    assert set(task.cuts.tolist()) == (set(range(21, 31)) if cut == "item" else {31})
    assert task.chance == pytest.approx(0.1, rel=1e-12)


def test_the_end_is_answered_by_the_token_after_the_bos() -> None:
    task = draw_task("tokens", byte_level(), Drawing(20, cut="end"), **ROOM)
    assert [ids[1] for ids in task.ids] == task.answers.tolist()


def test_through_text() -> None:
    tokenizer = byte_level()
    task = draw_task("tokens", tokenizer, Drawing(60, through_text=True, n_steps=5), **ROOM)
    plain = draw_task("tokens", tokenizer, Drawing(60), **ROOM)
    changed = 0
    for example in range(60):
        text = str(tokenizer.decode(plain.ids[example][1:11]))
        own = str(tokenizer.decode(task.whole(example)[1:]))
        assert own == text * 3
        assert task.whole(example)[1:].tolist() == tokenizer(text * 3)["input_ids"]
        behind = task.ids[example][task.ends[example] :]
        assert behind.tolist() == tokenizer(text * 5)["input_ids"]
        changed += task.whole(example).tolist() != plain.whole(example).tolist()
        assert task.ends[example] * 2 // 3 <= task.cuts[example] < task.ends[example]
    assert changed  # some neighbours are another token together


def test_chance_is_that_of_an_item_at_random() -> None:
    tokenizer = digits()
    task = draw_task("integers", tokenizer, Drawing(60), **ROOM)
    shares = []
    for prompt, answer in zip(prompts(task, tokenizer), task.answers, strict=True):
        first = str(tokenizer.decode([answer])).strip()
        shares.append(np.mean([item.startswith(first) for item in re.findall(r"\d{4}", prompt)[:5]]))
    assert task.chance == pytest.approx(np.mean(shares), rel=1e-12)
    assert task.chance > 0.2  # some integers begin alike


def test_what_is_drawn_depends_on_the_seed_and_not_on_how_many() -> None:
    tokenizer = byte_level()
    for name in ("integers", "tokens"):
        few, many = (draw_task(name, tokenizer, Drawing(n, seed=3), **ROOM) for n in (5, 9))
        assert all(np.array_equal(few.ids[i], many.ids[i]) for i in range(5))
        assert np.array_equal(few.cuts, many.cuts[:5])
        assert few.fingerprint == draw_task(name, tokenizer, Drawing(5, seed=3), **ROOM).fingerprint
        assert few.fingerprint != many.fingerprint
        assert few.fingerprint != draw_task(name, tokenizer, Drawing(5, seed=4), **ROOM).fingerprint


def test_usable_ids() -> None:
    tokenizer = byte_level()
    usable = usable_ids(tokenizer, 10_000).tolist()
    assert tokenizer.bos_token_id not in usable
    pieces = [i for i in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([i])]
    assert pieces
    assert not set(pieces) & set(usable)
    assert set(usable) | set(pieces) | {0} == set(range(len(tokenizer)))
    assert max(usable_ids(tokenizer, 100)) < 100
    # an id that no text gives: a merge that the vocabulary holds and the merges do not make
    vocabulary = {"<s>": 0, **{letter: 1 + place for place, letter in enumerate("abcdefghij")}, "never": 11}
    dead = made(Tokenizer(models.BPE(vocab=vocabulary, merges=[])), bos_token="<s>")
    assert usable_ids(dead, 12).tolist() == list(range(1, 11))
    added = words()
    added.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    assert added.convert_tokens_to_ids("<extra>") not in usable_ids(added, 1000)


def test_probes() -> None:
    probes = draw_probes(byte_level(), Drawing(30), **ROOM)
    assert probes.repeated.shape == probes.distinct.shape == (30, 21)
    assert (probes.repeated[:, 1:11] == probes.repeated[:, 11:]).all()
    assert all(len(set(row.tolist())) == 11 for row in probes.repeated)
    assert all(len(set(row.tolist())) == 21 for row in probes.distinct)


@pytest.mark.parametrize(("bos", "front"), [("auto", [0]), ("always", [0]), ("never", [])])
def test_bos(bos: str, front: list[int]) -> None:
    task = draw_task("tokens", byte_level(), Drawing(4, bos=bos), **ROOM)  # type: ignore[arg-type]
    assert task.n_special == len(front)
    assert all(ids[: len(front)].tolist() == front for ids in task.ids)
    assert (task.ends == 30 + len(front)).all()


def test_batches_hold_each_example_once_and_one_length() -> None:
    task = draw_task("integers", byte_level(), Drawing(50), **ROOM)
    assert len(set(task.ends.tolist())) > 2
    for batches in (task.batches(100), task.batches(10_000, 3)):
        assert sorted(example for batch in batches for example in batch) == list(range(50))
        assert all(len(set(task.ends[batch].tolist())) == 1 for batch in batches)
    assert max(map(len, task.batches(10_000, 3))) == 3
    assert all(len(batch) * task.ends[batch[0]] <= 100 for batch in task.batches(100))


@pytest.mark.parametrize(("drawing", "says"), [
    (Drawing(1), "--examples 1"),
    (Drawing(5, seed=-1), "--seed -1"),
])  # fmt: skip
def test_drawings_that_mean_nothing(drawing: Drawing, says: str) -> None:
    with pytest.raises(InputError, match=says):
        draw_task("tokens", byte_level(), drawing, **ROOM)


def test_refusals() -> None:
    drawing, other = Drawing(3), Drawing(3)
    object.__setattr__(other, "cut", "middle")  # under pytest types are checked before it can be given
    with pytest.raises(InputError, match="--cut 'middle' is not known"):
        draw_task("tokens", byte_level(), other, **ROOM)
    with pytest.raises(InputError, match="there is no task 'verbs'"):
        draw_task("verbs", byte_level(), drawing, **ROOM)
    with pytest.raises(InputError, match="has 8 ids that can be drawn, and 10 distinct ones are needed"):
        draw_task("tokens", words(8), drawing, **ROOM)
    draw_task("tokens", words(10), drawing, **ROOM)
    with pytest.raises(InputError, match="has 19 ids that can be drawn, and 20"):
        draw_probes(words(19), drawing, **ROOM)
    with pytest.raises(InputError, match=r"needs sequences of 31 tokens .* at most 30"):
        draw_task("tokens", byte_level(), drawing, n_ids=10_000, n_positions=30)
    with pytest.raises(InputError, match=r"needs sequences of [67]\d tokens"):
        draw_task("tokens", byte_level(), Drawing(3, n_steps=40), n_ids=10_000, n_positions=50)
    with pytest.raises(InputError, match="reads at most 20"):
        draw_probes(byte_level(), drawing, n_ids=10_000, n_positions=20)
    with pytest.raises(InputError, match="the model knows only 100 ids"):
        draw_task("integers", byte_level(), drawing, n_ids=100, n_positions=4096)
    with pytest.raises(InputError, match="has no tokens for integers such as"):
        draw_task("integers", words(), drawing, **ROOM)
    slow = byte_level()
    slow.__class__ = Slow
    with pytest.raises(InputError, match="does not say which characters a token is of"):
        draw_task("integers", slow, drawing, **ROOM)
