"""The conditions of one run, one after the other: what has been kept is read, the rest is measured."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lesion.data.copy_tasks import CopyTask
from lesion.engine import Progress, on_demand, telling_document, verify
from lesion.errors import NonFiniteError
from lesion.interventions import Intervention, structure_of
from lesion.results import ShardStore
from lesion.studies.copying.conditions import Condition
from lesion.studies.copying.generating import GenerationResult
from lesion.studies.copying.generating import generate as generate_from
from lesion.studies.copying.measuring import Asked, Head, TaskResult, measure, order_of
from lesion.studies.copying.scoring import HeadScores, best_heads, heads_table, score_heads
from lesion.studies.copying.setting import MOST_HEADS, Looking, Prepared
from lesion.studies.copying.tables import (
    Measured,
    attention_table,
    copying_table,
    depths_table,
    generation_table,
    with_attention,
)


class Count:
    """How many tokens have been read, of all that will be."""

    def __init__(self, prepared: Prepared, progress: Progress | None) -> None:
        self._progress = progress
        self.done = 0
        read = sum(int(task.ends.sum()) + prepared.n_steps * task.n_examples for task in prepared.tasks)
        self.condition = read
        self.probes = 0 if prepared.probes is None else prepared.probes.repeated.size + prepared.probes.distinct.size
        self.total = self.probes + len(prepared.conditions) * read

    def __call__(self, more: int) -> None:
        self.done += more
        if self._progress:
            self._progress(self.done, self.total)


@dataclass
class _Task:
    """What one condition gave on one task."""

    result: TaskResult
    generated: GenerationResult | None


class Run:
    """All conditions of one run, in order: what has been kept is read, the rest is measured."""

    def __init__(self, prepared: Prepared, store: ShardStore | None, batch_size: int | None, count: Count) -> None:
        self.prepared, self.count = prepared, count
        self._store, self._batch_size = store, batch_size
        self._anatomy = prepared.model.anatomy
        self._verified = False
        self.scores: HeadScores | None = None
        self.chosen: tuple[Head, ...] = ()
        self.results: list[dict[str, _Task]] = []

    def all(self) -> None:
        """Scores of heads first, because they decide whose attention is followed."""
        prepared = self.prepared
        if prepared.probes is not None:
            self.scores = self._scored()
            self.chosen = self._choose(prepared.looking)
        for number, condition in enumerate(prepared.conditions):
            self.results.append(self._condition(number, condition))

    def _scored(self) -> HeadScores:
        kept = self._store.load(0) if self._store else None
        if kept is not None:
            self.count(self.count.probes)
            return HeadScores(kept["scores"])
        assert self.prepared.probes is not None
        base = self.prepared.conditions[0].intervention
        with self._in_place(base):
            scores = score_heads(
                self._anatomy, self.prepared.probes, base, batch_size=self._batch_size, advance=self.count
            )
        self._keep(0, scores.arrays())
        return scores

    def _choose(self, looking: Looking) -> tuple[Head, ...]:
        assert self.scores is not None
        if looking.heads == "all":
            return self._every_head()
        if not isinstance(looking.heads, str):
            return tuple(looking.heads)
        return tuple(best_heads(heads_table(self.scores, looking.threshold), MOST_HEADS))

    def _every_head(self) -> tuple[Head, ...]:
        anatomy = self._anatomy
        return tuple((layer, head) for layer in range(anatomy.n_layers) for head in range(anatomy.n_heads))

    def asked(self, number: int) -> Asked:
        """What is looked at under a condition: every head without an ablation, and the chosen ones under it."""
        if self.scores is None:
            return Asked()
        heads = self.chosen if number else self._every_head()
        return Asked(heads, heads if not number or self.prepared.looking.maps else ())

    def _condition(self, number: int, condition: Condition) -> dict[str, _Task]:
        kept = self._store.load(number + 1) if self._store else None
        if kept is not None:
            self.count(self.count.condition)
            return {task.name: _loaded(task, kept) for task in self.prepared.tasks}
        with self._in_place(condition.intervention):
            found = {task.name: self._task(number, condition, task) for task in self.prepared.tasks}
        if not number:
            self._refuse_non_finite(found)
        self._keep(
            number + 1,
            {
                f"{task}.{name}": array
                for task, one in found.items()
                for part in (one.result, one.generated)
                if part is not None
                for name, array in part.arrays().items()
            },
        )
        return found

    def _task(self, number: int, condition: Condition, task: CopyTask) -> _Task:
        sizes: dict[str, Any] = {"batch_size": self._batch_size, "advance": self.count}
        result = measure(self._anatomy, task, condition.intervention, self.asked(number), **sizes)
        n_steps, heads = self.prepared.n_steps, Asked(self.chosen)
        if not n_steps:
            return _Task(result, None)
        return _Task(result, generate_from(self._anatomy, task, condition.intervention, heads, n_steps, **sizes))

    @contextlib.contextmanager
    def _in_place(self, intervention: Intervention | None) -> Iterator[None]:
        """The model under an intervention; before the first one, the model itself is looked at."""
        model = self.prepared.model
        with on_demand(self._anatomy, model.streamed):
            if not self._verified:
                lengths = [int(n) for n in self.prepared.data.lengths]
                batch = self.prepared.data.batch([telling_document(lengths)])
                verify(self._anatomy, batch.to(self._anatomy.device))
                self._verified = True
            with intervention.on(self._anatomy.model) if intervention else contextlib.nullcontext():
                yield

    def _refuse_non_finite(self, found: dict[str, _Task]) -> None:
        for task, one in found.items():
            if np.isnan(one.result.right[-1]).any():
                raise NonFiniteError(
                    f"the model gives logits that are not finite on the task {task} ({self._anatomy.dtype}) without "
                    "any ablation; try another --dtype"
                )

    def _keep(self, index: int, arrays: dict[str, np.ndarray]) -> None:
        if self._store:
            self._store.commit(index, arrays, {})

    def measured(self) -> list[Measured]:
        """Every condition on every task, a task at a time."""
        return [
            Measured(
                condition,
                task,
                self.results[number][task.name].result,
                self.asked(number).heads,
                self.results[number][task.name].generated,
                self.chosen,
            )
            for task in self.prepared.tasks
            for number, condition in enumerate(self.prepared.conditions)
        ]

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables of the run; those of attention and of generation only where these were asked for."""
        measured = self.measured()
        tables = {"copying": copying_table(measured), "copying_depths": depths_table(measured)}
        if self.scores is not None:
            heads = heads_table(self.scores, self.prepared.looking.threshold)
            clean = {one.task.name: one for one in reversed(measured) if one.condition is self.prepared.conditions[0]}
            tables["heads"] = with_attention(heads, dict(reversed(clean.items())))
            tables["copying_attention"] = attention_table(measured, self.chosen)
        if self.prepared.n_steps:
            tables["copying_generation"] = generation_table(measured)
        return tables

    def maps(self) -> dict[str, dict[str, np.ndarray]]:
        """Mean attention maps of tasks whose strings have one length: of all heads, and of chosen ones by condition."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for one in self.measured():
            number = list(self.prepared.conditions).index(one.condition)
            if not one.task.aligned or not self.asked(number).mapped:
                continue
            maps = one.result.maps.astype(np.float32)
            own = found.setdefault(one.task.name, {})
            if not number:
                own["none"] = maps.reshape(self._anatomy.n_layers, self._anatomy.n_heads, *maps.shape[1:])
                continue
            for (layer, head), found_map in zip(self.asked(number).mapped, maps, strict=True):
                own[f"{one.condition.name}/{layer}:{head}"] = found_map
        return found

    def warnings(self) -> list[str]:
        """What a reader of the tables must know, a line each."""
        lines = [*self.prepared.notes, *_of_scopes(self.prepared)]
        for task in self.prepared.tasks:
            if not task.aligned and self.scores is not None:
                lines.append(
                    f"{task.name}: strings are {task.ends.min()} to {task.ends.max()} tokens long, so that there is no "
                    "mean attention map"
                )
        for condition, found in zip(self.prepared.conditions, self.results, strict=True):
            lines += _of_condition(self._anatomy.n_layers, condition, order_of(self._anatomy, condition.intervention))
            lines += [line for name, one in found.items() for line in _of_numbers(name, condition, one.result)]
        return list(dict.fromkeys(lines + self._of_answers()))

    def _of_answers(self) -> list[str]:
        if self.scores is None:
            return []
        lacking = {task.name: int((~_has_answer(task)).sum()) for task in self.prepared.tasks}
        return [
            f"{name}: in {count} examples no earlier position holds the answer; they are in no number of attention"
            for name, count in lacking.items()
            if count
        ]


def _has_answer(task: CopyTask) -> np.ndarray:
    """Whether a position before the last token of the prompt holds the answer."""
    rows = zip(task.ids, task.cuts, task.answers, strict=True)
    return np.array([answer in ids[: cut - 1] for ids, cut, answer in rows])


def _loaded(task: CopyTask, kept: dict[str, np.ndarray]) -> _Task:
    own = {
        name.removeprefix(f"{task.name}."): array for name, array in kept.items() if name.startswith(f"{task.name}.")
    }
    generated = GenerationResult.of(own) if "generated_right" in own else None
    return _Task(TaskResult.of(own), generated)


def _of_scopes(prepared: Prepared) -> Iterator[str]:
    """Heads that share the keys and values that are set."""
    for condition in prepared.conditions:
        for edit in condition.intervention.weights if condition.intervention else ():
            if note := edit.parsed_scope.note(structure_of(prepared.model.anatomy)):
                yield note


def _of_condition(n_layers: int, condition: Condition, order: Sequence[int | None]) -> Iterator[str]:
    if any(block is not None and block != layer for layer, block in enumerate(order)):
        yield f"{condition.name}: between blocks that changed places there are no depths; they are NaN"


def _of_numbers(task: str, condition: Condition, result: TaskResult) -> Iterator[str]:
    if np.isnan(result.right[-1]).any():
        yield f"{condition.name}: predictions on the task {task} are not finite, so that its row is NaN"
    elif not np.isfinite(result.loss_nats[-1]).all():
        yield f"{condition.name}: losses on the task {task} are not finite"
