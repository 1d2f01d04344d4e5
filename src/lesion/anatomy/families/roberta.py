"""RoBERTa: BERT's blocks; positions are derived from the ids and start after the padding id."""

from dataclasses import replace

from lesion.anatomy.families import bert

FAMILY = replace(
    bert.FAMILY,
    model_type="roberta",
    architectures=("RobertaForMaskedLM",),
    blocks="roberta.encoder.layer",
    unembed="lm_head.decoder",
    positions="roberta.embeddings.position_embeddings",
    position_offset=lambda config: config.pad_token_id + 1,
    unused=(r"roberta\.pooler\.",),
    tiny={"roberta": {**bert.FAMILY.tiny["bert"], "max_position_embeddings": 66}},
)
