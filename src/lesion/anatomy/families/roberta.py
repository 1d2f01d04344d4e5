"""RoBERTa: BERT's blocks; positions are derived from the ids and start after the padding id."""

from lesion.anatomy.family import Family

FAMILY = Family(
    model_type="roberta",
    architectures=("RobertaForMaskedLM",),
    objective="masked",
    blocks="roberta.encoder.layer",
    z="attention.output.dense",
    attn_out="attention.output.dense",
    mlp_pre="intermediate.dense",
    mlp_post="output.dense",
    mlp_out="output.dense",
    unembed="lm_head.decoder",
    query="attention.self.query",
    key="attention.self.key",
    positions="roberta.embeddings.position_embeddings",
    position_offset=lambda config: config.pad_token_id + 1,
    post_norm=lambda config: True,
    refuse=lambda config: "it is a decoder" if config.is_decoder else None,
    unused=(r"roberta\.pooler\.",),
    tiny={
        "roberta": {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 80,
            "vocab_size": 97,
            "max_position_embeddings": 66,
        }
    },
)
