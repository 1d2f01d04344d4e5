"""Files of masks: what is written is found again, set operations, and files that are not what they should be."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from lesion.checkpoints.masks import FORMAT, Masks, MaskWriter
from lesion.errors import InputError, LesionError

SHAPES = {"b.weight": (5, 7), "a.weight": (8, 4), "empty": (0, 3), "one": (), "long": (3, 11, 2)}


def random_masks(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in SHAPES.items()}


def written(path: Path, masks: dict[str, Tensor]) -> Masks:
    with MaskWriter(path, {name: tuple(mask.shape) for name, mask in masks.items()}, {"tuned": path.stem}) as writer:
        for name, mask in masks.items():
            writer.write(name, np.packbits(mask.numpy().reshape(-1), bitorder="little"))
    return Masks.load(path)


def test_masks_are_found_again(tmp_path: Path) -> None:
    masks = random_masks(0)
    found = written(tmp_path / "new" / "masks.safetensors", masks)
    assert found.names == tuple(SHAPES)
    assert len(found) == len(SHAPES)
    for name, mask in masks.items():
        assert found[name].dtype == torch.bool
        assert found.shape(name) == SHAPES[name]
        assert torch.equal(found[name], mask)
        assert name == "empty" or not torch.equal(found[name], ~mask)
        assert found.count(name) == int(mask.sum())
        assert len(found.packed(name)) == math.ceil(mask.numel() / 8)
    assert "c.weight" not in found
    assert "a.weight" in found
    assert found.metadata["tuned"] == "masks"
    assert found.metadata["convention"] == FORMAT["convention"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["masks.safetensors"]


def test_the_first_weight_is_the_lowest_bit_and_other_programs_can_read_it(tmp_path: Path) -> None:
    mask = torch.tensor([[True, False, False], [True, True, False], [False, False, False], [False, True, False]])
    written(tmp_path / "masks.safetensors", {"w": mask})
    stored = load_file(tmp_path / "masks.safetensors")["w"]
    assert stored.dtype == np.uint8
    assert stored.tolist() == [0b00011001, 0b0100]


def test_a_mask_may_be_written_in_pieces(tmp_path: Path) -> None:
    mask = random_masks(1)["a.weight"]
    packed = np.packbits(mask.numpy().reshape(-1), bitorder="little")
    with MaskWriter(tmp_path / "m.safetensors", {"a": (8, 4)}, {}) as writer:
        writer.write("a", packed[:1])
        writer.write("a", packed[1:])
    assert torch.equal(Masks.load(tmp_path / "m.safetensors")["a"], mask)


@pytest.mark.parametrize("names", [["a"], ["b", "a"], ["a", "a"]], ids=["one missing", "wrong order", "twice"])
def test_a_file_that_is_not_whole_does_not_appear(names: list[str], tmp_path: Path) -> None:
    def write() -> None:
        with MaskWriter(tmp_path / "m.safetensors", {"a": (8,), "b": (8,)}, {}) as writer:
            for name in names:
                writer.write(name, np.zeros(1, np.uint8))

    with pytest.raises(AssertionError):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda a, b: a & b, lambda a, b: a & b),
        (lambda a, b: a | b, lambda a, b: a | b),
        (lambda a, b: a - b, lambda a, b: a & ~b),
        (lambda a, b: ~a, lambda a, b: ~a),
        (lambda a, b: ~(a | b) | (a & b), lambda a, b: ~(a ^ b)),
    ],
    ids=["and", "or", "minus", "not", "nested"],
)
def test_set_operations(
    operation: Callable[[Masks, Masks], Masks], expected: Callable[[Tensor, Tensor], Tensor], tmp_path: Path
) -> None:
    first, second = random_masks(2), random_masks(3)
    made = operation(written(tmp_path / "a.safetensors", first), written(tmp_path / "b.safetensors", second))
    made.save(tmp_path / "made.safetensors")
    for masks in (made, Masks.load(tmp_path / "made.safetensors")):
        for name in SHAPES:
            wanted = expected(first[name], second[name])
            assert torch.equal(masks[name], wanted)
            assert masks.count(name) == int(wanted.sum())
        assert not torch.equal(masks["long"], first["long"])
        assert masks.metadata["convention"] != FORMAT["convention"]
    assert "a" in made.metadata["derived"]


def test_set_operations_refuse_other_tensors_and_shapes(tmp_path: Path) -> None:
    masks = written(tmp_path / "a.safetensors", random_masks(0))
    fewer = written(tmp_path / "b.safetensors", {k: m for k, m in random_masks(0).items() if k != "one"})
    turned = written(tmp_path / "c.safetensors", {k: m.T if m.ndim == 2 else m for k, m in random_masks(0).items()})
    with pytest.raises(LesionError, match="the second lack 1, the first one"):
        masks & fewer
    with pytest.raises(LesionError, match="the first lack 1"):
        fewer | masks
    with pytest.raises(LesionError, match=r"b\.weight: \(5, 7\) and \(7, 5\)"):
        masks - turned


def test_unknown_names_are_refused_with_those_near_them(tmp_path: Path) -> None:
    masks = written(tmp_path / "a.safetensors", random_masks(0))
    for ask in (masks.__getitem__, masks.packed, masks.count, masks.shape):
        with pytest.raises(LesionError, match=r"no mask of 'c\.weight'; near it are: .*a\.weight"):
            ask("c.weight")


def test_run_folders_and_things_that_are_no_masks(tmp_path: Path) -> None:
    written(tmp_path / "run" / "arrays" / "zero_modes.safetensors", random_masks(0))
    assert Masks.load(str(tmp_path / "run")).names == tuple(SHAPES)
    with pytest.raises(InputError, match="there are no masks at"):
        Masks.load(tmp_path)
    save_file({"w": np.zeros(1, np.uint8)}, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="is not a file of masks"):
        Masks.load(tmp_path / "plain.safetensors")
    save_file({"w": np.zeros(1, np.uint8)}, tmp_path / "later.safetensors", FORMAT | {"version": "2"})
    with pytest.raises(InputError, match="version '2'"):
        Masks.load(tmp_path / "later.safetensors")


@pytest.mark.parametrize(
    ("stored", "shapes", "complaint"),
    [
        (np.array([255, 1], np.uint8), '{"w": [9]}', None),
        (np.array([255, 2], np.uint8), '{"w": [9]}', "goes on behind its last weight"),
        (np.array([255, 1], np.uint8), '{"w": [99]}', "contradicts itself"),
        (np.array([255, 1], np.uint8), '{"v": [9]}', "contradicts itself|1 masks"),
        (np.array([255, 1], np.uint16), '{"w": [9]}', "contradicts itself"),
        (np.array([255, 1], np.uint8), '{"w": [-3, -3]}', "contradicts itself"),
        (np.array([255, 1], np.uint8), '{"w": 9}', "does not say the shapes"),
        (np.array([255, 1], np.uint8), "{", "does not say the shapes"),
    ],
)
def test_files_that_contradict_themselves(
    stored: np.ndarray, shapes: str, complaint: str | None, tmp_path: Path
) -> None:
    save_file({"w": stored}, tmp_path / "m.safetensors", FORMAT | {"shapes": shapes})
    if complaint is None:
        assert Masks.load(tmp_path / "m.safetensors").count("w") == 9
        return
    with pytest.raises(InputError, match=complaint):
        Masks.load(tmp_path / "m.safetensors")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    written(path, random_masks(0))
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(LesionError, match="truncated"):
        Masks.load(path)


def test_nothing_is_left_behind_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        written(tmp_path / "file" / "m.safetensors", random_masks(0))
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        written(tmp_path / "m.safetensors", random_masks(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "m.safetensors"]


def test_the_shapes_in_the_metadata_are_the_documented_ones(tmp_path: Path) -> None:
    masks = written(tmp_path / "m.safetensors", random_masks(0))
    assert json.loads(masks.metadata["shapes"]) == {name: list(shape) for name, shape in SHAPES.items()}
