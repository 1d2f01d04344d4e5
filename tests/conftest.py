"""Shape annotations are checked at run time, under pytest only."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

# Where tensors are, shapes are checked. Pages and the shell have none, and drawing took most of the tests' time so.
WITH_TENSORS = ("anatomy", "checkpoints", "data", "engine", "interventions", "results", "statistics", "studies")
install_import_hook([f"lesion.{part}" for part in WITH_TENSORS], "beartype.beartype")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # tiny models gain nothing from more, and lose much where other work shares the machine

SENTENCES = [
    "the cat sat on the mat and looked at the moon for a long time",
    "a model is a machine that guesses the next word of a sentence",
    "if a part of it is taken away, the guesses change or they do not",
    "she wrote it down, counted twice, and went to bed before midnight",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LESION_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as `save_pretrained` leaves it: a tiny random LLaMA and a byte-level tokenizer with a BOS."""
    from tests.support import save_tiny_folder

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_folder(folder, SENTENCES)
    return folder


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Twelve documents, a JSON row each, of different lengths."""
    import json

    path = tmp_path / "text.jsonl"
    rows = [{"text": " ".join(SENTENCES[(i + k) % 4] for k in range(1 + i % 3))} for i in range(12)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path
