"""One small run for all faults: a model and text that are read once, and what the run gives when nothing goes wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest

import lesion
from lesion.anatomy import Model
from lesion.data import TextData
from lesion.studies.setting import Outcome

Run = Callable[..., Outcome]


@pytest.fixture(scope="session")
def loaded(tiny_folder: Path) -> Model:
    return lesion.load(tiny_folder)


@pytest.fixture
def documents(loaded: Model, text_file: Path) -> TextData:
    return lesion.load_text(str(text_file), loaded.tokenizer, context=32, tokens=200)


@pytest.fixture
def run(loaded: Model, documents: TextData, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same small run, of several shards, into a folder."""
    monkeypatch.setattr("lesion.engine.plan.SHARD_OPERATIONS", {"cpu": 1})

    def start(out: Path, *, model: Model = loaded, data: TextData = documents, **options: object) -> Outcome:
        asked = {"interventions": ["drop"], "layers": [0, 2], "batch_size": 2, "out": out, **options}
        return lesion.layers(model, data, **asked)  # type: ignore[arg-type]

    return start
