"""BERT with its masked-language-model head: learned positions, post-norm."""

from lesion.anatomy.family import Family

FAMILY = Family(
    model_type="bert",
    architectures=("BertForMaskedLM",),
    objective="masked",
    blocks="bert.encoder.layer",
    z="attention.output.dense",
    attn_out="attention.output.dense",
    mlp_pre="intermediate.dense",
    mlp_post="output.dense",
    mlp_out="output.dense",
    unembed="cls.predictions.decoder",
    query="attention.self.query",
    key="attention.self.key",
    positions="bert.embeddings.position_embeddings",
    post_norm=lambda config: True,
    refuse=lambda config: "it is a decoder" if config.is_decoder else None,
    unused=(r"bert\.pooler\.", r"cls\.seq_relationship\."),
    tiny={
        "bert": {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 80,
            "vocab_size": 97,
            "max_position_embeddings": 64,
        }
    },
)
