"""Strings that repeat themselves, cut before something that what came before determines (`zero-modes`, App. B)."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from lesion.data.encoding import Bos, Tokenizer, build_encoder, tokenize, tokenizer_fingerprint, tokenizer_name
from lesion.errors import InputError

Cut = Literal["item", "end"]
TASKS = ("integers", "tokens")
N_INTEGERS, N_TOKENS = 5, 10
"""Items of a string, said `TIMES` times (paper `zero-modes`, App. B)."""
TIMES = {"integers": 2, "tokens": 3}
LOW, HIGH = 1000, 10_000
"""Four-digit integers, the upper bound not included."""
PIECE_OF_A_CHARACTER = "\ufffd"
"""What a tokenizer decodes such a piece to."""
Drawn = np.random.Generator


@dataclass(frozen=True, eq=False)
class CopyTask:
    """Examples of one task.

    Attributes:
        name: `integers` or `tokens`.
        ids: of each example the string, BOS in front, and how it would go on.
        cuts: tokens of each prompt; the token after it is the answer.
        ends: tokens of each whole string.
        n_special: tokens in front of every string.
        chance: share of right answers where one of the items, drawn at random, is said.
        fingerprint: SHA-256 of all of it.
        description: what was drawn and how; JSON can hold it.
    """

    name: str
    ids: tuple[Int[np.ndarray, "_"], ...]
    cuts: Int[np.ndarray, " example"]
    ends: Int[np.ndarray, " example"]
    n_special: int
    chance: float
    fingerprint: str
    description: dict[str, Any]

    @property
    def n_examples(self) -> int:
        return len(self.ids)

    @property
    def answers(self) -> Int[np.ndarray, " example"]:
        """The token that copying gives behind each prompt."""
        return self.expected(1)[:, 0]

    @property
    def aligned(self) -> bool:
        """Whether all strings have one length, so that means over examples of attention maps mean something."""
        return len(set(self.ends.tolist())) == 1

    def expected(self, n_steps: int) -> Int[np.ndarray, "example step"]:
        """What copying says at each of the next steps, also beyond the end of the string."""
        parts = [ids[cut : cut + n_steps] for ids, cut in zip(self.ids, self.cuts, strict=True)]
        assert all(len(part) == n_steps for part in parts), "build with more continuation"
        return np.stack(parts)

    def whole(self, example: int) -> Int[np.ndarray, " token"]:
        """The string; what follows the prompt in it does not reach back to the prompt's last position."""
        return self.ids[example][: self.ends[example]]

    def batches(self, max_tokens: int, max_examples: int | None = None) -> list[list[int]]:
        """Examples in batches of one length each, so that nothing is ever padded."""
        groups: dict[int, list[int]] = {}
        for example, end in enumerate(self.ends.tolist()):
            groups.setdefault(end, []).append(example)
        batches = []
        for length, group in sorted(groups.items()):
            size = max(1, max_tokens // length)
            size = size if max_examples is None else min(size, max_examples)
            batches += [group[start : start + size] for start in range(0, len(group), size)]
        return batches


@dataclass(frozen=True, eq=False)
class Probes:
    """Sequences for the heads' scores: some repeat a stretch of distinct tokens once, the others repeat nothing.

    Attributes:
        repeated, distinct: of one length, the same tokens in front.
        n_special: tokens in front.
        n_items: tokens of the stretch that is repeated.
    """

    repeated: Int[np.ndarray, "example token"]
    distinct: Int[np.ndarray, "example token"]
    n_special: int
    n_items: int


@dataclass(frozen=True)
class Drawing:
    """How examples are drawn.

    Attributes:
        n_examples: of each task.
        seed: of all draws; example i is the same however many there are.
        cut: `item`: before an item of the last repetition that is determined by what came before; `end`: the whole
            string, whose answer is what it begins with.
        through_text: random tokens are decoded to text and encoded again, as the paper did.
        bos: as in `lesion.data.load_text`.
        n_steps: how far past the cut the string must go on: tokens that will be generated, at least 1.
    """

    n_examples: int = 500
    seed: int = 0
    cut: Cut = "item"
    through_text: bool = False
    bos: Bos = "auto"
    n_steps: int = 1

    def check(self) -> None:
        """Raises InputError where a number or a word is none of those that are possible."""
        if self.n_examples < 2:
            raise InputError(f"--examples {self.n_examples}: give at least 2, so that there is an error of the mean")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed} is negative; give 0 or more")
        if self.cut not in ("item", "end"):
            raise InputError(f"--cut {self.cut!r} is not known; use item or end")


def draw_task(
    name: str,
    tokenizer: Tokenizer,
    drawing: Drawing,
    *,
    n_ids: int,
    n_positions: int,
    usable: Int[np.ndarray, " id"] | None = None,
) -> CopyTask:
    """Draws the examples of a task.

    Integers stand apart by spaces, and are cut before the first token that holds a digit of an item: a tokenizer may
    give the space a token of its own, which everybody can guess. Items of a string are distinct. The first item of
    the second repetition is determined by nothing, so that it is not cut there; in a third one it is.

    Args:
        name: `integers` or `tokens`.
        n_ids: ids that the model knows.
        n_positions: the longest sequence that it can read.
        usable: what `usable_ids` gives, where it is known already.

    Raises:
        InputError: no such task; a tokenizer with too few ids, or one that does not say which characters a token is
            of; strings that are longer than the model reads.
    """
    drawing.check()
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}; tasks are {', '.join(TASKS)}")
    front = special_front(tokenizer, drawing.bos, n_positions)
    if name == "integers":
        make: Callable[[Drawn], _Example] = _integers_maker(tokenizer, drawing)
    else:
        make = _tokens_maker(tokenizer, usable_ids(tokenizer, n_ids) if usable is None else usable, drawing)
    made = [make(_generator(drawing.seed, TASKS.index(name), index)) for index in range(drawing.n_examples)]
    ids = tuple(np.array([*front, *example.ids], dtype=np.int64) for example in made)
    cuts = np.array([len(front) + example.cut for example in made])
    ends = np.array([len(front) + example.end for example in made])
    _refuse_unreadable(name, ids, np.maximum(ends, cuts + drawing.n_steps - 1), n_ids, n_positions)
    described = {
        "name": name,
        "n_examples": drawing.n_examples,
        "n_tokens": int(ends.sum()),
        "shortest": int(ends.min()),
        "longest": int(ends.max()),
        "bos": bool(front),
        "tokenizer": tokenizer_name(tokenizer),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
    }
    chance = float(np.mean([example.chance for example in made]))
    return CopyTask(name, ids, cuts, ends, len(front), chance, _fingerprint(ids, cuts, ends), described)


def draw_probes(
    tokenizer: Tokenizer,
    drawing: Drawing,
    *,
    n_ids: int,
    n_positions: int,
    usable: Int[np.ndarray, " id"] | None = None,
) -> Probes:
    """Sequences for the scores of heads: a stretch of `N_TOKENS` distinct ids twice, and twice as many distinct ids.

    Raises:
        InputError: too few ids, or a model that reads no more than a few tokens.
    """
    drawing.check()
    front = special_front(tokenizer, drawing.bos, n_positions)
    usable = usable_ids(tokenizer, n_ids) if usable is None else usable
    _refuse_few(usable, 2 * N_TOKENS, tokenizer)
    repeated, distinct = [], []
    for index in range(drawing.n_examples):
        generator = _generator(drawing.seed, len(TASKS), index)
        repeated.append([*front, *np.tile(generator.choice(usable, N_TOKENS, replace=False), 2)])
        distinct.append([*front, *generator.choice(usable, 2 * N_TOKENS, replace=False)])
    longest = len(front) + 2 * N_TOKENS
    if longest > n_positions:
        raise InputError(f"heads are scored on sequences of {longest} tokens; this model reads at most {n_positions}")
    return Probes(np.array(repeated), np.array(distinct), len(front), N_TOKENS)


def special_front(tokenizer: Tokenizer, bos: Bos, n_positions: int) -> tuple[int, ...]:
    """The tokens in front of every string.

    Raises:
        InputError: a BOS is asked for where there is none.
    """
    context = max(2, n_positions)
    return build_encoder(tokenizer, objective="causal", context=context, bos=bos, pack=False).prefix


def usable_ids(tokenizer: Tokenizer, n_ids: int) -> Int[np.ndarray, " id"]:
    """Ids that can be drawn: known to tokenizer and model, not special, and such that some text is encoded with them.

    An id is kept where its own text, alone or behind a letter, is encoded with it. Pieces of characters are not: in a
    text they only stand beside the others of their character.
    """
    added = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = added | {int(i) for i in tokenizer.all_special_ids}
    known = sorted(i for i in set(tokenizer.get_vocab().values()) - special if 0 <= i < n_ids)
    texts = [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in known]
    kept = _met(tokenizer, known, texts)
    whole = [PIECE_OF_A_CHARACTER not in text for text in texts]
    return np.array([i for i, met, own in zip(known, kept, whole, strict=True) if met and own], dtype=np.int64)


def _met(tokenizer: Tokenizer, ids: Sequence[int], texts: Sequence[str]) -> Bool[np.ndarray, " id"]:
    found = np.zeros(len(ids), dtype=bool)
    for before in ("", "x"):
        left = np.flatnonzero(~found).tolist()
        encoded = tokenize(tokenizer, [before + texts[at] for at in left]) if left else []
        found[left] = [ids[at] in own for at, own in zip(left, encoded, strict=True)]
    return found


@dataclass(frozen=True)
class _Example:
    """One string without what stands in front of it.

    Attributes:
        ids: the string, and how it goes on.
        cut: tokens of the prompt.
        end: tokens of the string.
        chance: share of the items that begin with the answer.
    """

    ids: Sequence[int]
    cut: int
    end: int
    chance: float


def _generator(seed: int, stream: int, index: int) -> Drawn:
    """Each example's own, so that it does not depend on how many are drawn."""
    return np.random.default_rng(np.random.SeedSequence([seed, stream, index]))


def _integers_maker(tokenizer: Tokenizer, drawing: Drawing) -> Callable[[Drawn], _Example]:
    _refuse_without_offsets(tokenizer, "the integers are cut inside their text")
    n_string, width = TIMES["integers"] * N_INTEGERS, len(str(LOW)) + 1
    more = -(-drawing.n_steps // N_INTEGERS) + 1  # a token holds at least a character, and an integer may be one token
    n_items = N_INTEGERS * (TIMES["integers"] + more)

    def make(generator: Drawn) -> _Example:
        numbers = LOW + generator.choice(HIGH - LOW, N_INTEGERS, replace=False)
        said = np.tile(numbers, n_items // N_INTEGERS)
        chosen = n_string - N_INTEGERS + int(generator.integers(1, N_INTEGERS))
        ids, starts, stops = _with_offsets(tokenizer, " ".join(map(str, said)))
        if re.sub(r"\D", "", tokenizer.decode(ids)) != "".join(map(str, said)):
            raise InputError(
                f"the tokenizer {tokenizer_name(tokenizer)} has no tokens for integers such as {numbers[0]}; take "
                "--tasks tokens"
            )
        first_tokens = np.searchsorted(stops, np.arange(n_items) * width, side="right")
        cut = int(first_tokens[n_string if drawing.cut == "end" else chosen])
        end = int(np.searchsorted(starts, n_string * width - 1))
        period = range(N_INTEGERS, 2 * N_INTEGERS)  # of the second repetition: the very first has no space in front
        chance = np.mean([ids[first_tokens[item]] == ids[cut] for item in period])
        return _Example(ids, cut, max(end, cut), float(chance))

    return make


def _tokens_maker(
    tokenizer: Tokenizer, usable: Int[np.ndarray, " id"], drawing: Drawing
) -> Callable[[Drawn], _Example]:
    _refuse_few(usable, N_TOKENS, tokenizer)
    if drawing.through_text:
        _refuse_without_offsets(tokenizer, "--through-text cuts text")
    times = TIMES["tokens"]

    def make(generator: Drawn) -> _Example:
        items = generator.choice(usable, N_TOKENS, replace=False)
        if drawing.through_text:
            return through_text(items, generator)
        chosen = (times - 1) * N_TOKENS + int(generator.integers(N_TOKENS))
        cut = times * N_TOKENS if drawing.cut == "end" else chosen
        said = np.tile(items, times + -(-drawing.n_steps // N_TOKENS))
        return _Example([int(i) for i in said], cut, times * N_TOKENS, 1 / N_TOKENS)

    def through_text(items: Int[np.ndarray, " item"], generator: Drawn) -> _Example:
        text = tokenizer.decode(items, clean_up_tokenization_spaces=False)
        ids, starts, _ = _with_offsets(tokenizer, text * times)
        last = range(int(np.searchsorted(starts, (times - 1) * len(text))), len(ids))
        if not last:
            raise InputError(f"{text!r} leaves no token to each repetition; leave --through-text out")
        cut = len(ids) if drawing.cut == "end" else int(generator.choice(last))
        on = [*ids, *tokenize(tokenizer, [text * drawing.n_steps])[0]]  # a token of the text a step, at least
        chance = np.mean([ids[place] == on[cut] for place in last])
        return _Example(on, cut, len(ids), float(chance))

    return make


def _with_offsets(tokenizer: Tokenizer, text: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Ids of a text, and the first character of each and the one after its last."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = np.array(encoded["offset_mapping"]).reshape(-1, 2)
    return list(encoded["input_ids"]), offsets[:, 0], offsets[:, 1]


def _refuse_without_offsets(tokenizer: Tokenizer, why: str) -> None:
    if not tokenizer.is_fast:
        raise InputError(
            f"{why}, and the tokenizer {tokenizer_name(tokenizer)} does not say which characters a token is of; "
            "take --tasks tokens without --through-text"
        )


def _refuse_few(usable: Int[np.ndarray, " id"], needed: int, tokenizer: Tokenizer) -> None:
    if usable.size < needed:
        raise InputError(
            f"the tokenizer {tokenizer_name(tokenizer)} has {usable.size} ids that can be drawn, and {needed} distinct "
            "ones are needed: it is too small for these tasks"
        )


def _refuse_unreadable(
    name: str, ids: Sequence[Int[np.ndarray, "_"]], read: Int[np.ndarray, " example"], n_ids: int, n_positions: int
) -> None:
    if (longest := int(read.max())) > n_positions:
        raise InputError(
            f"the task {name} needs sequences of {longest} tokens with this tokenizer, and the model reads at most "
            f"{n_positions}; leave the task out, or generate less"
        )
    largest = max(int(example.max()) for example in ids)
    if largest >= n_ids:
        raise InputError(f"the task {name} holds token id {largest}; the model knows only {n_ids} ids")


def _fingerprint(ids: Sequence[np.ndarray], *arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in (*ids, *arrays):
        digest.update(np.int64(array.size).tobytes() + np.ascontiguousarray(array, dtype=np.int64).tobytes())
    return digest.hexdigest()
