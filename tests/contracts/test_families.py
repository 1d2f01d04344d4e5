"""What every family's entry promises, checked on its tiny configurations."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

from lesion.anatomy import dissect
from lesion.data import Batch
from lesion.engine import Skeleton, Walk, lay_out, verify
from lesion.interventions import ActivationEdit, Intervention, drop, drop_attn, drop_mlp, swap
from lesion.interventions.hooks import Hook, hooked
from tests.oracles.layers import INTERVENTIONS, edited_copy
from tests.support import TINY, Documents, Pictures, tiny_model, token_documents

LENGTHS = [12, 40, 40, 40]
IMAGES = {name for name, (family, _) in TINY.items() if family.objective == "image"}


def documents(name: str) -> Documents | Pictures:
    objective = TINY[name][0].objective
    return Pictures(4) if objective == "image" else Documents(token_documents(97, LENGTHS), objective=objective)


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own forward, at every output."""
    return Skeleton(dissect(model)).whole(batch)


def outputs(stream: Tensor, batch: Batch) -> Tensor:
    """The residual stream at every output: all positions, or the class token."""
    return (stream[:, :1] if batch.ids is None else stream).flatten(0, 1)


@pytest.fixture(params=TINY)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@torch.inference_mode()
def test_blocks_one_by_one_are_the_whole_model(name: str) -> None:
    """Captured calls and the skeleton give the model's own logits, bit for bit from 33 rows a call on."""
    model = tiny_model(name)
    anatomy, batch = dissect(model), documents(name).batch([1, 2])
    skeleton = Skeleton(anatomy)
    stream, calls = skeleton.enter(batch)
    final = Walk(anatomy, lay_out([], 3), 4096, lambda index, step: None).run(stream, calls, [])[0]
    whole = logits_of(model, batch)
    assert torch.equal(skeleton.leave(outputs(final, batch)), whole)
    assert not torch.equal(skeleton.leave(outputs(stream, batch)), whole)


@pytest.mark.parametrize("make", [drop, swap, drop_attn, drop_mlp])
@torch.inference_mode()
def test_a_lane_is_the_context_manager(name: str, make: object) -> None:
    """The two uses of an intervention agree and move the output; the clean lane is not touched by its neighbours."""
    model = tiny_model(name)
    anatomy, batch = dissect(model), documents(name).batch([1, 2])
    interventions = [make(layer) for layer in range(2)]  # type: ignore[operator]
    skeleton = Skeleton(anatomy)
    stream, calls = skeleton.enter(batch)
    streams = Walk(anatomy, lay_out(interventions, 3), 4096, lambda index, step: None).run(stream, calls, [1, 2])
    whole = logits_of(model, batch)
    assert torch.equal(skeleton.leave(outputs(streams[0], batch)), whole)
    for index, intervention in enumerate(interventions, start=1):
        with intervention.on(model):
            inside = logits_of(model, batch)
        lane = skeleton.leave(outputs(streams[index], batch))
        # stacked and single calls may take other kernels for products of small matrices: rounding, no more
        torch.testing.assert_close(lane, inside, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(inside, whole, atol=1e-2)
    assert torch.equal(logits_of(model, batch), whole)


@torch.inference_mode()
def test_every_site_fires_once_a_block(name: str) -> None:
    model = tiny_model(name)
    anatomy, batch = dissect(model), documents(name).batch([1])
    counts: dict[tuple[int, str], int] = {}

    def watch(layer: int, site: str) -> Hook:
        def operator(tensor: Tensor) -> Tensor:
            counts[layer, site] = counts.get((layer, site), 0) + 1
            width = {"z": anatomy.d_z, "mlp_pre": anatomy.d_mlp, "mlp_post": anatomy.d_mlp}.get(site, anatomy.d_model)
            assert tensor.shape[-1] == width
            return tensor

        return Hook(*anatomy.site(layer, site), operator, site)

    with hooked([watch(layer, site) for layer in range(3) for site in anatomy.sites]):
        model(**batch.model_inputs())
    assert counts == {(layer, site): 1 for layer in range(3) for site in anatomy.sites}


@torch.inference_mode()
def test_identity_edits_change_no_bit(name: str) -> None:
    model, batch = tiny_model(name), documents(name).batch([1, 2])
    sites = dissect(model).sites
    identity = Intervention("identity", edits=tuple(ActivationEdit(1, site, lambda x: x.clone()) for site in sites))
    whole = logits_of(model, batch)
    with identity.on(model):
        assert torch.equal(logits_of(model, batch), whole)
    # half of z: a norm behind the output projection, as Gemma 2 has it, undoes a doubling of all of it
    half = torch.arange(dissect(model).d_z) % 2 + 1
    doubled = Intervention("double", edits=(ActivationEdit(1, "z", lambda x: half * x),))
    with doubled.on(model):
        assert not torch.equal(logits_of(model, batch), whole)


@torch.inference_mode()
def test_stacked_lanes_are_lanes_alone(name: str) -> None:
    """Whatever a block is called with (masks, rotary tables, ALiBi) grows with the lanes: one sequence, and padded."""
    model = tiny_model(name)
    anatomy, skeleton = dissect(model), Skeleton(dissect(model))
    lanes = lay_out([drop_attn(0), swap(1), drop_mlp(1), drop(1)], 3)
    for batch in [documents(name).batch([1])] + ([] if name in IMAGES else [documents(name).batch([0, 1])]):
        stream, calls = skeleton.enter(batch)
        stacked, alone = (
            Walk(anatomy, lanes, tokens, lambda index, step: None).run(stream, calls, [1, 2, 3, 4])
            for tokens in (4096, 1)
        )
        kept = batch.keep if name not in IMAGES else torch.ones(stream.shape[:2], dtype=torch.bool)
        for index in range(5):
            # products of matrices with more or fewer rows: rounding of values of order one, no more
            torch.testing.assert_close(stacked[index][kept], alone[index][kept], rtol=1e-5, atol=1e-5)
            assert index == 0 or not torch.allclose(alone[index][kept], alone[0][kept], atol=1e-2)


@torch.inference_mode()
def test_zeroing_activations_is_zeroing_weights(name: str) -> None:
    """The second road: a head (or a range of MLP neurons) set to 0 is its columns of the projection set to 0."""
    model = tiny_model(name)
    anatomy, batch = dissect(model), documents(name).batch([1, 2])
    chosen = slice(anatomy.d_head, 2 * anatomy.d_head)

    def zero(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[..., chosen] = 0
        return tensor

    for site in [site for site in ("z", "mlp_post") if site in anatomy.sites]:
        with Intervention("zero", edits=(ActivationEdit(1, site, zero),)).on(model):
            by_activation = logits_of(model, batch)
        whole = logits_of(model, batch)
        module = anatomy.site(1, site)[0]
        columns = module.weight.T if isinstance(module, nn.Linear) else module.weight
        columns[chosen] = 0
        assert torch.equal(logits_of(model, batch), by_activation)
        assert not torch.allclose(by_activation, whole, atol=1e-3)


@torch.inference_mode()
def test_what_a_block_adds_is_attention_and_mlp(name: str) -> None:
    verify(dissect(tiny_model(name)), documents(name).batch([1, 2]))


@torch.inference_mode()
def test_padding_does_not_reach_kept_positions(name: str) -> None:
    model, data = tiny_model(name), documents(name)
    if isinstance(data, Pictures):
        pytest.skip("images are never padded")
    alone, padded = data.batch([0]), data.batch([0, 1])
    assert alone.mask is None
    assert padded.mask is not None
    a = model(**alone.model_inputs()).logits[alone.keep]
    b = model(**padded.model_inputs()).logits[0, : LENGTHS[0]][alone.keep[0]]
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # the bound that the project promises


def test_hooks_are_gone_after_an_exception(name: str) -> None:
    model, batch = tiny_model(name), documents(name).batch([1])
    whole = logits_of(model, batch)

    def fail(tensor: Tensor) -> Tensor:
        raise ArithmeticError

    broken = Intervention("broken", edits=(ActivationEdit(2, "mlp_out", fail),))
    with contextlib.suppress(ArithmeticError), broken.on(model):
        model(**batch.model_inputs())
    with contextlib.suppress(ArithmeticError), drop(1).on(model):
        raise ArithmeticError
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert torch.equal(logits_of(model, batch), whole)


@pytest.mark.parametrize("kind", INTERVENTIONS)
@pytest.mark.parametrize("name", sorted(IMAGES))
@torch.inference_mode()
def test_lanes_of_classifiers_are_edited_models(name: str, kind: str) -> None:
    """A lane, and the same thing done without hooks to a copy of the model (texts: `tests/studies/test_layers.py`)."""
    model, batch = tiny_model(name), documents(name).batch([0, 1, 2])
    anatomy, skeleton = dissect(model), Skeleton(dissect(model))
    make = {"drop": drop, "swap": swap, "drop_attn": drop_attn, "drop_mlp": drop_mlp}[kind]
    stream, calls = skeleton.enter(batch)
    streams = Walk(anatomy, lay_out([make(1)], 3), 4096, lambda index, step: None).run(stream, calls, [1])
    expected = logits_of(edited_copy(model, kind, 1), batch)
    lane = skeleton.leave(outputs(streams[1], batch))
    torch.testing.assert_close(lane, expected, rtol=1e-5, atol=1e-5)  # products with more or fewer rows: rounding
    assert not torch.allclose(expected, logits_of(model, batch), atol=1e-2)
