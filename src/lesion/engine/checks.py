"""The contract of an anatomy, checked on a model's own weights: one function a check, one finding each.

A check measures one number and says what it must be. What it compares are mostly logits: `found` is then the greatest
difference at any real token, as a share of the largest logit.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import transformers
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from lesion.anatomy import SITES, Anatomy, refuse_packed
from lesion.anatomy.files import fingerprint_in_memory
from lesion.anatomy.load import _quiet_transformers
from lesion.data import Batch
from lesion.engine.lanes import Walk, lay_out
from lesion.engine.samples import Samples
from lesion.engine.skeleton import Skeleton
from lesion.errors import InterventionError, LesionError, MemoryShortError, ModelError, NonFiniteError
from lesion.interventions import KINDS, ActivationEdit, Intervention, drop, in_eval_mode
from lesion.interventions.hooks import Hook, Operator, hooked
from lesion.interventions.intervention import hidden_of

Verdict = Literal["ok", "not applicable", "WRONG"]
Bound = Literal["=", "<=", ">"]

FAILURES = (LesionError, RuntimeError, TypeError, LookupError, AttributeError, ValueError)
"""What a model raises, or torch for it, when it is not built as its anatomy says."""
NEURONS = 16
"""Neurons that are taken away together: one alone may do nothing on two documents."""


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


Check = Callable[[Anatomy, Samples], Finding]
CHECKS: dict[str, Check] = {}
"""Every check by its name, in the order in which they run."""


def check(name: str) -> Callable[[Callable[[Anatomy, Samples], Measured]], Check]:
    """Makes a check of a function that measures, and enters it in `CHECKS`."""

    def enter(measure: Callable[[Anatomy, Samples], Measured]) -> Check:
        @functools.wraps(measure)
        def run(anatomy: Anatomy, samples: Samples) -> Finding:
            try:
                with torch.inference_mode():
                    measured = measure(anatomy, samples)
            except NotApplicable as reason:
                return Finding(name, "not applicable", str(reason))
            except MemoryError as error:
                raise _short_of_memory() from error
            except FAILURES as error:
                if isinstance(error, RuntimeError) and should_reduce_batch_size(error):
                    raise _short_of_memory() from error
                return Finding(name, "WRONG", _first_line(error))
            verdict: Verdict = "ok" if measured.holds else "WRONG"
            return Finding(name, verdict, measured.detail, measured.found, measured.bound, measured.limit)

        CHECKS[name] = run
        return run

    return enter


def run_checks(
    anatomy: Anatomy, samples: Samples, *, before: Callable[[str], None] = lambda name: None
) -> list[Finding]:
    """Runs every check, in eval mode; the model and its weights are afterwards what they were.

    Args:
        before: told the name of each check before it runs.

    Raises:
        NonFiniteError: the model's own logits are not finite, so that nothing can be compared.
        MemoryShortError: memory ran out.
    """
    samples = samples.to(anatomy.device)
    weights = fingerprint_in_memory(anatomy.model)
    with in_eval_mode(anatomy.model):
        _refuse_non_finite(anatomy, samples)
        findings = []
        for name, run in CHECKS.items():
            before(name)
            findings.append(run(anatomy, samples))
    return [*findings, weights_unchanged(anatomy, weights)]


def rounding(anatomy: Anatomy) -> float:
    """Most that the same sums in another order may move a logit, as a share of the largest logit.

    Batches of another size take other kernels, and every block rounds anew. float32: the project's promise for padding.
    Halves keep 8 or 11 bits: what one addition rounds away is up to half an epsilon, and the errors of the two
    additions of each of L blocks grow as the root of their number; 4 covers the greatest of many logits.
    """
    if anatomy.dtype == torch.float32:
        return 1e-5
    return float(4 * torch.finfo(anatomy.dtype).eps * (2 * anatomy.n_layers) ** 0.5)


def tail_rounding(anatomy: Anatomy) -> float:
    """Most that norm and head may differ on chunks of positions, the blocks' calls being the same: some last places."""
    units = 64 if anatomy.dtype == torch.float32 else 4
    return float(units * torch.finfo(anatomy.dtype).eps)


# --- the model is itself -------------------------------------------------------------------------------------------


@check("same bits twice")
def same_bits_twice(anatomy: Anatomy, samples: Samples) -> Measured:
    """The same batch gives the same logits, bit for bit."""
    first, second = (_logits(anatomy, samples.both) for _ in range(2))
    return Measured(_difference(second, first), "=", 0.0, "the same batch, run twice")


@check("plain transformers")
def plain_transformers(anatomy: Anatomy, samples: Samples) -> Measured:
    """A model as transformers loads it, from the same weights, gives the same logits.

    It has its default attention implementation and none of the hooks, adapters and settings of the model in memory.
    """
    if anatomy.packed is not None:
        raise NotApplicable(f"packed weights ({anatomy.packed}) cannot be put into a second model")
    plain = _plain_copy(anatomy)
    ours, theirs = (one.config._attn_implementation for one in (anatomy, replace(anatomy, model=plain)))
    difference = max(
        _difference(_logits(anatomy, batch), _logits_of(plain, anatomy, batch))
        for batch in (samples.long, samples.short)
    )
    if ours == theirs:
        return Measured(difference, "=", 0.0, f"a second {type(plain).__name__} on the same weights, {ours} attention")
    return Measured(difference, "<=", rounding(anatomy), f"with {theirs} attention; ours runs with {ours}")


@check("later tokens")
def later_tokens(anatomy: Anatomy, samples: Samples) -> Measured:
    """In a causal model no position sees a later one: other tokens there change no bit before them.

    Experts run tokens in groups, whose sizes change with the tokens: there it is rounding.
    """
    if anatomy.objective != "causal" or samples.long.ids is None:
        raise NotApplicable(f"a {anatomy.objective} model looks at both sides")
    ids = samples.long.ids
    middle = ids.shape[1] // 2
    changed = ids.clone()
    changed[:, middle:] = (changed[:, middle:] + 1) % anatomy.n_token_ids
    first, second = (_logits(anatomy, replace(samples.long, ids=some)) for some in (ids, changed))
    found = _difference(second[:middle], first[:middle])
    detail = f"tokens {middle} to {ids.shape[1] - 1} exchanged, logits of 0 to {middle - 1}"
    return _exact_but_for_experts(anatomy, found, detail)


@check("padding")
def padding(anatomy: Anatomy, samples: Samples) -> Measured:
    """A document padded in a batch has the logits that it has alone."""
    _refuse_images(samples)
    together = _logits(anatomy, samples.both)
    alone = torch.cat([_logits(anatomy, samples.long), _logits(anatomy, samples.short)])
    lengths = " and ".join(str(int(length)) for length in samples.both.keep.sum(1))
    return Measured(_difference(together, alone), "<=", rounding(anatomy), f"{lengths} tokens in one batch, and alone")


@check("content of padding")
def content_of_padding(anatomy: Anatomy, samples: Samples) -> Measured:
    """What stands in the padding changes no bit of what is kept (with experts: rounding)."""
    _refuse_images(samples)
    ids = samples.both.ids
    assert ids is not None
    other = torch.where(samples.both.keep, ids, (samples.padding + 1) % anatomy.n_token_ids)
    first, second = (_logits(anatomy, replace(samples.both, ids=some)) for some in (ids, other))
    return _exact_but_for_experts(anatomy, _difference(second, first), "another id in the padding")


# --- blocks --------------------------------------------------------------------------------------------------------


@check("blocks one by one")
def blocks_one_by_one(anatomy: Anatomy, samples: Samples) -> Measured:
    """Embeddings, blocks one at a time and the head give the logits of the model's own forward."""
    found = []
    for batch in (samples.long, samples.both):
        skeleton = Skeleton(anatomy)
        stream, calls = skeleton.enter(batch)
        walk = Walk(anatomy, lay_out([], anatomy.n_layers), stack_tokens=1, on_broken=lambda index, step: None)
        found.append(_difference(_tail(skeleton, walk.run(stream, calls, [])[0], batch), _logits(anatomy, batch)))
    return Measured(max(found), "<=", tail_rounding(anatomy), "a document alone, and two in a padded batch")


@check("from a block on")
def from_a_block_on(anatomy: Anatomy, samples: Samples) -> Measured:
    """The residual stream that the whole model has before a block, and that block and the later ones run on it."""
    batch, chosen = samples.long, _some_layers(anatomy)
    before: dict[int, Tensor] = {}

    def keep(layer: int) -> Operator:
        def operator(tensor: Tensor) -> Tensor:
            before[layer] = tensor.clone()
            return tensor

        return operator

    with hooked([_hook(anatomy, layer, "resid_pre", keep(layer)) for layer in chosen]):
        whole = _logits(anatomy, batch)
    skeleton = Skeleton(anatomy)
    _, calls = skeleton.enter(batch)
    found = []
    for layer in chosen:
        stream = before[layer]
        for block, call in zip(anatomy.blocks[layer:], calls[layer:], strict=True):
            stream = hidden_of(block(stream, *call.arguments, **call.keywords))
        found.append(_difference(_tail(skeleton, stream, batch), whole))
    return Measured(max(found), "<=", tail_rounding(anatomy), f"from {_blocks(chosen)}")


@check("sum of parts")
def sum_of_parts(anatomy: Anatomy, samples: Samples) -> Measured:
    """resid_pre + attn_out + mlp_out = resid_post in every block; a share of the norms of the three."""
    if anatomy.norm == "post":
        raise NotApplicable("a norm follows each addition to the residual stream")
    seen: dict[str, Tensor] = {}
    misses: list[float] = []

    def watch(layer: int, site: str) -> Hook:
        def operator(tensor: Tensor) -> Tensor:
            seen[site] = tensor.double()
            if site == "resid_post":
                misses.append(_miss(seen))
                seen.clear()
            return tensor

        return _hook(anatomy, layer, site, operator)

    sites = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    with hooked([watch(layer, site) for layer in range(anatomy.n_layers) for site in sites]):
        _logits(anatomy, samples.short)
    worst = max(range(len(misses)), key=misses.__getitem__)
    # Rounding of two additions, also where they cancel; verified before each study with the same limit.
    limit = 8 * float(torch.finfo(anatomy.dtype).eps)
    return Measured(misses[worst], "<=", limit, f"all {len(misses)} blocks, worst in block {worst}")


def _miss(seen: dict[str, Tensor]) -> float:
    before, after = seen["resid_pre"], seen["resid_post"]
    attention, mlp = (seen[site].reshape(before.shape) for site in ("attn_out", "mlp_out"))
    return float((before + attention + mlp - after).norm() / (before.norm() + attention.norm() + mlp.norm()))


# --- sites ---------------------------------------------------------------------------------------------------------


def _fires(site: str, anatomy: Anatomy, samples: Samples) -> Measured:
    """A site passes once in every block, with the width that the anatomy says."""
    width = {"z": anatomy.d_z, "mlp_pre": anatomy.d_mlp, "mlp_post": anatomy.d_mlp}.get(site, anatomy.d_model)
    widths: dict[int, list[int]] = {layer: [] for layer in range(anatomy.n_layers)}

    def watch(layer: int) -> Operator:
        def operator(tensor: Tensor) -> Tensor:
            widths[layer].append(tensor.shape[-1])
            return tensor

        return operator

    _refuse_missing_site(anatomy, site)
    hooks = [_hook(anatomy, layer, site, watch(layer)) for layer in range(anatomy.n_layers)]
    with contextlib.suppress(InterventionError), hooked(hooks):  # what did not fire is counted below
        _logits(anatomy, samples.short)
    wrong = {layer: found for layer, found in widths.items() if found != [width]}
    detail = f"once in each of {anatomy.n_layers} blocks, {width} wide"
    if wrong:
        layer, found = next(iter(wrong.items()))
        detail = f"block {layer}: {len(found)} times, width {sorted(set(found))}; expected once, {width} wide"
    return Measured(float(anatomy.n_layers - len(wrong)), "=", float(anatomy.n_layers), detail)


for _site in SITES:
    check(f"site {_site}")(functools.partial(_fires, _site))


@check("identity edits")
def identity_edits(anatomy: Anatomy, samples: Samples) -> Measured:
    """A copy of the tensor in its place, at every site, changes no bit."""
    chosen = _some_layers(anatomy)
    edits = tuple(ActivationEdit(layer, site, torch.clone) for layer in chosen for site in anatomy.sites)
    whole = _logits(anatomy, samples.short)
    with _edited(anatomy, edits):
        found = _difference(_logits(anatomy, samples.short), whole)
    return Measured(found, "=", 0.0, f"{len(anatomy.sites)} sites in {_blocks(chosen)}")


@check("doubled z")
def doubled_z(anatomy: Anatomy, samples: Samples) -> Measured:
    """The negation: half of the z of one block, doubled, moves the logits. The least of the moves is reported.

    Half of it: where a norm follows the output projection (Gemma 2 and 3), all of it doubled is the same direction.
    """

    def double(tensor: Tensor) -> Tensor:
        first, second = tensor.tensor_split(2, dim=-1)
        return torch.cat([2 * first, second], dim=-1)

    chosen = [layer for layer in _some_layers(anatomy) if not _all_zero(anatomy.site(layer, "z")[0])]
    if not chosen:
        raise NotApplicable("the output projections of attention are zero")
    whole, moved = _logits(anatomy, samples.short), []
    for layer in chosen:
        with _edited(anatomy, [ActivationEdit(layer, "z", double)]):
            moved.append(_difference(_logits(anatomy, samples.short), whole))
    return Measured(min(moved), ">", 0.0, f"the first half of z in {_blocks(chosen)}, one at a time")


@check("z is all of attention")
def z_is_all_of_attention(anatomy: Anatomy, samples: Samples) -> Measured:
    """With z at 0 attention adds the same to every position (its bias): nothing goes around z."""
    return _all_that_passes(anatomy, samples, "z", "attn_out")


@check("mlp_post is all of the MLP")
def mlp_post_is_all_of_the_mlp(anatomy: Anatomy, samples: Samples) -> Measured:
    """With mlp_post at 0 the MLP adds the same to every position (its bias)."""
    return _all_that_passes(anatomy, samples, "mlp_post", "mlp_out")


def _all_that_passes(anatomy: Anatomy, samples: Samples, cause: str, effect: str) -> Measured:
    _refuse_missing_site(anatomy, cause)
    chosen, spreads = _some_layers(anatomy), []

    def watch(tensor: Tensor) -> Tensor:
        rows = tensor.flatten(0, -2).float()
        spreads.append(float((rows - rows[:1]).abs().max()))
        return tensor

    for layer in chosen:
        hooks = [_hook(anatomy, layer, cause, torch.zeros_like), _hook(anatomy, layer, effect, watch)]
        with hooked(hooks):
            _logits(anatomy, samples.short)
    # Rows of zeros go through the same sums: equal to the last bit.
    return Measured(max(spreads), "=", 0.0, f"spread of {effect} over positions without {cause}; {_blocks(chosen)}")


# --- weights -------------------------------------------------------------------------------------------------------


@check("head = columns of W_O")
def head_is_columns(anatomy: Anatomy, samples: Samples) -> Measured:
    """Zeroing a head's z is zeroing its columns of the output projection: products with 0 either way, no rounding."""

    def strongest(columns: Tensor) -> Tensor:
        head = int(columns.float().square().sum(1).view(anatomy.n_heads, -1).sum(1).argmax())
        return torch.arange(head * anatomy.d_head, (head + 1) * anatomy.d_head, device=columns.device)

    return _columns(anatomy, samples, "z", strongest, "the head with the largest weights")


@check("neurons = columns of W_out")
def neurons_are_columns(anatomy: Anatomy, samples: Samples) -> Measured:
    """Zeroing MLP neurons is zeroing their columns of the down projection."""

    def strongest(columns: Tensor) -> Tensor:
        return columns.float().square().sum(1).topk(min(NEURONS, anatomy.d_mlp)).indices

    return _columns(anatomy, samples, "mlp_post", strongest, f"the {NEURONS} neurons with the largest weights")


def _columns(anatomy: Anatomy, samples: Samples, site: str, choose: Callable[[Tensor], Tensor], what: str) -> Measured:
    _refuse_missing_site(anatomy, site)
    try:
        refuse_packed(anatomy, "this check")
    except ModelError as reason:
        raise NotApplicable(str(reason)) from None
    chosen, found, moved = _ends(anatomy), [], []
    whole = _logits(anatomy, samples.short)
    for layer in chosen:
        module = anatomy.site(layer, site)[0]
        units = choose(_weight_columns(module))
        with _edited(anatomy, [ActivationEdit(layer, site, _without(units))]):
            by_activation = _logits(anatomy, samples.short)
        with _columns_zeroed(module, units):
            by_weights = _logits(anatomy, samples.short)
        found.append(_difference(by_activation, by_weights))
        moved.append(_difference(by_activation, whole))
    return Measured(max(found), "=", 0.0, f"{what} of {_blocks(chosen)}; without them logits move by {max(moved):.2g}")


def _without(units: Tensor) -> Operator:
    return lambda tensor: tensor.index_fill(-1, units, 0)


def _weight_columns(module: nn.Module) -> Tensor:
    """The weight with a row for each input: `nn.Linear` stores (out, in), GPT-2's Conv1D (in, out)."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.data.T if isinstance(module, nn.Linear) else weight.data


@contextlib.contextmanager
def _columns_zeroed(module: nn.Module, units: Tensor) -> Iterator[None]:
    columns = _weight_columns(module)
    before = columns[units].clone()
    try:
        columns[units] = 0
        yield
    finally:
        columns[units] = before


def weights_unchanged(anatomy: Anatomy, before: str) -> Finding:
    """Configuration and every weight are bit for bit those with the fingerprint `before`."""
    same = fingerprint_in_memory(anatomy.model) == before
    detail = "configuration and weights, by hash, before and after all checks"
    return Finding("weights unchanged", "ok" if same else "WRONG", detail, float(not same), "=", 0.0)


# --- interventions -------------------------------------------------------------------------------------------------


@check("lane = context manager")
def lane_is_context_manager(anatomy: Anatomy, samples: Samples) -> Measured:
    """An intervention as a lane of a sweep, and as a context manager on the whole model."""
    interventions = _interventions(anatomy)
    found = []
    for intervention, lane in zip(interventions, _lanes(anatomy, samples.short, stack_tokens=1)[1:], strict=True):
        with intervention.on(anatomy.model):
            found.append(_difference(lane, _logits(anatomy, samples.short)))
    names = f"{len(interventions)} interventions: {', '.join(KINDS)} in {_blocks(_some_layers(anatomy))}"
    return Measured(max(found), "<=", tail_rounding(anatomy), names)


@check("stacked lanes")
def stacked_lanes(anatomy: Anatomy, samples: Samples) -> Measured:
    """Lanes that share a call of a block do not touch each other."""
    together = _lanes(anatomy, samples.short, stack_tokens=1_000_000)
    alone = _lanes(anatomy, samples.short, stack_tokens=1)
    found = max(_difference(a, b) for a, b in zip(together, alone, strict=True))
    return Measured(found, "<=", rounding(anatomy), f"{len(alone)} lanes in one call, and in a call each")


@check("after an exception")
def after_an_exception(anatomy: Anatomy, samples: Samples) -> Measured:
    """Hooks and replaced forwards are gone after an error inside a model, and the logits are what they were."""

    class Planned(Exception):
        pass

    def fail(tensor: Tensor) -> Tensor:
        raise Planned

    model, batch = anatomy.model, samples.short
    whole, before = _logits(anatomy, batch), _attached(model)
    edit = Intervention("fail", edits=(ActivationEdit(anatomy.n_layers - 1, "mlp_out", fail),))
    with contextlib.suppress(Planned), edit.on(model):
        _logits(anatomy, batch)
    with contextlib.suppress(Planned), drop(0).on(model):
        raise Planned
    after = _attached(model)
    left = len(set(after) ^ set(before))
    if not left and not torch.equal(_logits(anatomy, batch), whole):
        raise ModelError("the logits are no longer what they were before an intervention failed")
    return Measured(float(left), "=", 0.0, f"hooks and replaced forwards left behind ({len(before)} were there before)")


def _attached(model: nn.Module) -> list[tuple[int, str, int]]:
    """What is attached to the modules of a model: hooks, and forwards that are not their class's."""
    found = []
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            found += [(id(module), "hook", id(hook)) for hook in hooks.values()]
        if "forward" in module.__dict__:
            found.append((id(module), "forward", id(module.__dict__["forward"])))
    return found


def _interventions(anatomy: Anatomy) -> list[Intervention]:
    last = anatomy.n_layers - 1
    chosen = [(kind, layer) for kind in KINDS for layer in _some_layers(anatomy) if kind != "swap" or layer != last]
    return [KINDS[kind](layer) for kind, layer in chosen]


def _lanes(anatomy: Anatomy, batch: Batch, *, stack_tokens: int) -> list[Tensor]:
    """Logits of the clean lane and of the lane of each intervention."""
    lanes = lay_out(_interventions(anatomy), anatomy.n_layers)
    skeleton = Skeleton(anatomy)
    stream, calls = skeleton.enter(batch)
    group = list(range(1, len(lanes)))
    streams = Walk(anatomy, lanes, stack_tokens, lambda index, step: None).run(stream, calls, group)
    return [_tail(skeleton, streams[index], batch) for index in range(len(lanes))]


# --- common --------------------------------------------------------------------------------------------------------


def _logits(anatomy: Anatomy, batch: Batch) -> Tensor:
    """Logits of the model's own forward at every real output, (output, vocabulary), in float32."""
    return Skeleton(anatomy).whole(batch)[batch.keep.flatten()].float()


def _logits_of(model: nn.Module, anatomy: Anatomy, batch: Batch) -> Tensor:
    return _logits(replace(anatomy, model=model), batch)


def _tail(skeleton: Skeleton, stream: Tensor, batch: Batch) -> Tensor:
    return skeleton.leave(stream[batch.keep.nonzero(as_tuple=True)]).float()


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """The greatest difference as a share of the largest number of `theirs`.

    An intervention may overflow half precision: what is not finite on both sides is equal, on one side infinitely off.
    """
    finite = torch.isfinite(theirs)
    if not torch.equal(finite, torch.isfinite(ours)):
        return float("inf")
    ours, theirs = (torch.where(finite, tensor, 0) for tensor in (ours, theirs))
    worst, scale = float((ours - theirs).abs().max()), float(theirs.abs().max())
    return worst / scale if worst else 0.0


def _plain_copy(anatomy: Anatomy) -> nn.Module:
    """A second model, loaded by transformers' own `from_pretrained` from the first one's tensors, which it shares.

    Raises:
        ModelError: the first one has tensors that its class does not, or lacks some.
    """
    config = copy.deepcopy(anatomy.config)
    config._attn_implementation = None  # the default
    name = type(anatomy.model).__name__
    with _quiet_transformers():
        plain, info = getattr(transformers, name).from_pretrained(
            None,
            config=config,
            state_dict=anatomy.model.state_dict(),
            dtype=anatomy.dtype,
            device_map={"": anatomy.device},
            output_loading_info=True,
        )
    if odd := sorted({key for keys in ("missing_keys", "unexpected_keys") for key in info[keys]}):
        raise ModelError(f"its tensors are not those of a plain {name}: {len(odd)} of them, {odd[0]} first")
    copied: nn.Module = plain.eval()
    return copied


def _edited(anatomy: Anatomy, edits: Sequence[ActivationEdit]) -> Any:
    return hooked([_hook(anatomy, edit.layer, edit.site, edit.operator) for edit in edits])


def _hook(anatomy: Anatomy, layer: int, site: str, operator: Operator) -> Hook:
    return Hook(*anatomy.site(layer, site), operator, f"block {layer}, {site}")


def _some_layers(anatomy: Anatomy) -> list[int]:
    """The first, the middle and the last block."""
    return sorted({0, anatomy.n_layers // 2, anatomy.n_layers - 1})


def _ends(anatomy: Anatomy) -> list[int]:
    return sorted({0, anatomy.n_layers - 1})


def _blocks(layers: Sequence[int]) -> str:
    return f"block{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def _all_zero(module: nn.Module) -> bool:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return not bool(weight.any())


def _exact_but_for_experts(anatomy: Anatomy, found: float, detail: str) -> Measured:
    if anatomy.n_experts > 1:
        return Measured(found, "<=", rounding(anatomy), detail)
    return Measured(found, "=", 0.0, detail)


def _refuse_missing_site(anatomy: Anatomy, site: str) -> None:
    try:
        anatomy.family.site(site)
    except ModelError as reason:
        raise NotApplicable(str(reason)) from None


def _refuse_images(samples: Samples) -> None:
    if samples.both.ids is None:
        raise NotApplicable("images are never padded")


@torch.inference_mode()
def _refuse_non_finite(anatomy: Anatomy, samples: Samples) -> None:
    if not torch.isfinite(_logits(anatomy, samples.both)).all():
        raise NonFiniteError(
            f"the model itself gives logits that are not finite ({anatomy.dtype}), so that nothing can be compared; "
            "try --dtype float32"
        )


def _short_of_memory() -> MemoryShortError:
    return MemoryShortError("memory ran out during the checks; give a shorter --context")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if isinstance(error, LesionError) and lines else f"{type(error).__name__}: {' '.join(lines[:2])}"
