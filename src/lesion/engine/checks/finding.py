"""What a check is, and what it says."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate.utils.memory import should_reduce_batch_size

from lesion.anatomy import Anatomy
from lesion.engine.samples import Samples
from lesion.errors import LesionError, MemoryShortError

Verdict = Literal["ok", "not applicable", "WRONG"]
Bound = Literal["=", "<=", ">"]

FAILURES = (LesionError, RuntimeError, TypeError, LookupError, AttributeError, ValueError)
"""What a model raises, or torch for it, when it is not built as its anatomy says."""


@dataclass(frozen=True)
class Finding:
    """What one check says.

    Attributes:
        check: its name.
        detail: what was looked at, why the check does not apply, or what went wrong.
        found: the number that was measured, or None.
        bound, limit: what the number has to be: equal to the limit, at most the limit, or more than it.
    """

    check: str
    verdict: Verdict
    detail: str
    found: float | None = None
    bound: Bound | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Measured:
    """A number, what it has to be, and what was looked at."""

    found: float
    bound: Bound
    limit: float
    detail: str

    @property
    def holds(self) -> bool:
        """Whether the number is what it has to be; NaN never is."""
        if self.bound == "=":
            return self.found == self.limit
        return self.found <= self.limit if self.bound == "<=" else self.found > self.limit


class NotApplicable(Exception):
    """Ends a check that says nothing about this model; the message is the reason."""


@dataclass(frozen=True)
class Check:
    """A check: called with a model and samples, it measures and judges.

    Attributes:
        name: as the table writes it.
        measure: what is measured; it raises `NotApplicable`, or one of `FAILURES` where the model cannot do it.
    """

    name: str
    measure: Callable[[Anatomy, Samples], Measured]

    def __call__(self, anatomy: Anatomy, samples: Samples) -> Finding:
        """The finding.

        Raises:
            MemoryShortError: memory ran out, which says nothing about the model.
        """
        try:
            with torch.inference_mode():
                measured = self.measure(anatomy, samples)
        except NotApplicable as reason:
            return Finding(self.name, "not applicable", str(reason))
        except MemoryError as error:
            raise _short_of_memory() from error
        except FAILURES as error:
            if isinstance(error, RuntimeError) and should_reduce_batch_size(error):
                raise _short_of_memory() from error
            return Finding(self.name, "WRONG", _first_line(error))
        verdict: Verdict = "ok" if measured.holds else "WRONG"
        return Finding(self.name, verdict, measured.detail, measured.found, measured.bound, measured.limit)


def check(name: str) -> Callable[[Callable[[Anatomy, Samples], Measured]], Check]:
    """Makes a check of a function that measures."""
    return functools.partial(Check, name)


def _short_of_memory() -> MemoryShortError:
    return MemoryShortError("memory ran out during the checks; give a shorter --context")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if isinstance(error, LesionError) and lines else f"{type(error).__name__}: {' '.join(lines[:2])}"
