"""Places told from names, for the names that each family stores."""

from pathlib import Path

import pytest
from safetensors import safe_open

from lesion.checkpoints.components import COMPONENTS, PROJECTIONS, Place, place
from tests.support import TINY, tiny_model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.3.self_attn.q_proj.weight", (3, "q")),
        ("layers.3.self_attn.q_proj.weight", (3, "q")),
        ("model.layers.31.mlp.gate_proj.weight", (31, "gate")),
        ("model.layers.1.mlp.gate_up_proj.weight", (1, "gate_up")),
        ("model.layers.1.self_attn.qkv_proj.weight", (1, "qkv")),
        ("model.layers.0.self_attn.q_norm.weight", (0, "norm")),
        ("model.layers.0.self_attn.q_proj.bias", (0, "bias")),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (0, "other")),
        ("model.layers.0.block_sparse_moe.experts.11.w3.weight", (0, "up")),
        ("model.layers.7.block_sparse_moe.gate.weight", (7, "other")),
        ("model.layers.7.mlp.experts.gate_up_proj", (7, "gate_up")),
        ("model.norm.weight", (None, "norm")),
        ("model.decoder.layers.2.self_attn.out_proj.weight", (2, "o")),
        ("model.decoder.project_in.weight", (None, "other")),
        ("model.decoder.embed_positions.weight", (None, "embed")),
        ("h.4.attn.c_attn.weight", (4, "qkv")),
        ("transformer.h.4.attn.c_proj.weight", (4, "o")),
        ("transformer.h.4.mlp.c_proj.weight", (4, "fc2")),
        ("transformer.h.4.mlp.c_proj.bias", (4, "bias")),
        ("h.4.attn.bias", (4, "other")),
        ("transformer.h.4.ln_1.bias", (4, "norm")),
        ("gpt_neox.layers.5.attention.bias", (5, "other")),
        ("gpt_neox.layers.5.attention.dense.weight", (5, "o")),
        ("gpt_neox.layers.5.attention.dense.bias", (5, "bias")),
        ("bert.encoder.layer.6.attention.output.dense.weight", (6, "o")),
        ("bert.encoder.layer.6.output.dense.weight", (6, "fc2")),
        ("bert.encoder.layer.6.output.LayerNorm.gamma", (6, "norm")),
        ("bert.encoder.layer.6.attention.self.value.weight", (6, "v")),
        ("bert.embeddings.token_type_embeddings.weight", (None, "embed")),
        ("bert.embeddings.position_ids", (None, "embed")),
        ("bert.pooler.dense.weight", (None, "other")),
        ("cls.predictions.decoder.weight", (None, "unembed")),
        ("cls.predictions.transform.dense.weight", (None, "other")),
        ("cls.predictions.bias", (None, "bias")),
        ("lm_head.dense.weight", (None, "other")),
        ("classifier.weight", (None, "unembed")),
        ("vit.embeddings.cls_token", (None, "embed")),
        ("vit.embeddings.patch_embeddings.projection.bias", (None, "bias")),
        ("transformer.word_embeddings_layernorm.weight", (None, "norm")),
        ("embed_out.weight", (None, "unembed")),
        ("weight", (None, "other")),
    ],
)
def test_place(name: str, expected: tuple[int | None, str]) -> None:
    assert place(name) == Place(*expected)
    assert place(name).is_projection == (expected[0] is not None and expected[1] in PROJECTIONS)


@pytest.mark.parametrize("name", TINY)
def test_every_matrix_inside_a_block_of_every_family_is_a_projection(name: str, tmp_path: Path) -> None:
    """All but the routers of experts, whose every block has one."""
    tiny_model(name).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        shapes = {key: stored.get_slice(key).get_shape() for key in stored.keys()}  # noqa: SIM118
    places = {key: place(key) for key in shapes}
    matrices = {key for key, shape in shapes.items() if len(shape) > 1 and places[key].layer is not None}
    routers = {key for key in matrices if key.endswith(("moe.gate.weight", "mlp.gate.weight"))}
    assert {key for key in shapes if places[key].is_projection} == matrices - routers
    assert {places[key].layer for key in matrices} == {0, 1, 2}
    assert {found.component for found in places.values()} <= set(COMPONENTS)
    assert "embed" in {found.component for found in places.values()}
    in_a_block = {places[key].component for key in matrices - routers}
    attention = [{"q", "k", "v", "o"}, {"qkv", "o"}]
    mlp = [{"gate", "up", "down"}, {"fc1", "fc2"}]
    assert in_a_block in [first | second for first in attention for second in mlp]
