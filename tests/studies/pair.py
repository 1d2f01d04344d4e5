"""A base, its tuned derivative and their masks, on tiny models of any family with a tokenizer and a little text."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import lesion
from tests.conftest import SENTENCES
from tests.support import save_tiny_folder, tiny_model

IDS = 330


def save_model(name: str, folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A tiny model of a family, with a tokenizer that can also mask."""
    save_tiny_folder(folder, SENTENCES)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.add_special_tokens({"mask_token": "<mask>", "cls_token": "<cls>", "sep_token": "<sep>"})
    tokenizer.save_pretrained(folder)
    for left in ("model.safetensors", "generation_config.json"):
        (folder / left).unlink(missing_ok=True)
    tiny_model(name, seed, vocab_size=IDS).to(dtype).save_pretrained(folder)
    return folder


def moved(base: Path, tuned: Path, seed: int = 1) -> Path:
    """The same model with about two weights of three moved."""
    tuned.mkdir()
    for file in base.iterdir():
        (tuned / file.name).write_bytes(file.read_bytes())
    generator, tensors = torch.Generator().manual_seed(seed), load_file(base / "model.safetensors")
    for tensor in tensors.values():
        tensor += ((torch.rand(tensor.shape, generator=generator) < 0.67) * 0.3).to(tensor.dtype)
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    return tuned


class Pair:
    """Two checkpoints, their masks, and text."""

    def __init__(self, name: str, folder: Path, text: Path) -> None:
        self.name, self.text = name, text
        self.base = save_model(name, folder / "base")
        self.tuned = moved(self.base, folder / "tuned")
        self.masks = folder / "masks"
        lesion.zero_modes.diff(str(self.base), str(self.tuned), out=self.masks, look=["none"])
        self.reading = lesion.Reading(tokens=500, context=32)


def write_text(path: Path) -> Path:
    rows = [{"text": " ".join(SENTENCES[(i + k) % 4] for k in range(1 + i % 3))} for i in range(12)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path
