"""What the page of `lesion zero-modes ablate` reads from its tables: losses by scope, and differences to controls."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import pandas as pd

from lesion.report.drawing.style import clean
from lesion.report.numbers import Measure, decimals, number
from lesion.report.palette import WEIGHTS
from lesion.report.sections.zero_modes.rows import called, numbers, optional_table
from lesion.results import RunView


class Look(NamedTuple):
    """How a kind is named in figures and in sentences, its colour and its marker."""

    label: str
    words: str
    role: str
    marker: str


KINDS = {
    "zero_modes": Look("zero modes", "zero modes", WEIGHTS["zero_modes"], "o"),
    "random": Look("random weights", "random weights", WEIGHTS["random"], "s"),
    "random_matched": Look("matched in size", "weights of the same size", WEIGHTS["matched"], "^"),
    "complement": Look("all but zero modes", "all weights that are no zero modes", "drop_mlp", "D"),
    "keep_only": Look("zero modes kept alone", "all weights that are no zero modes", "domain_3", "v"),
}
CONTROLS = ("random", "random_matched")
CHANGE_SEM, COUNTED = "loss_change_nats_sem", ("n_weights_set", "n_zero_modes_set", "n_weights_in_scope")
NUMBER = "(0|[1-9][0-9]*)"
LAYER, HEAD = re.compile(f"layer:{NUMBER}"), re.compile(f"head:{NUMBER}:{NUMBER}")
COMPONENT = re.compile(r"component:(\w+)")
MOST = 6
"""Decimal places of a number."""
LONGEST = 60
"""Characters of a scope in a sentence."""


class Loss(NamedTuple):
    """The loss without a kind of weights in a scope, in nats: the mean over seeds, NaN where any of them is.

    Attributes:
        loss, change: means over seeds, the second against the model as it is.
        sem, change_sem: over documents; NaN with several seeds.
        sd, least, greatest: of the losses of several seeds; NaN with one.
        n_seeds: how many.
        n_set, n_zero_modes_set: weights that were set, and how many of them are zero modes; means over seeds.
        n_in_scope: weights in the scope.
    """

    loss: float = math.nan
    change: float = math.nan
    sem: float = math.nan
    change_sem: float = math.nan
    sd: float = math.nan
    least: float = math.nan
    greatest: float = math.nan
    n_seeds: int = 0
    n_set: float = math.nan
    n_zero_modes_set: float = math.nan
    n_in_scope: float = math.nan


class Difference(NamedTuple):
    """Zero modes minus a control, in nats, with its interval; the ends are NaN where there is none."""

    value: float
    low: float
    high: float
    n_seeds: int

    @property
    def verdict(self) -> str:
        """`more` or `less` where the interval excludes 0, `open` where it holds 0, empty where there is none."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return ""
        return "more" if self.low > 0 else "less" if self.high < 0 else "open"

    def digits(self) -> int:
        """Decimal places of all three: as the interval allows, and so many that no end reads 0 but is not."""
        places = decimals(self.value, (self.high - self.low) / 4)
        ends = [abs(end) for end in (self.low, self.high) if end and math.isfinite(end)]
        return next((more for more in range(places, MOST) if all(end >= 0.5 * 10.0**-more for end in ends)), MOST)

    def interval(self) -> str:
        """`−0.27 to 1.25`; empty where there is none."""
        if not self.verdict:
            return ""
        return f"{number(self.low, self.digits())} to {number(self.high, self.digits())}"


@dataclass(frozen=True)
class Ablation:
    """The two tables of a run, over all domains or of one.

    Attributes:
        lanes: a row a lane; the first one is the model as it is.
        contrasts: zero modes minus a control; no rows where none were compared.
    """

    lanes: pd.DataFrame
    contrasts: pd.DataFrame

    @cached_property
    def clean_loss(self) -> Measure:
        """The loss of the model as it is, in nats."""
        row = self.lanes[self.lanes["kind"] == "none"].iloc[0]
        return Measure(float(row["loss_nats"]), float(row["loss_sem"]))

    @property
    def value(self) -> str:
        """What weights were set to: `zero` or `mean`; `keep_only` always means 0."""
        given = self.lanes.loc[~self.lanes["kind"].isin(["none", "keep_only"]), "value"]
        return str(given.iloc[0]) if len(given) else "zero"

    @property
    def has_none(self) -> list[str]:
        """Scopes without any zero mode: taking nothing away is beside the question."""
        return [scope for scope, loss in self.losses("zero_modes").items() if loss.n_set == 0]

    @property
    def scopes(self) -> list[str]:
        """Scopes in the order of the table."""
        return list(dict.fromkeys(self.lanes.loc[self.lanes["kind"] != "none", "scope"]))

    @property
    def kinds(self) -> list[str]:
        """Kinds that were taken away, in the order of figures."""
        return [kind for kind in KINDS if kind in set(self.lanes["kind"])]

    @cached_property
    def _by_kind(self) -> dict[str, dict[str, Loss]]:
        found: dict[str, dict[str, Loss]] = {kind: {} for kind in KINDS}
        for (kind, scope), rows in self.lanes.groupby(["kind", "scope"], sort=False):
            found.setdefault(str(kind), {})[str(scope)] = _over_seeds(rows)
        return found

    def losses(self, kind: str) -> dict[str, Loss]:
        """The losses of a kind by scope; empty where it was not taken away."""
        return self._by_kind[kind]

    def loss(self, kind: str, scope: str) -> Loss:
        """The loss of a kind in a scope; NaN, of no seeds, where it was not taken away."""
        return self._by_kind[kind].get(scope, Loss())

    def is_short(self, control: str, scope: str) -> bool:
        """Whether fewer of a control's weights could be set than there are zero modes, so that beside it they gain."""
        return self.loss(control, scope).n_set < self.loss("zero_modes", scope).n_set

    def has_seeds(self, kind: str) -> bool:
        """Whether a kind was drawn more than once."""
        return any(loss.n_seeds > 1 for loss in self.losses(kind).values())

    @cached_property
    def _differences(self) -> dict[str, dict[str, Difference]]:
        found: dict[str, dict[str, Difference]] = {}
        told = self.contrasts[~self.contrasts["scope"].isin(self.has_none)]
        for row in told.sort_values("n_seeds", kind="stable").to_dict("records"):
            value, low, high = (float(row[name]) for name in ("difference_nats", "low_nats", "high_nats"))
            found.setdefault(row["control"], {})[row["scope"]] = Difference(value, low, high, int(row["n_seeds"]))
        return found

    @property
    def controls(self) -> list[str]:
        """Controls that zero modes were compared with."""
        return [kind for kind in CONTROLS if kind in self._differences]

    def difference(self, control: str, scope: str) -> Difference:
        """Zero modes minus the mean of all seeds of a control; NaN where they were not compared, or there are none."""
        none = Difference(math.nan, math.nan, math.nan, 0)
        return self._differences.get(control, {}).get(scope, none)

    def of_domain(self, domain: str) -> "Ablation":
        """Its rows of one domain, where both tables are those by domain."""
        return Ablation(*(table[table["domain"] == domain] for table in (self.lanes, self.contrasts)))


def _over_seeds(rows: pd.DataFrame) -> Loss:
    """Of the lanes of one kind in one scope."""
    losses, changes = numbers(rows, "loss_nats"), numbers(rows, "loss_change_nats")
    one = len(rows) == 1
    sem, change_sem = (float(numbers(rows, name)[0]) if one else math.nan for name in ("loss_sem", CHANGE_SEM))
    spread = (float(losses.std(ddof=1)), float(losses.min()), float(losses.max())) if not one else (math.nan,) * 3
    n_set, n_own, n_all = (float(numbers(rows, name).mean()) for name in COUNTED)
    mean, change = float(losses.mean()), float(changes.mean())
    return Loss(mean, change, sem, change_sem, *spread, len(rows), n_set, n_own, n_all)


def read(run: RunView, suffix: str = "") -> Ablation | None:
    """The tables of a run whose names end with `suffix`; None where there are no lanes."""
    lanes = optional_table(run, f"zero_mode_ablation{suffix}")
    contrasts = optional_table(run, f"zero_mode_contrasts{suffix}")
    if lanes is None:
        return None
    columns = ["domain", "scope", "control", "n_seeds", "difference_nats", "low_nats", "high_nats"]
    return Ablation(lanes, pd.DataFrame(columns=columns) if contrasts is None else contrasts)


SORTS = {"layers": LAYER, "components": COMPONENT, "heads": HEAD}


def sorted_out(scopes: Sequence[str]) -> dict[str, list[str]]:
    """Scopes by sort: `layers`, `components` and `heads` of which there are two or more, and `scopes`, all others."""
    found = {sort: [scope for scope in scopes if pattern.fullmatch(scope)] for sort, pattern in SORTS.items()}
    found = {sort: members for sort, members in found.items() if len(members) > 1}
    taken = {scope for members in found.values() for scope in members}
    others = [scope for scope in scopes if scope not in taken]
    return found | ({"scopes": others} if others else {})


def layer_of(scope: str) -> int:
    """The layer of a scope `layer:3`."""
    match = LAYER.fullmatch(scope)
    assert match is not None
    return int(match[1])


def head_of(scope: str) -> tuple[int, int]:
    """Layer and head of a scope `head:1:2`."""
    match = HEAD.fullmatch(scope)
    assert match is not None
    return int(match[1]), int(match[2])


def short(scope: str) -> str:
    """A scope as a row of a figure: `W_Q` for a component, the others as they are."""
    match = COMPONENT.fullmatch(scope)
    return called(match[1]) if match else scope


def in_words(scope: str) -> str:
    """A scope in a sentence."""
    if LAYER.fullmatch(scope):
        return f"layer {layer_of(scope)}"
    if HEAD.fullmatch(scope):
        return "head {}:{}".format(*head_of(scope))
    return "all blocks" if scope == "all" else clean(short(scope), LONGEST)
