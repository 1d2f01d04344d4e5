"""Every check holds on tiny models of all families, and each finds an error that was planted for it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lesion.anatomy import SITES, Anatomy, dissect, load
from lesion.anatomy.files import fingerprint_in_memory
from lesion.engine.checks import CHECKS, Finding, Measured, run_checks
from lesion.engine.checks.comparing import difference, rounding
from lesion.engine.samples import Samples, image_samples, text_samples
from lesion.errors import InputError, MemoryShortError, NonFiniteError
from lesion.interventions.hooks import Hook
from tests.anatomy.test_packed import LLAMA, WAYS, needs_library, packed_folder
from tests.support import TINY, tiny_model, token_documents

ALL = {*CHECKS, "weights unchanged"}


def samples(name: str, lengths: tuple[int, int] = (40, 30)) -> Samples:
    if TINY[name][0].objective == "image":
        return image_samples(torch.randn((2, 1, 16, 16), generator=torch.Generator().manual_seed(0)))
    long, other = (torch.from_numpy(ids) for ids in token_documents(90, lengths))
    return text_samples(long, other, padding=1)


def verdicts(findings: Sequence[Finding], verdict: str) -> set[str]:
    return {finding.check for finding in findings if finding.verdict == verdict}


def wrong(anatomy: Anatomy, name: str) -> set[str]:
    """Names of the checks that say WRONG; the others must have run."""
    findings = run_checks(anatomy, samples(name))
    assert {finding.check for finding in findings} == ALL
    for finding in findings:
        print(finding)
    return verdicts(findings, "WRONG")


def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Weights only, as `from_pretrained` does; `model.to(dtype)` would round the rotary tables too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


NEURON_CHECKS = {"site mlp_pre", "site mlp_post", "mlp_post is all of the MLP", "neurons = columns of W_out"}
DOES_NOT_APPLY = {
    **dict.fromkeys(("mixtral", "qwen3_moe"), NEURON_CHECKS),
    **{name: {"later tokens", "sum of parts"} for name in ("bert", "roberta")},
    **{name: {"later tokens", "padding", "content of padding"} for name in ("vit", "deit")},
    "opt-350m": {"sum of parts"},
}


HALVES = ("bert", "gemma2", "llama", "mixtral", "vit")
"""What runs in bfloat16 each time; the others, and float16, when slow tests run."""
SINGLE_AND_HALF = [
    pytest.param(name, dtype, marks=() if name in names else pytest.mark.slow)
    for dtype, names in ((torch.float32, tuple(TINY)), (torch.bfloat16, HALVES), (torch.float16, ()))
    for name in TINY
]


@pytest.mark.parametrize(("name", "dtype"), SINGLE_AND_HALF, ids=str)
def test_a_right_anatomy_is_right(name: str, dtype: torch.dtype) -> None:
    anatomy, given = dissect(in_dtype(tiny_model(name), dtype)), samples(name)
    if given.both.pixels is not None:
        given = image_samples(given.both.pixels.to(dtype))
    findings = run_checks(anatomy, given)
    assert [finding for finding in findings if finding.verdict == "WRONG"] == []
    assert {finding.check for finding in findings} == ALL
    refused = verdicts(findings, "not applicable")
    if name in DOES_NOT_APPLY or anatomy.n_experts == 1:
        assert refused == DOES_NOT_APPLY.get(name, set())
    assert all(finding.found is None and finding.detail for finding in findings if finding.check in refused)


# --- planted errors, and the checks that must find them -------------------------------------------------------------


def other_family(name: str, **paths: str) -> Callable[[pytest.MonkeyPatch], Anatomy]:
    """A family's entry with other paths, as a wrong file in `anatomy/families` would have them."""

    def plant(patch: pytest.MonkeyPatch) -> Anatomy:
        family = replace(TINY[name][0], **paths)  # type: ignore[arg-type]
        patch.setattr("lesion.anatomy.anatomy.known_families", lambda: {family.model_type: family})
        return dissect(tiny_model(name))

    return plant


def changed(name: str, change: Callable[[Any], object]) -> Callable[[pytest.MonkeyPatch], Anatomy]:
    """A model whose code does something else than its class."""

    def plant(patch: pytest.MonkeyPatch) -> Anatomy:
        model = tiny_model(name)
        change(model)
        return dissect(model)

    return plant


def hooked_by_a_user(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda module, arguments, output: output * 1.01)


def something_between_blocks(model: Any) -> None:
    model.model.layers[1].register_forward_pre_hook(lambda module, arguments: (arguments[0] * 1.1, *arguments[1:]))


def looks_at_both_sides(model: Any) -> None:
    """What `is_causal` does where no mask is handed over; a padded batch has its causal mask."""
    for layer in model.model.layers:
        layer.self_attn.is_causal = False


def length_of_the_batch_in_the_head(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda module, arguments, output: output * (1 + output.shape[1] / 40))


def remembers_the_block_before(model: Any) -> None:
    """The last block does something else unless the first one ran since it ran itself."""
    first, last = model.model.layers[0], model.model.layers[-1]
    seen = {"first": False}

    def after(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        fresh, seen["first"] = seen["first"], False
        return output if fresh else output.roll(1, -1)

    first.register_forward_hook(lambda *_: seen.update(first=True))
    last.register_forward_hook(after)


def runs_its_neurons_twice(model: Any) -> None:
    mlp = model.transformer.h[1].mlp
    forward = mlp.forward

    def twice(hidden: Tensor) -> Any:
        mlp.c_fc(hidden)
        return forward(hidden)

    mlp.forward = twice


def knows_its_own_tensors(model: Any) -> None:
    """A block that looks whether what comes from attention is the very tensor that went out.

    Stacked lanes put other rows of the same tensor in its place.
    """
    attention = model.model.layers[1].self_attn
    last: list[Tensor] = []
    attention.o_proj.register_forward_hook(lambda module, arguments, output: last.append(output))
    forward = attention.forward

    def look(*arguments: Any, **keywords: Any) -> Any:
        output, *rest = forward(*arguments, **keywords)
        return (output if output is last.pop() else output * 1.5, *rest)

    attention.forward = look


def spare_projection(patch: pytest.MonkeyPatch) -> Anatomy:
    """z is read where it passes a module whose output nobody uses."""
    model: Any = tiny_model("llama")
    for layer in model.model.layers:
        attention = layer.self_attn
        object.__setattr__(attention, "spare", nn.Linear(64, 32))
        attention.o_proj.register_forward_pre_hook(
            lambda module, given, spare=attention.spare: (spare(*given), None)[1]
        )
    family = replace(TINY["llama"][0], z="self_attn.spare")
    patch.setattr("lesion.anatomy.anatomy.known_families", lambda: {"llama": family})
    return dissect(model)


def stale_weights(path: str) -> Callable[[Any], None]:
    """A projection that multiplies with a copy of its weight, as a packed or compiled one may."""

    def change(model: Any) -> None:
        for layer in model.model.layers:
            module = layer.get_submodule(path)
            weight = module.weight.detach().clone()
            module.forward = lambda given, weight=weight: nn.functional.linear(given, weight)

    return change


def mixes_the_batch(model: Any) -> None:
    def mix(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return output + 0.1 * (output.mean(0, keepdim=True) - output)

    model.model.layers[1].mlp.register_forward_hook(mix)


def ignores_the_mask(model: Any) -> None:
    forward = model.bert.forward
    model.bert.forward = lambda *given, attention_mask=None, **keywords: forward(*given, **keywords)


def embeds_batches_differently(model: Any) -> None:
    model.model.embed_tokens.register_forward_hook(
        lambda module, arguments, output: output * (1.0 if len(output) == 1 else 1.5)
    )


def wears_out(model: Any) -> None:
    """A row of the embedding that no document reads changes at every pass."""

    def wear(module: Any, arguments: Any) -> None:
        module.weight[96] += 1

    model.model.embed_tokens.register_forward_pre_hook(wear)


def noisy(model: Any) -> None:
    def add(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return output + 0.01 * torch.randn_like(output)

    model.model.layers[1].register_forward_hook(add)


def another_sites_width(patch: pytest.MonkeyPatch) -> Anatomy:
    return replace(dissect(tiny_model("llama")), d_z=63)


def lanes_with_another_site(patch: pytest.MonkeyPatch) -> Anatomy:
    """The context manager takes the right entry, the lanes a wrong one."""
    anatomy = dissect(tiny_model("llama"))
    return replace(anatomy, family=replace(anatomy.family, attn_out="mlp.down_proj"))


def leaking(patch: pytest.MonkeyPatch) -> Anatomy:
    """A door to hooks that stays open after an exception."""
    from lesion.interventions import hooks

    @contextlib.contextmanager
    def hooked(some: Sequence[Hook]) -> Iterator[None]:
        handles = [hooks._register(hook, index, [0] * len(some)) for index, hook in enumerate(some)]
        yield
        for handle in handles:
            handle.remove()

    patch.setattr("lesion.interventions.intervention.hooked", hooked)
    return dissect(tiny_model("llama"))


ONE_BY_ONE = {"blocks one by one", "from a block on", "lane = context manager", "stacked lanes"}
PLANTED: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], Anatomy], set[str]]] = {
    "a hook of the user's own": ("llama", changed("llama", hooked_by_a_user), {"plain transformers"}),
    "something between blocks": (
        "llama",
        changed("llama", something_between_blocks),
        {"plain transformers", *ONE_BY_ONE},
    ),
    "a mask that is not causal": (
        "llama",
        changed("llama", looks_at_both_sides),
        {"plain transformers", "later tokens", "padding"},
    ),
    "a head that counts positions": (
        "llama",
        changed("llama", length_of_the_batch_in_the_head),
        {"plain transformers", "padding", "blocks one by one", "from a block on", "lane = context manager"},
    ),
    "blocks with a memory": (
        "llama",
        changed("llama", remembers_the_block_before),
        {"from a block on", "lane = context manager"},
    ),
    "neurons that fire twice": ("gpt2", changed("gpt2", runs_its_neurons_twice), {"site mlp_pre"}),
    "a width that is not the anatomy's": ("llama", another_sites_width, {"site z"}),
    "an edit that a block notices": (
        "llama",
        changed("llama", knows_its_own_tensors),
        {"identity edits", "stacked lanes"},
    ),
    "a z that nobody uses": ("llama", spare_projection, {"doubled z", "z is all of attention"}),
    "z before the queries": ("opt", other_family("opt", z="self_attn.q_proj"), {"z is all of attention"}),
    "attention's neurons": (
        "gpt2",
        other_family("gpt2", mlp_post="attn.c_proj"),
        {"site mlp_pre", "mlp_post is all of the MLP"},
    ),
    "a stale W_O": ("llama", changed("llama", stale_weights("self_attn.o_proj")), {"head = columns of W_O"}),
    "a stale W_out": ("llama", changed("llama", stale_weights("mlp.down_proj")), {"neurons = columns of W_out"}),
    "attention before its norm": ("gemma2", other_family("gemma2", attn_out="self_attn.o_proj"), {"sum of parts"}),
    "an MLP before its norm": ("gemma2", other_family("gemma2", mlp_out="mlp.down_proj"), {"sum of parts"}),
    "a norm taken for the MLP": (
        "gpt2",
        other_family("gpt2", mlp_out="ln_2"),
        {"sum of parts", "mlp_post is all of the MLP"},
    ),
    "lanes with another site": (
        "llama",
        lanes_with_another_site,
        {"sum of parts", "lane = context manager", "z is all of attention"},
    ),
    "documents that see each other": (
        "llama",
        changed("llama", mixes_the_batch),
        {"stacked lanes", "padding", "content of padding"},
    ),
    "a mask that is ignored": (
        "bert",
        changed("bert", ignores_the_mask),
        {"padding", "content of padding"},
    ),
    "an embedding that counts documents": ("llama", changed("llama", embeds_batches_differently), {"padding"}),
    "weights that wear out": ("llama", changed("llama", wears_out), {"weights unchanged"}),
    "hooks left behind": ("llama", leaking, {"after an exception"}),
}


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_error_is_found(plant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, make, expected = PLANTED[plant]
    assert wrong(make(monkeypatch), name) == expected


def test_noise_is_found() -> None:
    """Nothing that compares numbers can hold; what counts, holds."""
    model = tiny_model("llama")
    noisy(model)
    found = wrong(dissect(model), "llama")
    assert {"same bits twice", "plain transformers", "identity edits"} <= found
    assert not {"site z", "weights unchanged"} & found


def test_a_rounded_model_is_not_the_checkpoint() -> None:
    """`model.to(bfloat16)` rounds the rotary tables too, which `from_pretrained` keeps in float32: other logits."""
    assert wrong(dissect(tiny_model("llama").to(torch.bfloat16)), "llama") == {"plain transformers"}
    assert wrong(dissect(in_dtype(tiny_model("llama"), torch.bfloat16)), "llama") == set()


def test_every_check_has_a_planted_error() -> None:
    found = set().union(*(expected for _, _, expected in PLANTED.values()))
    assert found | {"same bits twice"} | {f"site {site}" for site in SITES} == ALL


@pytest.mark.parametrize("site", SITES)
def test_each_site_is_missed(site: str) -> None:
    """A module that never runs, where a block is said to have the site."""
    model: Any = tiny_model("llama")
    anatomy = dissect(model)
    idle = nn.Identity()
    finding = CHECKS[f"site {site}"](anatomy, samples("llama"))
    assert (finding.verdict, finding.found) == ("ok", 3.0)
    original = Anatomy.site
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Anatomy, "site", lambda self, *at: (idle, "input") if at == (1, site) else original(self, *at))
        finding = CHECKS[f"site {site}"](anatomy, samples("llama"))
    assert (finding.verdict, finding.found) == ("WRONG", 2.0)
    assert "block 1: 0 times" in finding.detail


def test_a_model_with_a_tensor_of_its_own_is_not_plain() -> None:
    model: Any = tiny_model("llama")
    model.model.layers[0].extra = nn.Linear(2, 2)
    finding = CHECKS["plain transformers"](dissect(model), samples("llama"))
    assert finding.verdict == "WRONG"
    assert "not those of a plain LlamaForCausalLM: 2 of them, model.layers.0.extra.bias first" in finding.detail


def test_the_model_stays_itself() -> None:
    """Weights, training mode and what was attached, also where checks fail."""
    model: Any = tiny_model("llama")
    knows_its_own_tensors(model)
    model.train()
    before, attached = fingerprint_in_memory(model), "forward" in model.model.layers[1].self_attn.__dict__
    assert verdicts(run_checks(dissect(model), samples("llama")), "WRONG")
    assert fingerprint_in_memory(model) == before
    assert model.training
    assert attached
    assert "forward" in model.model.layers[1].self_attn.__dict__
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_projections_that_were_pruned_are_no_fault() -> None:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    findings = run_checks(dissect(model), samples("llama"))
    assert verdicts(findings, "WRONG") == set()
    assert verdicts(findings, "not applicable") == {"doubled z"}


def test_logits_that_are_not_finite_end_the_checks() -> None:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e38)
    with pytest.raises(NonFiniteError, match="nothing can be compared"):
        run_checks(dissect(model), samples("llama"))


def test_memory_that_runs_out_is_no_wrong_anatomy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    anatomy = dissect(tiny_model("llama"))
    monkeypatch.setattr("lesion.engine.checks.whole.logits", fail)
    with pytest.raises(MemoryShortError, match="shorter --context"):
        CHECKS["same bits twice"](anatomy, samples("llama"))


def test_a_number_that_is_not_one_holds_nowhere() -> None:
    assert [Measured(found, "<=", 1.0, "").holds for found in (0.5, 1.0, 1.5, float("nan"))] == [
        True,
        True,
        False,
        False,
    ]
    assert [Measured(found, "=", 0.0, "").holds for found in (0.0, 1e-30, float("nan"))] == [True, False, False]
    assert [Measured(found, ">", 0.0, "").holds for found in (0.0, 1e-30, float("nan"))] == [False, True, False]


def test_rounding_of_halves_grows_with_depth() -> None:
    single = dissect(tiny_model("llama"))
    half, deeper = (dissect(in_dtype(tiny_model("llama", num_hidden_layers=n), torch.bfloat16)) for n in (3, 12))
    assert rounding(single) == 1e-5
    assert rounding(deeper) == 2 * rounding(half)
    assert rounding(half) == 4 * 2**-7 * 6**0.5


def test_differences() -> None:
    """Shares of the largest number; overflow on both sides is equal, on one side infinitely off."""
    a, b = torch.tensor([[1.0, -4.0]]), torch.tensor([[1.0, -3.0]])
    infinite = torch.tensor([[1.0, float("inf")]])
    assert (difference(b, a), difference(a, a), difference(infinite, infinite)) == (0.25, 0.0, 0.0)
    assert difference(infinite, a) == difference(a, infinite) == difference(a, 0 * a) == float("inf")


def test_samples() -> None:
    given = samples("llama", (40, 9))
    assert given.long.ids is not None
    assert given.both.mask is not None
    assert given.both.mask.sum(1).tolist() == [40, 9]
    assert torch.equal(given.both.keep, given.both.mask.bool())
    assert samples("llama", (8, 40)).short.n_tokens == 4
    with pytest.raises(InputError, match="four tokens or more"):
        samples("llama", (3, 40))


@pytest.mark.parametrize("name", ["plain transformers", "head = columns of W_O", "neurons = columns of W_out"])
def test_packed_weights_are_not_read_as_numbers(name: str) -> None:
    anatomy = dissect(tiny_model("llama"))
    assert CHECKS[name](anatomy, samples("llama")).verdict == "ok"
    anatomy.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    finding = CHECKS[name](anatomy, samples("llama"))
    assert finding.verdict == "not applicable"
    assert "packed" in finding.detail


@needs_library
@pytest.mark.parametrize("way", WAYS)
def test_packed_models_keep_the_contract(tiny_folder: Path, tmp_path: Path, way: str) -> None:
    findings = run_checks(load(packed_folder(tmp_path, tiny_folder, way, **LLAMA)).anatomy, samples("llama"))
    assert verdicts(findings, "WRONG") == set()
    assert len(verdicts(findings, "not applicable")) == 3
