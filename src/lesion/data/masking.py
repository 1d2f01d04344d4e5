"""Which positions a masked model is asked about, and what it sees there."""

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from lesion.data.encoding import Tokenizer, tokenizer_name
from lesion.errors import InputError

MASKED_SHARE = 0.15  # of the positions that are not special tokens (BERT, section 3.1)
TO_MASK_TOKEN = 0.8
TO_RANDOM_TOKEN = 0.1  # the rest stays as it is


@dataclass(frozen=True, eq=False)
class Masking:
    """Fixed masking: what happens to a document depends on the seed and its index, not on its batch.

    Attributes:
        mask_id: id of the mask token.
        special: ids that are never asked about.
        ordinary: ids that a random replacement is drawn from.
        seed: of the random choices.
    """

    mask_id: int
    special: Int[np.ndarray, "special"]
    ordinary: Int[np.ndarray, "ordinary"]
    seed: int

    def fingerprint(self, content: str) -> str:
        """SHA-256 over the fingerprint of the ids and everything that decides what is hidden of them."""
        digest = hashlib.sha256(f"{content}\0{self.mask_id}\0{self.seed}\0".encode())
        digest.update(self.special.tobytes() + b"\0" + self.ordinary.tobytes())
        return digest.hexdigest()

    def corrupt(
        self, ids: Int[np.ndarray, "token"], document: int
    ) -> tuple[Int[np.ndarray, "token"], Int[np.ndarray, "chosen"]]:
        """The ids that the model sees, and the positions that it is asked about.

        15 % of the ordinary positions, at least one, are chosen; of these 80 % become the mask token, 10 % a random
        ordinary token, 10 % stay.
        """
        generator = np.random.default_rng(np.random.SeedSequence([self.seed, document]))
        candidates = np.flatnonzero(~np.isin(ids, self.special))
        chosen = generator.choice(candidates, size=max(1, int(MASKED_SHARE * candidates.size)), replace=False)
        fate = generator.random(chosen.size)
        random_ids = generator.choice(self.ordinary, size=chosen.size)
        corrupted = ids.copy()
        corrupted[chosen[fate < TO_MASK_TOKEN]] = self.mask_id
        swapped = (fate >= TO_MASK_TOKEN) & (fate < TO_MASK_TOKEN + TO_RANDOM_TOKEN)
        corrupted[chosen[swapped]] = random_ids[swapped]
        return corrupted, np.sort(chosen)


def build_masking(tokenizer: Tokenizer, *, seed: int, vocabulary_size: int | None) -> Masking:
    """The masking of a masked model's tokenizer.

    Raises:
        InputError: it has no mask token, or none that the model knows.
    """
    if tokenizer.mask_token_id is None:
        raise InputError(
            f"the tokenizer {tokenizer_name(tokenizer)} has no mask token; a masked model needs its own tokenizer"
        )
    ids = set(tokenizer.get_vocab().values())
    size = max(ids) + 1 if vocabulary_size is None else vocabulary_size
    if tokenizer.mask_token_id >= size:
        raise InputError(f"the mask token has id {tokenizer.mask_token_id}, but the model knows only {size} ids")
    special = set(tokenizer.all_special_ids)
    ordinary = sorted(i for i in ids - special if i < size)
    return Masking(
        mask_id=int(tokenizer.mask_token_id),
        special=np.array(sorted(special), dtype=np.int64),
        ordinary=np.array(ordinary, dtype=np.int64),
        seed=seed,
    )
