"""Edits of weights: the context manager, the lane and the checkpoint that `apply` writes are one model."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn

from lesion.anatomy import dissect
from lesion.checkpoints.edited import apply
from lesion.checkpoints.masks import MaskWriter
from lesion.engine import Skeleton, Walk, lay_out
from lesion.errors import InterventionError, ModelError
from lesion.interventions import Rewriting, combine, drop, set_weights
from lesion.interventions.stored import apply_all
from tests.contracts.test_families import documents, logits_of, outputs
from tests.support import TINY, tiny_model

EXPERTS = {name for name, (family, _) in TINY.items() if family.experts}
KINDS = ["zero_modes", "complement", "keep_only", "random", "random_matched"]


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def random_masks(path: Path, shapes: Mapping[str, tuple[int, ...]], share: float = 0.2) -> dict[str, np.ndarray]:
    """Writes masks of random bits, and returns them unpacked."""
    generator = np.random.default_rng(1)
    masks = {name: generator.random(shape) < share for name, shape in shapes.items()}
    with MaskWriter(path, shapes, {"tuned": "random"}) as writer:
        for name, mask in masks.items():
            writer.write(name, np.packbits(mask, bitorder="little"))
    return masks


@pytest.fixture(params=[name for name in TINY if name not in EXPERTS])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, nn.Module, Path, Path]:
    """Name, model, folder and masks of a tiny model whose weights bfloat16 holds exactly."""
    name = str(request.param)
    model = tiny_model(name).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    random_masks(tmp_path / "masks.safetensors", shapes_of(tmp_path / "model"))
    return name, loaded(tmp_path / "model", model), tmp_path / "model", tmp_path / "masks.safetensors"


def loaded(folder: Path, like: nn.Module) -> nn.Module:
    implementation = like.config._attn_implementation
    cls = getattr(transformers, type(like).__name__)
    return cls.from_pretrained(folder, dtype=torch.float32, attn_implementation=implementation).eval()


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.inference_mode()
def test_context_manager_and_lane_are_the_applied_checkpoint(
    stored: tuple[str, nn.Module, Path, Path], tmp_path: Path
) -> None:
    name, model, folder, masks = stored
    anatomy, batch = dissect(model), documents(name).batch([1, 2])
    before, whole = bits(model), logits_of(model, batch)
    scopes = {"zero_modes": "all", "complement": "layer:1", "random": "layer:1", "random_matched": "all"}
    options = {"random": {"seed": 3, "value": "mean"}, "random_matched": {"seed": 4}}
    edits = [
        set_weights(masks, kind, scope, **options.get(kind, {}))  # type: ignore[arg-type]
        for kind, scope in scopes.items()
    ]
    lanes = lay_out(edits, anatomy.n_layers)
    assert [lane.fork for lane in lanes] == [3, 0, 1, 1, 0]
    skeleton, rewriting = Skeleton(anatomy), Rewriting(anatomy, [weight for edit in edits for weight in edit.weights])
    stream, calls = skeleton.enter(batch)
    walk = Walk(anatomy, lanes, 4096, lambda index, step: None, rewriting=rewriting)
    streams = walk.run(stream, calls, [1, 2, 3, 4])
    assert torch.equal(skeleton.leave(outputs(streams[0], batch)), whole)
    for index, ((kind, scope), edit) in enumerate(zip(scopes.items(), edits, strict=True), start=1):
        out = tmp_path / kind
        applied = apply(folder, rewriting._bound[edit.weights[0]].masks, kind, scope, out, **options.get(kind, {}))  # type: ignore[arg-type]
        wanted = logits_of(loaded(out, model), batch)
        with edit.on(model):
            inside = logits_of(model, batch)
        assert torch.equal(inside, wanted), kind
        assert not torch.equal(inside, whole), kind
        assert rewriting.n_set(edit.weights[0])[0] == applied.n_weights_set > 0
        # a lane that runs alone meets the same kernels; 1e-5 where small products are stacked otherwise
        torch.testing.assert_close(skeleton.leave(outputs(streams[index], batch)), wanted, rtol=1e-5, atol=1e-5)
    after = bits(model)
    assert all(torch.equal(before[key], after[key]) for key in before)


@torch.inference_mode()
def test_a_head_can_be_cut_in_every_family(stored: tuple[str, nn.Module, Path, Path], tmp_path: Path) -> None:
    name, model, folder, masks = stored
    batch = documents(name).batch([1, 2])
    edit = set_weights(masks, "complement", "head:1:1")
    with edit.on(model):
        inside = logits_of(model, batch)
    assert not torch.equal(inside, logits_of(model, batch))
    from lesion.checkpoints.masks import Masks

    apply(folder, Masks.load(masks), "complement", "head:1:1", tmp_path / "head")
    assert torch.equal(inside, logits_of(loaded(tmp_path / "head", model), batch))


@torch.no_grad()
def test_brute_force(tmp_path: Path) -> None:
    """Five kinds on a LLaMA with grouped queries, against weights multiplied by hand."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    masks = random_masks(tmp_path / "masks.safetensors", shapes_of(tmp_path / "model"))
    batch = documents("llama").batch([1, 2])
    for kind, wanted in (("zero_modes", True), ("complement", False), ("keep_only", False)):
        copy = tiny_model("llama")
        for name, parameter in copy.named_parameters():
            if "layers.2.mlp" in name and "proj.weight" in name:
                parameter[torch.from_numpy(masks[name] == wanted)] = 0.0
        with set_weights(tmp_path / "masks.safetensors", kind, "layer:2/MLP").on(model):  # type: ignore[arg-type]
            assert torch.equal(logits_of(model, batch), logits_of(copy, batch))


@torch.no_grad()
def test_embeddings_norms_and_head_only_where_they_are_included(tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "model")
    masks = random_masks(tmp_path / "masks.safetensors", shapes_of(tmp_path / "model"))
    anatomy, batch = dissect(model), documents("llama").batch([1, 2])
    included = set_weights(tmp_path / "masks.safetensors", "zero_modes", include=("embed", "unembed", "norm"))
    plain = set_weights(tmp_path / "masks.safetensors", "zero_modes")
    copy = tiny_model("llama", tie_word_embeddings=False)
    for name, parameter in copy.named_parameters():
        parameter[torch.from_numpy(masks[name])] = 0.0
    with included.on(model):
        inside = logits_of(model, batch)
    assert torch.equal(inside, logits_of(copy, batch))
    with plain.on(model):
        assert not torch.equal(inside, logits_of(model, batch))
    lanes = lay_out([included, plain], anatomy.n_layers)
    assert [(lane.fork, lane.enters) for lane in lanes] == [(3, False), (0, True), (0, False)]
    with (
        pytest.raises(InterventionError, match="unembed adds nothing"),
        set_weights(tmp_path / "masks.safetensors", "zero_modes", "layer:1", include=("unembed",)).on(model),
    ):
        pass


def test_what_was_there_comes_back_after_an_error(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    random_masks(tmp_path / "masks.safetensors", shapes_of(tmp_path / "model"))
    before = {name: (parameter, parameter.data_ptr()) for name, parameter in model.named_parameters()}
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="on purpose"),
        set_weights(tmp_path / "masks.safetensors", "zero_modes").on(model),
    ):
        moved = [name for name, parameter in model.named_parameters() if parameter.data_ptr() != before[name][1]]
        assert len(moved) == 21  # seven matrices in each of three blocks
        raise RuntimeError("on purpose")
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert parameter.data_ptr() == before[name][1]


@pytest.mark.parametrize("name", sorted(EXPERTS))
def test_experts_are_refused_by_name(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    random_masks(tmp_path / "masks.safetensors", {"model.layers.0.self_attn.q_proj.weight": (8, 8)})
    with (
        pytest.raises(ModelError, match="experts"),
        set_weights(tmp_path / "masks.safetensors", "zero_modes").on(model),
    ):
        pass


def test_masks_that_do_not_fit_and_edits_that_set_nothing(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    shapes = shapes_of(tmp_path / "model")
    path = tmp_path / "masks.safetensors"
    random_masks(path, {name: shape for name, shape in shapes.items() if "gate" not in name})
    with (
        pytest.raises(ModelError, match="they have none of model"),
        set_weights(path, "zero_modes").on(model),
    ):
        pass
    random_masks(path, {name: (2, 3) if "gate" in name else shape for name, shape in shapes.items()})
    with pytest.raises(ModelError, match="do not fit"), set_weights(path, "zero_modes").on(model):
        pass
    random_masks(path, shapes, share=0.0)
    for kind, more in (("zero_modes", {}), ("random", {"seed": 0})):
        with pytest.raises(InterventionError, match="no weights at all"), set_weights(path, kind, **more).on(model):  # type: ignore[arg-type]
            pass
    with pytest.raises(InterventionError, match="no layer 3"), set_weights(path, "complement", "layer:3").on(model):
        pass
    with set_weights(path, "complement", "layer:2").on(model), drop(0).on(model):
        pass


def llama_with_masks(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Path]:
    """A stored LLaMA, loaded in float32, and masks."""
    model = tiny_model("llama").to(dtype)
    model.save_pretrained(folder / "model")
    random_masks(folder / "masks.safetensors", shapes_of(folder / "model"))
    return loaded(folder / "model", model), folder / "masks.safetensors"


@torch.no_grad()
def test_matched_weights_are_those_of_the_model_whatever_was_set_before(tmp_path: Path) -> None:
    model, masks = llama_with_masks(tmp_path)
    batch = documents("llama").batch([1, 2])
    first = set_weights(masks, "complement", "layer:1/gate")
    second = set_weights(masks, "random_matched", "layer:1", seed=0)
    with combine([first, second]).on(model):
        together = logits_of(model, batch)
    with first.on(model), second.on(model):
        nested = logits_of(model, batch)
    with second.on(model), first.on(model):
        other_way = logits_of(model, batch)
    apply_all(tmp_path / "model", [*first.weights, *second.weights], tmp_path / "out")
    assert torch.equal(together, nested)
    assert torch.equal(together, other_way)
    assert torch.equal(together, logits_of(loaded(tmp_path / "out", model), batch))
    with second.on(model):
        assert not torch.equal(together, logits_of(model, batch))


@pytest.mark.parametrize(
    ("stored", "held"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float16),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
    ],
)
@torch.no_grad()
def test_draws_and_means_are_of_the_numbers_as_stored(stored: torch.dtype, held: torch.dtype, tmp_path: Path) -> None:
    llama_with_masks(tmp_path, stored)
    masks = tmp_path / "masks.safetensors"
    model = type(tiny_model("llama")).from_pretrained(tmp_path / "model", dtype=held)
    for kind, seed, value in (("random_matched", 3, "zero"), ("zero_modes", None, "mean")):
        edit = set_weights(masks, kind, "layer:1", seed=seed, value=value)  # type: ignore[arg-type]
        apply_all(tmp_path / "model", edit.weights, tmp_path / kind)
        wanted = type(model).from_pretrained(tmp_path / kind, dtype=held).state_dict()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with edit.on(model):
            inside = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert all(torch.equal(inside[name], wanted[name]) for name in wanted), kind
        assert not all(torch.equal(inside[name], before[name]) for name in before)


def test_gradients_taken_after_the_context_are_those_taken_in_it(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "model")
    random_masks(tmp_path / "masks.safetensors", shapes_of(tmp_path / "model"))
    edit = set_weights(tmp_path / "masks.safetensors", "zero_modes", include=("norm", "bias"))
    start = torch.randn(1, 8, model.config.n_embd)

    def gradient(*, outside: bool) -> Tensor:
        given = start.clone().requires_grad_()
        with edit.on(model):
            loss = model(inputs_embeds=given).logits.square().mean()
            if not outside:
                loss.backward()
        if outside:
            loss.backward()
        assert given.grad is not None
        return given.grad

    plain = start.clone().requires_grad_()
    model(inputs_embeds=plain).logits.square().mean().backward()
    assert plain.grad is not None
    assert torch.equal(gradient(outside=True), gradient(outside=False))
    assert not torch.allclose(gradient(outside=True), plain.grad, rtol=0.1)


def test_what_is_done_to_edited_weights_is_an_error_and_the_model_stays_itself(tmp_path: Path) -> None:
    model, masks = llama_with_masks(tmp_path)
    before = bits(model)
    edit, other = set_weights(masks, "zero_modes", "layer:1"), set_weights(masks, "complement", "layer:1")

    def changed() -> None:
        with edit.on(model), torch.no_grad():
            next(model.model.layers[1].parameters()).mul_(2.0)

    def crossed() -> None:
        first, second = edit.on(model), other.on(model)
        first.__enter__()
        second.__enter__()
        try:
            first.__exit__(None, None, None)
        finally:
            second.__exit__(None, None, None)

    for wrong in (changed, crossed):
        with pytest.raises(InterventionError, match="own weights again"):
            wrong()
        assert all(torch.equal(before[name], tensor) for name, tensor in bits(model).items())
    with edit.on(model), other.on(model):
        pass


def test_blocks_that_are_left_out_have_no_weights_to_set(tmp_path: Path) -> None:
    model, masks = llama_with_masks(tmp_path)
    both = combine([drop(1), set_weights(masks, "zero_modes", "layer:1")])
    with pytest.raises(InterventionError, match="another edit leaves out"), both.on(model):
        pass
    rewriting = Rewriting(dissect(model), edits := combine([set_weights(masks, "zero_modes", "all")]).weights)
    whole, some = rewriting.n_set(edits[0]), rewriting.n_set(edits[0], {0, 2})
    assert 0 < some[0] < whole[0]
