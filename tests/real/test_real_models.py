"""Real trained models: the numbers must be those of the models, and look like what such models are known to do.

The folder with the models is `.real-models` in the checkout, or what LESION_REAL_MODELS names. It holds `stories15M`
(a LLaMA of 6 layers trained on short stories) and `rxnfp` (a BERT of 12 layers trained on reaction SMILES).
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import lesion
from lesion.errors import ModelError
from tests.oracles.layers import layers_oracle

MODELS = Path(os.environ.get("LESION_REAL_MODELS", Path(__file__).parents[2] / ".real-models"))
STORIES = [
    "Once upon a time there was a little girl named Lily. She liked to play in the park with her dog. One day the dog "
    "ran away, and Lily was very sad. She looked behind the trees and under the bench.",
    "Tom had a red ball. He threw the ball high up in the air and it fell into the pond. Tom began to cry, but a big "
    "frog jumped out and gave the ball back to him.",
    'It was a sunny day. Mom said, "Let\'s bake a cake!" Ben helped her mix the flour and the eggs. When the cake was '
    "ready, they ate it with Grandma in the garden.",
]
REACTIONS = [
    "CC(=O)Cl.CCN(CC)CC.Nc1ccccc1>>CC(=O)Nc1ccccc1",
    "CCO.O=C(O)c1ccccc1>>CCOC(=O)c1ccccc1",
    "Brc1ccccc1.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1",
    "CC(=O)O.NCc1ccccc1>>CC(=O)NCc1ccccc1",
    "CI.Oc1ccccc1>>COc1ccccc1",
]


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not (MODELS / name).is_dir(), reason=f"no {MODELS / name}: LESION_REAL_MODELS names the folder"
    )


@pytest.fixture
def stories(tmp_path: Path) -> str:
    path = tmp_path / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"text": story}) for story in STORIES))
    return str(path)


@pytest.mark.real
@needs("stories15M")
def test_stories(stories: str) -> None:
    """Against brute force on a trained model, and the shape that the paper reports (`stages`, Fig 3)."""
    model = lesion.load(MODELS / "stories15M")
    table = lesion.layers(model, stories, interventions=["drop", "swap"]).tables["layers"]
    ids = [np.array(model.tokenizer(story)["input_ids"]) for story in STORIES]
    assert all(row[0] == model.tokenizer.bos_token_id for row in ids)
    oracle = layers_oracle(model.anatomy.model, ids, objective="causal", interventions=("drop", "swap"))
    joined = table.merge(oracle, on=["intervention", "layer"], suffixes=("", "_oracle"), validate="one_to_one")
    for column in ("loss_nats", "loss_nats_sem", "kl_nats", "kl_nats_sem", "agreement", "entropy_bits", "top1"):
        # float32 logits of size 20 over 32,000 ids
        np.testing.assert_allclose(joined[column], joined[f"{column}_oracle"], rtol=1e-4, atol=2e-5, err_msg=column)
    drop = table[table["intervention"] == "drop"].set_index("layer")
    assert drop["loss_clean_nats"].iloc[0] < 2.5
    assert drop["kl_nats"].idxmax() == 0
    assert drop.loc[0, "kl_nats"] > 4 * drop["kl_nats"].drop(0).max()
    assert drop["kl_nats"].idxmin() in {2, 3, 4}
    assert (drop["kl_nats_sem"] < drop["kl_nats"]).all()


@pytest.mark.real
@needs("rxnfp")
def test_folders_that_cannot_be_studied_say_why() -> None:
    """Pickles without a family, an encoder without a head, and a classifier where a masked model is meant."""
    for name, pickle, says in [
        ("bert_pretrained", True, "names no model_type"),
        ("bert_ft_10k_25s", False, "--allow-pickle"),
        ("bert_ft_10k_25s", True, r"lacks 5 tensors|lacks .* tensors"),
    ]:
        with pytest.raises(ModelError, match=says):
            lesion.load(MODELS / "rxnfp" / name, allow_pickle=pickle)


@pytest.fixture
def reaction_bert(tmp_path: Path) -> Path:
    """The base as a Hugging Face folder: it was published with neither a model type nor a fast tokenizer."""
    source, folder = MODELS / "rxnfp" / "bert_pretrained", tmp_path / "bert"
    model = BertForMaskedLM(BertConfig(**json.loads((source / "config.json").read_text())))
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    left_out = model.load_state_dict(state, strict=False)
    assert all("decoder" in key or "position_ids" in key for key in left_out.missing_keys)
    model.tie_weights()
    model.save_pretrained(folder)
    words = (source / "vocab.txt").read_text().splitlines()
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    atoms = r"\[|\]|Br|Cl|>>|[A-Z]|[a-z]|[0-9]|[^A-Za-z0-9\s]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(atoms), "isolated")
    special = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    names = {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


@pytest.mark.real
@needs("rxnfp")
def test_reactions(reaction_bert: Path, tmp_path: Path) -> None:
    """A masked model: it knows its language, and no single block of twelve is one that it cannot do without."""
    data = tmp_path / "reactions.jsonl"
    data.write_text("\n".join(json.dumps({"text": reaction}) for reaction in REACTIONS * 8))
    tables = lesion.layers(reaction_bert, str(data)).tables
    table = tables["layers"]
    print(table[["intervention", "layer", "loss_nats", "kl_nats", "agreement"]].to_string())
    assert table["loss_clean_nats"].iloc[0] < 1.0  # log 591 = 6.4 without knowledge
    assert table["top1_clean"].iloc[0] > 0.8
    drop = table[table["intervention"] == "drop"]
    assert len(drop) == 12
    assert drop["kl_nats"].between(1e-4, 1.0).all()
    first, second = (lesion.layers(reaction_bert, str(data), seed=seed).tables["layers"] for seed in (0, 1))
    assert first.equals(table)  # the masking is fixed
    assert not first["loss_nats"].equals(second["loss_nats"])
