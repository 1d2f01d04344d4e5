"""Weights that are set: which of a mask's, where in the model, to what; as data, and in the grammar of edits."""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lesion.checkpoints.edited import Value, refuse_contradictions
from lesion.checkpoints.scopes import INCLUDABLE, Scope, parse_scope
from lesion.checkpoints.selection import KINDS, Kind
from lesion.errors import InterventionError

WRITTEN: dict[str, Kind] = {kind.replace("_", "-"): kind for kind in KINDS}
"""Kinds as the grammar of edits writes them."""
GRAMMAR = (
    "zero-modes:MASKS[@SCOPE], complement:…, keep-only:…, random:MASKS[@SCOPE]#SEED, random-matched:MASKS[@SCOPE]#SEED"
)
_OPTION = re.compile(r"(?P<front>.+);(?P<option>mean|disjoint|include=[a-z,]+)")
_SEED = re.compile(r"(?P<front>.+)#(?P<seed>\d{1,18})")
OUTSIDE = -1
"""Stands for what is no part of a block: embeddings, the last norm, the unembedding."""


@dataclass(frozen=True)
class WeightEdit:
    """Weights of a model that are set to 0, or to the mean of their matrix.

    Attributes:
        masks: a run folder of `zero-modes diff` or a file of masks.
        kind: which weights, as in `lesion.checkpoints.selection.select`.
        scope: where, in the grammar of scopes.
        value: `zero` or `mean`.
        seed: of the random kinds, and only of them.
        disjoint: random weights that are no zero modes.
        include: `embed`, `unembed`, `norm`, `bias`: what a scope takes beside projection matrices.
    """

    masks: str
    kind: Kind
    scope: str = "all"
    value: Value = "zero"
    seed: int | None = None
    disjoint: bool = False
    include: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises InputError or InterventionError where something contradicts itself."""
        refuse_contradictions(self.kind, self.value, self.seed, disjoint=self.disjoint)
        if unknown := [name for name in self.include if name not in INCLUDABLE]:
            raise InterventionError(f"{unknown[0]!r} cannot be included; what can be is {', '.join(INCLUDABLE)}")
        _ = self.parsed_scope

    @cached_property
    def parsed_scope(self) -> Scope:
        return parse_scope(self.scope)

    def touches(self, layer: int) -> bool:
        """Whether a block is in the scope; `OUTSIDE` asks for what is in none."""
        span = self.parsed_scope.layers
        if layer == OUTSIDE:
            return bool(self.include) and span is None
        return span is None or span[0] <= layer <= span[1]

    @property
    def name(self) -> str:
        """As the grammar of edits writes it."""
        kind = self.kind.replace("_", "-")
        seed = "" if self.seed is None else f"#{self.seed}"
        included = f"include={','.join(self.include)}" if self.include else ""
        options = (
            name
            for name in ("mean" if self.value == "mean" else "", "disjoint" if self.disjoint else "", included)
            if name
        )
        return ";".join([f"{kind}:{self.masks}@{self.scope}{seed}", *options])


def parse_weights(text: str) -> WeightEdit:
    """Reads `KIND:MASKS[@SCOPE][#SEED]`, with `;mean`, `;disjoint` or `;include=norm,bias` behind it.

    What follows the last @ is the scope, unless a file of that whole name exists.

    Raises:
        InterventionError: no masks are named, or the scope is none.
        InputError: a seed that is missing or too much.
    """
    written, _, rest = text.partition(":")
    options: set[str] = set()
    while found := _OPTION.fullmatch(rest):
        rest = found["front"]
        options.add(found["option"])
    seed = None
    if (found := _SEED.fullmatch(rest)) and not Path(rest).exists():
        rest, seed = found["front"], int(found["seed"])
    scope = "all"
    if "@" in rest and not Path(rest).exists():
        rest, _, scope = rest.rpartition("@")
    if (found := re.search(r"[;#][^/;#]*$", rest)) and not Path(rest).exists():
        raise InterventionError(
            f"{text!r}: {found[0]!r} is no seed (#0), nor one of the options ;mean, ;disjoint and ;include=norm,bias"
        )
    if not rest:
        raise InterventionError(f"{text!r} names no masks; write for example {written}:runs/diff@layer:3")
    included = [option.removeprefix("include=") for option in options if option.startswith("include=")]
    edit = WeightEdit(
        os.path.abspath(Path(rest).expanduser()),  # noqa: PTH100  (a link stays one)
        WRITTEN[written],
        scope,
        "mean" if "mean" in options else "zero",
        seed,
        "disjoint" in options,
        _sorted(",".join(included).split(",")) if included else (),
    )
    edit.check()
    return edit


def _sorted(names: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
