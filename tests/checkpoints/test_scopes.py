"""Scopes take the weights that they name: told by what the model then computes, and by counting."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lesion.checkpoints.scopes import INCLUDABLE, Heads, Region, Scope, Structure, expand_scopes, parse_scope
from lesion.errors import InterventionError, ModelError
from tests.support import TINY, tiny_model

WITH_HEADS = [name for name in TINY if TINY[name][0].query or TINY[name][0].qkv]
CAUSAL = [name for name in WITH_HEADS if TINY[name][0].objective == "causal"]


def structure_of(model: Any) -> Structure:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return Structure(shapes, lambda: Heads.of(model.config), model.config.model_type)


def taken(structure: Structure, text: str, include: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """For each tensor that the scope touches, True where it takes a weight."""
    scope = parse_scope(text)
    scope.check(structure, include)
    found = {}
    for name, shape in structure.shapes.items():
        if (region := scope.region(name, structure, include)) is not None:
            found[name] = region.put(region.take(torch.ones(shape, dtype=torch.bool)), shape)
            assert int(found[name].sum()) == region.size(shape)
    return found


def attention(model: Any, zeroed: dict[str, Tensor], only: str = "") -> tuple[Tensor, Tensor]:
    """z and what attention adds, in block 0, after zeroing weights of tensors whose name contains `only`."""
    family = next(family for family, _ in TINY.values() if family.model_type == model.config.model_type)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: list[Tensor] = []
    block = model.get_submodule(family.blocks)[0]
    module = block.get_submodule(family.z)
    handle = module.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0].clone(), output.clone())))
    try:
        with torch.no_grad():
            for name, where in zeroed.items():
                if only in name:
                    model.state_dict()[name].masked_fill_(where, 0.0)
            if family.objective == "image":
                model(torch.randn((2, 1, 16, 16), generator=torch.Generator().manual_seed(1)))
            else:
                model(torch.arange(5, 41).reshape(2, 18))
    finally:
        handle.remove()
        model.load_state_dict(kept)
    return seen[0], seen[1]


@pytest.fixture
def model(request: pytest.FixtureRequest) -> nn.Module:
    """A tiny model whose biases are 0, so that a head of zeros computes zeros."""
    made = tiny_model(request.param)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
    return made


@pytest.mark.parametrize(
    ("text", "layers", "components", "head"),
    [
        ("all", None, None, None),
        ("layer:3", (3, 3), None, None),
        ("layers:16-31", (16, 31), None, None),
        ("component:gate", None, {"gate"}, None),
        ("group:QK", None, {"q", "k"}, None),
        ("group:OV", None, {"o", "v"}, None),
        ("group:MLP", None, {"gate", "up", "down", "gate_up", "fc1", "fc2"}, None),
        ("layer:1/gate", (1, 1), {"gate"}, None),
        ("layer:0/QK", (0, 0), {"q", "k"}, None),
        ("layers:0-2/down", (0, 2), {"down"}, None),
        ("head:1:2", (1, 1), None, 2),
    ],
)
def test_the_grammar(text: str, layers: object, components: set[str] | None, head: int | None) -> None:
    assert parse_scope(text) == Scope(text, layers, frozenset(components) if components else None, head)


@pytest.mark.parametrize(
    "text",
    ["", "ALL", "layer", "layer:", "layer:-1", "layer:1:2", "layers:3", "head:1", "head:1:2/q", "layer:1/", "all/gate"],
)
def test_what_is_no_scope_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(InterventionError, match="is no scope; scopes are all, layer:3"):
        parse_scope(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers:3-1", "write the smaller first"),
        ("component:gates", "no component 'gates'; there are q, k"),
        ("component:QK", "no component 'QK'"),
        ("group:gate", "no group 'gate'; there are QK, OV, MLP"),
        ("layer:1/other", "no component 'other'"),
    ],
)
def test_unknown_names_are_refused(text: str, message: str) -> None:
    with pytest.raises(InterventionError, match=message):
        parse_scope(text)


@pytest.mark.parametrize(
    ("family", "text", "include", "message"),
    [
        ("llama", "layer:3", (), "no layer 3; the model has layers 0 to 2"),
        ("llama", "layers:1-9", (), "no layer 9"),
        ("llama", "head:0:4", (), "no head 4; layers have heads 0 to 3"),
        ("llama", "head:5:0", (), "no layer 5"),
        ("llama", "component:fc1", (), "llama has no fc1; its components are q, k, v, o, gate, up, down"),
        ("llama", "component:qkv", (), "has no qkv"),
        ("gpt2", "component:gate", (), "gpt2 has no gate; its components are q, k, v, o, fc1, fc2"),
        ("llama", "component:embed", (), "needs --include embed"),
        ("llama", "component:embed", ("norm",), "needs --include embed"),
        ("llama", "all", ("gate",), "'gate' cannot be included; what can be is embed, unembed, norm, bias"),
    ],
)
def test_what_a_model_does_not_have_is_refused(family: str, text: str, include: tuple[str, ...], message: str) -> None:
    with pytest.raises(InterventionError, match=message):
        parse_scope(text).check(structure_of(tiny_model(family)), include)


def test_what_it_has_is_not_refused() -> None:
    structure = structure_of(tiny_model("llama"))
    for text in ("layer:2", "layers:0-2", "head:2:3", "component:gate", "layer:0/QK", "all"):
        parse_scope(text).check(structure)
    parse_scope("component:embed").check(structure, ("embed",))


def test_heads_are_refused_where_they_cannot_be_told_apart() -> None:
    fused = {"model.layers.0.self_attn.qkv_proj.weight": (96, 32), "model.layers.0.self_attn.o_proj.weight": (32, 32)}
    unknown = Structure(fused, lambda: Heads(4, 4), "phi3")
    for text in ("head:0:1", "component:q", "group:QK", "group:OV", "layer:0/v"):
        with pytest.raises(InterventionError, match="phi3 cannot be cut there: its q, k and v lie in one matrix"):
            parse_scope(text).check(unknown)
    assert set(taken(unknown, "component:qkv")) == {"model.layers.0.self_attn.qkv_proj.weight"}
    assert set(taken(unknown, "component:o")) == {"model.layers.0.self_attn.o_proj.weight"}
    with pytest.raises(InterventionError, match="no queries, keys and values"):
        parse_scope("head:0:0").check(Structure({"layers.0.fc1.weight": (4, 4)}, lambda: Heads(1, 1), "mlp"))
    with pytest.raises(ModelError, match="5 heads do not fit a matrix q of 64"):
        Heads(5, 5).rows("q", 64, 1)


def test_the_plural_words_stand_for_all_of_a_kind() -> None:
    structure = structure_of(tiny_model("llama"))
    texts = [scope.text for scope in expand_scopes(["all", "layers", "components", "heads", "layer:0/QK"], structure)]
    heads = [f"head:{layer}:{head}" for layer in range(3) for head in range(4)]
    parts = [f"component:{name}" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    assert texts == ["all", "layer:0", "layer:1", "layer:2", *parts, *heads, "layer:0/QK"]
    fused = expand_scopes(["components"], structure_of(tiny_model("gpt_neox")))
    assert [scope.text for scope in fused] == [f"component:{name}" for name in ("q", "k", "v", "o", "fc1", "fc2")]
    with pytest.raises(InterventionError, match="no layer 9"):
        expand_scopes(["layers", "layer:9"], structure)
    with pytest.raises(InterventionError, match="'layerss' is no scope"):
        expand_scopes(["layerss"], structure)


@pytest.mark.parametrize("name", TINY)
def test_layers_components_and_groups_each_divide_everything(name: str) -> None:
    structure = structure_of(tiny_model(name))
    everything = taken(structure, "all")
    assert everything
    groups = [f"group:{group}" for group in ("QK", "OV", "MLP")]
    if not structure.stored & {"fc1", "gate", "gate_up"}:  # experts in one tensor have no component
        groups.remove("group:MLP")
    for kind in (["layers"], ["components"], groups):
        pieces = [taken(structure, scope.text) for scope in expand_scopes(kind, structure)]
        for tensor, where in everything.items():
            count = sum(piece[tensor].int() for piece in pieces if tensor in piece)
            assert torch.equal(count, where.int()), (kind, tensor)
        assert {tensor for piece in pieces for tensor in piece} == set(everything)


def test_embeddings_norms_and_biases_only_where_they_are_included() -> None:
    structure = structure_of(tiny_model("gpt2"))
    plain, more = taken(structure, "all"), taken(structure, "all", INCLUDABLE)
    assert {structure.places[name].component for name in plain} == {"qkv", "o", "fc1", "fc2"}
    assert {structure.places[name].component for name in set(more) - set(plain)} == set(INCLUDABLE)
    assert all(where.all() for where in more.values())
    in_layer = set(taken(structure, "layer:1", ("norm", "embed"))) - set(taken(structure, "layer:1"))
    assert in_layer == {f"transformer.h.1.ln_{n}.{leaf}" for n in (1, 2) for leaf in ("weight", "bias")}
    assert set(taken(structure, "component:embed", ("embed",))) == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert taken(structure, "head:0:1", ("bias",)).keys() == taken(structure, "head:0:1").keys()


def test_a_region_is_rows_or_columns() -> None:
    weight = torch.arange(24).reshape(4, 6)
    rows, columns = Region(0, ((1, 2), (3, 4))), Region(1, ((0, 1), (4, 6)))
    assert rows.take(weight).tolist() == weight.numpy()[[1, 3]].tolist()
    assert columns.take(weight).tolist() == weight.numpy()[:, [0, 4, 5]].tolist()
    for region in (rows, columns, Region()):
        part = region.take(weight + 1)
        assert part.numel() == region.size((4, 6))
        whole = region.put(part, (4, 6))
        assert torch.equal(region.take(whole), part)
        assert int((whole != 0).sum()) == part.numel()


@pytest.mark.parametrize("model", WITH_HEADS, indirect=True, ids=WITH_HEADS)
def test_a_head_without_its_weights_computes_nothing_and_the_others_what_they_did(model: Any) -> None:
    structure = structure_of(model)
    heads = structure.heads
    shared = heads.n_heads // heads.n_kv_heads
    clean = attention(model, {})[0].unflatten(-1, (heads.n_heads, -1))
    for head in range(heads.n_heads):
        zeroed = taken(structure, f"head:0:{head}")
        z = attention(model, zeroed)[0].unflatten(-1, (heads.n_heads, -1))
        with_it = [other for other in range(heads.n_heads) if other // shared == head // shared]
        others = [other for other in range(heads.n_heads) if other not in with_it]
        assert not z[..., with_it, :].any()  # those that share its values lose them too
        assert clean[..., with_it, :].any()
        assert torch.equal(z[..., others, :], clean[..., others, :])
        assert {structure.places[name].layer for name in zeroed} == {0}


@pytest.mark.parametrize("model", WITH_HEADS, indirect=True, ids=WITH_HEADS)
def test_a_heads_columns_of_the_output_projection_are_those_that_read_it(model: Any) -> None:
    """Zeroing them is zeroing the head's z: the second road to the same numbers."""
    structure = structure_of(model)
    n_heads = structure.heads.n_heads
    z, clean = attention(model, {})
    name = next(name for name, spot in structure.places.items() if spot == (0, "o"))
    weight = model.state_dict()[name].T if not structure.heads.transposed else model.state_dict()[name]
    for head in range(n_heads):
        _, found = attention(model, taken(structure, f"head:0:{head}"), only=name)
        without = z.unflatten(-1, (n_heads, -1)).clone()
        without[..., head, :] = 0
        assert torch.allclose(found, without.flatten(-2) @ weight, atol=1e-5)  # one float32 product, of size 1
        assert not torch.allclose(found, clean, atol=1e-3)


@pytest.mark.parametrize("model", WITH_HEADS, indirect=True, ids=WITH_HEADS)
def test_queries_keys_and_values_are_told_apart(model: Any) -> None:
    """Without q, or without k, or both, attention is the same one of equal scores; without v there is nothing."""
    structure = structure_of(model)
    clean = attention(model, {})[0]
    without = {part: attention(model, taken(structure, f"layer:0/{part}"))[0] for part in ("q", "k", "QK", "v")}
    assert torch.equal(without["q"], without["k"])
    assert torch.equal(without["q"], without["QK"])
    assert without["q"].any()
    assert not torch.equal(without["q"], clean)
    assert not without["v"].any()
    if model.config.model_type in {TINY[name][0].model_type for name in CAUSAL}:
        assert torch.equal(without["QK"][:, 0], clean[:, 0])  # the first token sees itself only: v was left alone


def test_shared_keys_and_values_are_stated() -> None:
    shared, own = structure_of(tiny_model("llama")), structure_of(tiny_model("gpt2"))
    assert "those of heads 2 to 3, which share them" in str(parse_scope("head:0:3").note(shared))
    assert parse_scope("head:0:3").note(own) is None
    assert parse_scope("layer:0").note(shared) is None


def test_gate_and_up_in_one_matrix_are_its_upper_and_lower_half() -> None:
    name = "model.layers.0.mlp.gate_up_proj.weight"
    structure = Structure({name: (6, 4)}, lambda: Heads(2, 2), "phi3")
    gate, up = (taken(structure, f"component:{part}")[name] for part in ("gate", "up"))
    assert gate[:3].all()
    assert not gate[3:].any()
    assert torch.equal(up, ~gate)
    assert taken(structure, "group:MLP")[name].all()
    with pytest.raises(InterventionError, match="has no down"):
        taken(structure, "component:down")
    odd = Structure({name: (7, 4)}, lambda: Heads(2, 2), "phi3")
    with pytest.raises(ModelError, match="gate over one of up"):
        taken(odd, "component:gate")
