"""Zero modes counted while a model trains: weights stored as they were at the start, and those that always were."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from lesion.checkpoints.compare import SIGNED
from lesion.checkpoints.components import place

State = dict[str, Tensor]
COLUMNS = ("step", "dtype", "layer", "component", "n_weights", "n_zero_modes", "n_never_changed")


class ZeroModeCounter:
    """Compares parameters, as they would be stored, with those at the start (paper `zero-modes`, section 2, App. C).

    It holds a copy of the start in each type and a byte a weight and type.

    Args:
        model: at the start.
        dtypes: types that weights are stored in, by their names in the table.
    """

    def __init__(self, model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
        self._dtypes = dict(dtypes)
        self._start = {
            (word, name): _bits(parameter, dtype).clone()
            for word, dtype in dtypes.items()
            for name, parameter in model.named_parameters()
        }
        self._never = {key: torch.ones_like(bits, dtype=torch.bool) for key, bits in self._start.items()}
        self._rows: list[dict[str, object]] = []

    @torch.no_grad()
    def count(self, model: nn.Module, step: int) -> None:
        """Adds the counts after a step; steps that are not counted are not known to have changed anything."""
        for word, dtype in self._dtypes.items():
            found = []
            for name, parameter in model.named_parameters():
                same = _bits(parameter, dtype) == self._start[word, name]
                never = self._never[word, name].logical_and_(same)
                found.append(torch.stack([torch.count_nonzero(same), torch.count_nonzero(never)]))
            self._add(model, step, word, torch.stack(found).tolist())

    def _add(self, model: nn.Module, step: int, word: str, found: Sequence[Sequence[int]]) -> None:
        totals: dict[tuple[int | None, str], list[int]] = {}
        for (name, parameter), counts in zip(model.named_parameters(), found, strict=True):
            where = place(name)
            total = totals.setdefault((where.layer, where.component), [0, 0, 0])
            for index, amount in enumerate((parameter.numel(), *counts)):
                total[index] += amount
        for (layer, component), amounts in totals.items():
            self._rows.append(dict(zip(COLUMNS, (step, word, layer, component, *amounts), strict=True)))

    def table(self) -> pd.DataFrame:
        """A row a counted step, stored type, layer and component."""
        frame = pd.DataFrame(self._rows, columns=list(COLUMNS)).astype({"layer": "Int64"})
        frame["n_came_back"] = frame["n_zero_modes"] - frame["n_never_changed"]
        frame["fraction"] = frame["n_zero_modes"] / frame["n_weights"]
        return frame

    def state(self) -> tuple[State, list[dict[str, object]]]:
        """What is needed to go on: the masks of weights that never changed, and the rows so far."""
        return {f"{word}.{name}": mask for (word, name), mask in self._never.items()}, self._rows

    def restore(self, masks: State, rows: Sequence[dict[str, object]]) -> None:
        """Goes on from a state; the start is that of the model that the counter was made with."""
        for (word, name), mask in self._never.items():
            mask.copy_(masks[f"{word}.{name}"])
        self._rows = list(rows)


def _bits(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return parameter.detach().to(dtype).view(SIGNED[dtype.itemsize])
