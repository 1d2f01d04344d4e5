"""ViT with its classifier: pre-norm blocks over patches; the class token, at position 0, carries the prediction."""

from lesion.anatomy.family import Config, Family


def refuse(config: Config) -> str | None:
    """Image models that predict no class, or whose pictures are not squares."""
    if not config.num_labels:
        return "it has no classes"
    if not isinstance(config.image_size, int):
        return f"its pictures are not squares of one size (image_size is {config.image_size})"
    return None


FAMILY = Family(
    model_type="vit",
    architectures=("ViTForImageClassification",),
    objective="image",
    blocks="vit.layers",
    z="attention.o_proj",
    attn_out="attention.o_proj",
    mlp_pre="mlp.fc1",
    mlp_post="mlp.fc2",
    mlp_out="mlp.fc2",
    unembed="classifier",
    query="attention.q_proj",
    key="attention.k_proj",
    positions="vit.embeddings.position_embeddings",
    refuse=refuse,
    tiny={
        "vit": {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 80,
            "image_size": 16,
            "patch_size": 2,
            "num_channels": 1,
            "num_labels": 97,
        }
    },
)
