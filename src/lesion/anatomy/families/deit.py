"""DeiT with its classifier on the class token: ViT's blocks with a second special token, for distillation."""

from dataclasses import replace

from lesion.anatomy.families import vit
from lesion.anatomy.family import Config


def _refuse(config: Config) -> str | None:
    if any("WithTeacher" in name for name in config.architectures or ()):
        return (
            "its prediction is the mean of two heads on two tokens (DeiTForImageClassificationWithTeacher); "
            "only DeiTForImageClassification is known"
        )
    return vit.refuse(config)


FAMILY = replace(
    vit.FAMILY,
    model_type="deit",
    architectures=("DeiTForImageClassification",),
    blocks="deit.layers",
    positions="deit.embeddings.position_embeddings",
    refuse=_refuse,
    unused=(r"deit\.pooler\.",),
    tiny={"deit": vit.FAMILY.tiny["vit"]},
)
