"""One forward pass over the examples of a task: what is read at every depth, and what the last token attends to."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lesion.anatomy import Anatomy
from lesion.data.copy_tasks import CopyTask
from lesion.engine import Skeleton
from lesion.errors import ModelError
from lesion.interventions import Intervention
from lesion.interventions.attention import recording
from lesion.interventions.hooks import Hook, Operator, hooked
from lesion.interventions.intervention import Order

MAX_TOKENS = {"cpu": 2048, "cuda": 16_384}
"""Tokens of a batch; more are no faster there."""
LOGITS_AT_ONCE = 1 << 24
"""Logits that are worked out together."""
Head = tuple[int, int]
"""Layer and head of queries."""
Advance = Callable[[int], None]
"""Told how many tokens more have been read."""


@dataclass(frozen=True)
class Asked:
    """What is measured besides accuracy.

    Attributes:
        heads: heads whose attention from the last token of the prompt to the answer is summed.
        mapped: heads whose mean attention map over examples is kept.
    """

    heads: tuple[Head, ...] = ()
    mapped: tuple[Head, ...] = ()


@dataclass
class TaskResult:
    """What one condition gave on one task.

    Attributes:
        right: 1 where the greatest logit at the end of the prompt is the answer's, at every depth; NaN where logits
            are not finite, or where the depth does not exist.
        loss_nats: cross-entropy with the answer.
        attention: of the heads asked for, the summed attention from the last token of the prompt to all earlier
            positions that hold the answer; NaN where there are none, or where the head never ran.
        maps: of the heads asked for, the mean attention map.
    """

    right: Float[np.ndarray, "depth example"]
    loss_nats: Float[np.ndarray, "depth example"]
    attention: Float[np.ndarray, "head example"]
    maps: Float[np.ndarray, "mapped token token"]

    def arrays(self) -> dict[str, np.ndarray]:
        """As a shard keeps it."""
        return {"right": self.right, "loss_nats": self.loss_nats, "attention": self.attention, "maps": self.maps}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "TaskResult":
        """The result whose `arrays` these are."""
        return cls(arrays["right"], arrays["loss_nats"], arrays["attention"], arrays["maps"])


def n_depths(n_layers: int) -> int:
    """After the embedding, and after attention and MLP of every block (paper `zero-modes`, Fig 3)."""
    return 2 * n_layers + 1


def measure(
    anatomy: Anatomy,
    task: CopyTask,
    intervention: Intervention | None,
    asked: Asked,
    *,
    batch_size: int | None = None,
    advance: Advance | None = None,
) -> TaskResult:
    """Runs the task on a model on which the intervention is in place already.

    Whole strings are read, and at the last position of each prompt is looked at what it makes of what comes: what
    follows in the string cannot reach it. So strings are of one length, or a few, and nothing is padded.

    Args:
        intervention: as it is in place; decides which blocks run where.

    Raises:
        ModelError: the last depth is not what the model's own head says.
    """
    order = order_of(anatomy, intervention)
    depths, n = n_depths(anatomy.n_layers), task.n_examples
    longest = int(task.ends[0]) if asked.mapped and task.aligned else 0
    result = TaskResult(
        np.full((depths, n), np.nan),
        np.full((depths, n), np.nan),
        np.full((len(asked.heads), n), np.nan),
        np.zeros((len(asked.mapped) if longest else 0, longest, longest)),
    )
    max_tokens = MAX_TOKENS.get(anatomy.device.type, MAX_TOKENS["cpu"])
    for number, examples in enumerate(task.batches(max_tokens, batch_size)):
        ids = torch.from_numpy(np.stack([task.whole(example) for example in examples])).to(anatomy.device)
        cuts = torch.from_numpy(task.cuts[examples]).to(anatomy.device)
        answers = torch.from_numpy(task.answers[examples]).to(anatomy.device)
        taken = AnswerAttention(answer_positions(ids, cuts, answers), cuts - 1)
        maps = MapSums(asked.mapped if longest else (), longest)
        layers = _running({layer for layer, _ in asked.heads}, order)
        mapped = _running({layer for layer, _ in maps.heads}, order)
        streams = Streams(anatomy, order, cuts - 1)
        with contextlib.ExitStack() as stack:
            if layers:
                stack.enter_context(recording(anatomy, layers, taken.take, cuts - 1))
            if mapped:
                stack.enter_context(recording(anatomy, mapped, maps.take))
            stack.enter_context(hooked(streams.hooks()))
            run(anatomy, ids)
        right, loss = _read(anatomy, streams, answers)
        if not number:
            _check_last(anatomy, ids[:1], cuts[:1], streams.last()[:1])
        result.right[:, examples], result.loss_nats[:, examples] = right, loss
        for place, head in enumerate(asked.heads):
            result.attention[place, examples] = taken.of(head)
        if longest:
            result.maps += maps.sums() / n
        if advance:
            advance(ids.numel())
    return result


def run(anatomy: Anatomy, ids: Int[Tensor, "batch token"]) -> None:
    """The model without its head, for those who listen on the way."""
    anatomy.model.base_model(input_ids=ids, use_cache=False)  # type: ignore[operator]


def order_of(anatomy: Anatomy, intervention: Intervention | None) -> Order:
    """The block that runs at each step."""
    return intervention.order(anatomy.n_layers) if intervention else tuple(range(anatomy.n_layers))


def answer_positions(
    ids: Int[Tensor, "batch token"], cuts: Int[Tensor, " batch"], answers: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch token"]:
    """Positions before the last token of the prompt that hold the answer (paper `zero-modes`, Tab 4)."""
    places = torch.arange(ids.shape[1], device=ids.device)
    return (ids == answers.unsqueeze(1)) & (places < cuts.unsqueeze(1) - 1)


class AnswerAttention:
    """Sums, over chosen positions, of the attention that one row of each sequence pays."""

    def __init__(self, positions: Bool[Tensor, "batch token"], rows: Int[Tensor, " batch"]) -> None:
        self._positions, self._rows = positions, rows
        self._parts: dict[int, list[Tensor]] = {}
        self._none = ~positions.any(dim=1)

    def take(self, layer: int, start: int, probabilities: Float[Tensor, "batch head row token"]) -> None:
        """As `recording` calls it, with one row a sequence."""
        chosen = self._positions[start : start + len(probabilities)]
        sums = (probabilities[:, :, 0].double() * chosen.unsqueeze(1)).sum(-1)
        self._parts.setdefault(layer, []).append(sums)

    def of(self, head: Head) -> Float[np.ndarray, " batch"]:
        """Of one head; NaN for sequences without any chosen position, and for a block that did not run."""
        layer, index = head
        if layer not in self._parts:
            return np.full(len(self._rows), np.nan)
        sums = torch.cat(self._parts[layer])[:, index].masked_fill(self._none, torch.nan)
        found: np.ndarray = sums.cpu().numpy()
        return found


class MapSums:
    """Sums over sequences of the attention maps of chosen heads; zeros where a block does not run."""

    def __init__(self, heads: Sequence[Head], length: int) -> None:
        self.heads = tuple(heads)
        self._places: dict[int, list[tuple[int, int]]] = {}
        for place, (layer, head) in enumerate(heads):
            self._places.setdefault(layer, []).append((place, head))
        self._sums = np.zeros((len(heads), length, length))

    def take(self, layer: int, start: int, probabilities: Float[Tensor, "batch head row token"]) -> None:
        """As `recording` calls it, with all rows."""
        sums = probabilities.sum(0, dtype=torch.float64).cpu().numpy()
        for place, head in self._places[layer]:
            self._sums[place] += sums[head]

    def sums(self) -> Float[np.ndarray, "head token token"]:
        return self._sums


class Streams:
    """The residual stream at one position of each sequence, at every depth.

    After attention of a block it is what came in plus what attention adds: also where attention and MLP read the same
    input (the block with its attention alone). Where a norm follows each addition it is what the MLP reads. A block
    that is left out adds nothing. Between blocks that changed places there is no such thing as a depth.
    """

    def __init__(self, anatomy: Anatomy, order: Order, positions: Int[Tensor, " batch"]) -> None:
        self._anatomy, self._order = anatomy, order
        self._positions, self._every = positions, torch.arange(len(positions), device=positions.device)
        self._before: dict[int, Tensor] = {}
        self._found: dict[int, Tensor] = {}

    def hooks(self) -> list[Hook]:
        """What listens, behind all edits that are in place."""
        anatomy, hooks = self._anatomy, []
        for layer, block in enumerate(anatomy.blocks):
            where = f"block {layer}"
            hooks.append(Hook(block, "input", self._keeping(layer, self._came_in), where))
            if self._runs_alone(layer):
                hooks.append(self._after_attention(layer))
            if self._is_whole(layer):
                hooks.append(Hook(block, "output", self._keeping(2 * layer + 2, self._keep), where))
        return hooks

    def depths(self) -> Iterator[tuple[int, Float[Tensor, "batch d_model"]]]:
        """Each depth that exists."""
        yield from sorted(self._found.items())

    def last(self) -> Float[Tensor, "batch d_model"]:
        """What final norm and head read."""
        return self._found[2 * self._anatomy.n_layers]

    def _after_attention(self, layer: int) -> Hook:
        anatomy = self._anatomy
        depth, label = 2 * layer + 1, f"block {layer}, attn_out"
        if anatomy.norm == "post":
            path = anatomy.family.mlp_pre
            assert path is not None
            return Hook(anatomy.blocks[layer].get_submodule(path), "input", self._keeping(depth, self._keep), label)
        return Hook(*anatomy.site(layer, "attn_out"), self._keeping(layer, self._add), label)

    def _keeping(self, key: int, keep: Callable[[int, Tensor], None]) -> Operator:
        def operator(tensor: Tensor) -> Tensor:
            keep(key, tensor.reshape(len(self._positions), -1, tensor.shape[-1])[self._every, self._positions])
            return tensor

        return operator

    def _keep(self, depth: int, stream: Tensor) -> None:
        self._found[depth] = stream

    def _came_in(self, layer: int, stream: Tensor) -> None:
        self._before[layer] = stream
        if layer == 0:
            self._found[0] = stream
        if self._order[layer] is None and self._is_whole(layer - 1):
            self._found[2 * layer + 1] = stream

    def _add(self, layer: int, attention: Tensor) -> None:
        self._found[2 * layer + 1] = self._before[layer] + attention

    def _runs_alone(self, layer: int) -> bool:
        return self._order[layer] == layer and self._is_whole(layer - 1)

    def _is_whole(self, layer: int) -> bool:
        """Whether all blocks that are due by this step have run when the model has come to it."""
        return all(block is None or block <= layer for block in self._order[: layer + 1])


def _running(layers: Collection[int], order: Order) -> list[int]:
    return sorted(set(layers) & {block for block in order if block is not None})


def _read(
    anatomy: Anatomy, streams: Streams, answers: Int[Tensor, " batch"]
) -> tuple[Float[np.ndarray, "depth batch"], Float[np.ndarray, "depth batch"]]:
    """Whether the answer has the greatest logit at each depth, and its loss: the model's own final norm and head."""
    shape = (n_depths(anatomy.n_layers), len(answers))
    right, loss = np.full(shape, np.nan), np.full(shape, np.nan)
    for depth, stream in streams.depths():
        logits = logits_of(anatomy, stream)
        finite = torch.isfinite(logits).all(dim=1)
        own = logits.logsumexp(dim=1) - logits.gather(1, answers.unsqueeze(1)).squeeze(1)
        hit = (logits.argmax(dim=1) == answers).double()
        right[depth] = hit.masked_fill(~finite, torch.nan).cpu().numpy()
        loss[depth] = own.double().masked_fill(~finite, torch.nan).cpu().numpy()
    return right, loss


def logits_of(anatomy: Anatomy, stream: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocabulary"]:
    """Final norm and head of the model itself, some rows at a time; in float32 or wider."""
    skeleton, at_once = Skeleton(anatomy), max(1, LOGITS_AT_ONCE // anatomy.vocabulary)
    parts = [skeleton.leave(stream[start : start + at_once]) for start in range(0, len(stream), at_once)]
    joined = torch.cat(parts)
    return joined.to(torch.promote_types(joined.dtype, torch.float32))


def _check_last(
    anatomy: Anatomy, ids: Int[Tensor, "batch token"], cuts: Int[Tensor, " batch"], last: Float[Tensor, "batch d_model"]
) -> None:
    """Looks once a condition whether what is read at the last depth is the model's own prediction."""
    own = anatomy.model(input_ids=ids, use_cache=False).logits[:, int(cuts[0]) - 1].float()
    ours = logits_of(anatomy, last).float()
    scale, worst = own.abs().max(), (own - ours).abs().max()
    limit = torch.finfo(anatomy.dtype).eps ** 0.5  # half of the digits: another batch size adds up in another order
    if torch.isfinite(own).all() and not worst <= limit * scale:
        raise ModelError(
            f"what is read after the last block misses the model's own logits by {worst:.3g} (of {scale:.3g}); "
            "its anatomy is wrong"
        )
