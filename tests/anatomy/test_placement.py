"""Whether a model fits, and what is said where it does not."""

from pathlib import Path

import pytest
import torch

from lesion.anatomy import Loading, load, placement
from lesion.anatomy.placement import Need, amount, fits, free_memory, room_for_hidden_states
from lesion.errors import InputError, ModelError
from lesion.studies.setting import open_model

CPU = torch.device("cpu")
NEED = Need(blocks=(100, 300, 200), rest=50)


def test_what_is_needed() -> None:
    assert (NEED.whole, NEED.streamed) == (650, 950)  # three of the largest block, which may be more than there are


def test_a_limit_leaves_room_for_everything_else() -> None:
    assert fits(80, CPU, 100)
    assert not fits(81, CPU, 100)


def test_without_a_limit_free_memory_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda: 100)
    assert fits(80, CPU, None)
    assert not fits(81, CPU, None)
    assert fits(81, CPU, 200)  # who gives a limit means it
    assert room_for_hidden_states(NEED, None) == 50


def test_a_container_has_less_than_its_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone = free_memory()
    limit = tmp_path / "memory.max"
    limit.write_text("0\n")
    monkeypatch.setattr(placement, "CGROUP_LIMITS", (str(limit),))
    assert free_memory() < 0 < alone
    limit.write_text("max\n")
    assert free_memory() > 0


def test_room_for_hidden_states() -> None:
    assert room_for_hidden_states(NEED, 1000) == 50
    with pytest.raises(ModelError, match=r"give at least 1KB"):
        room_for_hidden_states(NEED, 949)


@pytest.mark.parametrize(("size", "text"), [(1, "0.1KB"), (950, "1KB"), (36_850_001, "36.9MB"), (4 * 10**9, "4GB")])
def test_amounts_are_never_rounded_down(size: int, text: str) -> None:
    assert amount(size) == text


def test_who_streams(tiny_folder: Path) -> None:
    need = sum(parameter.numel() for parameter in load(tiny_folder).anatomy.model.parameters()) * 4
    assert load(tiny_folder).streamed is None
    assert load(tiny_folder, stream=True).streamed is not None
    assert load(tiny_folder, max_memory=need).streamed is not None
    assert load(tiny_folder, max_memory=2 * need).streamed is None
    assert load(tiny_folder, max_memory=need, stream=False).streamed is None
    with pytest.raises(InputError, match="in memory cannot be read block by block"):
        open_model(load(tiny_folder), loading=Loading(stream=True))


def test_pickles_cannot_be_streamed(tiny_folder: Path, tmp_path: Path) -> None:
    model = load(tiny_folder).anatomy.model
    for path in tiny_folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert load(tmp_path, allow_pickle=True, max_memory=1000).streamed is None
    with pytest.raises(ModelError, match=r"pickled.*leave --stream out"):
        load(tmp_path, allow_pickle=True, stream=True)
