"""lesion by its public function, from data that have been read already (the peers get ids too)."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from scoring import NUMBERS, Numbers, Sweep
from torch import Tensor

import lesion


def open_tool(folder: Path, _variant: str) -> Sweep:
    """The sweep on the model and the documents of `folder`; the batch size is lesion's own choice."""
    model = lesion.load(str(folder), device="cpu", dtype="float32")
    context = len(json.loads((folder / "documents.jsonl").read_text().splitlines()[0])["text"].split())
    data = lesion.load_text(str(folder / "documents.jsonl"), model.tokenizer, context=context, tokens=None, bos="never")

    def sweep(ids: Tensor, layers: Sequence[int], _batch_size: int) -> Numbers:
        for index, document in enumerate(ids):
            if not torch.equal(torch.from_numpy(data.document(index)), document):
                raise ValueError(f"document {index} of lesion is not the peers' document {index}")
        table = lesion.layers(model, data, interventions=["drop"], layers=list(layers)).tables["layers"]
        return {name: table[name].tolist() for name in NUMBERS}

    return sweep
