"""Pictures: what is found, how it is prepared, and what is said of a corrupt one."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from lesion.data import ImageData, load_images
from lesion.data.pictures import class_labels
from lesion.errors import InputError


def save(path, colour, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_digits_to_train_on_and_to_look_at_share_none_and_miss_none():
    whole, train, test = (load_images(spec, size=8, channels=1) for spec in ("digits", "digits:train", "digits:test"))
    assert (train.n_documents, test.n_documents) == (1437, 360)

    def pixels(data: ImageData, *indices: int) -> torch.Tensor:
        return data.batch(list(indices)).model_inputs()["pixel_values"]

    assert torch.equal(pixels(train, 0, 1436), pixels(whole, 0, 1436))
    assert torch.equal(pixels(test, 0, 359), pixels(whole, 1437, 1796))
    assert not torch.equal(pixels(test, 0), pixels(whole, 0))
    with pytest.raises(InputError, match="no folder 'digits:validation'"):
        load_images("digits:validation", size=8, channels=1)


def test_digits():
    data = load_images("digits", size=8, channels=1)
    assert (data.n_documents, data.n_tokens, data.domains, data.objective) == (1797, 1797, ("digits",), "image")
    assert data.lengths.sum() == 1797
    assert data.domain_of.shape == (1797,)
    batch = data.batch([0, 5, 1796])
    digits = load_digits()
    assert batch.targets.tolist() == [[int(digits.target[i])] for i in (0, 5, 1796)]
    expected = torch.tensor(np.round(digits.images[[0, 5, 1796]] * 255 / 16) / 255 * 2 - 1).float()
    assert torch.allclose(batch.pixels[:, 0], expected, atol=1e-6)  # float32 rounding
    assert batch.keep.tolist() == [[True]] * 3
    assert batch.documents.tolist() == [0, 5, 1796]
    assert (batch.ids, batch.mask, batch.n_tokens) == (None, None, 3)
    assert set(batch.model_inputs()) == {"pixel_values"}
    json.dumps(data.description)


def test_digits_upsampled_in_colour():
    data = load_images("numbers=digits", size=32, channels=3, n_images=10)
    pixels = data.batch(range(10)).pixels
    assert pixels.shape == (10, 3, 32, 32)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert pixels.min() == -1
    assert data.domains == ("numbers",)
    assert data.n_documents == 10


def test_folder_of_classes_and_folder_without(tmp_path):
    save(tmp_path / "classes" / "zebra" / "1.png", (255, 0, 0))
    save(tmp_path / "classes" / "ape" / "2.png", (0, 255, 0))
    save(tmp_path / "classes" / "ape" / "deep" / "3.jpg", (0, 255, 0))
    (tmp_path / "classes" / "ape" / "notes.txt").write_text("no picture")
    data = load_images(str(tmp_path / "classes"), size=4, channels=3)
    assert data.description["classes"] == ["ape", "zebra"]
    assert data.domains == ("classes",)
    batch = data.batch(range(3))
    assert sorted(batch.targets.flatten().tolist()) == [0, 0, 1]
    zebra = batch.targets.flatten().tolist().index(1)
    assert torch.equal(batch.pixels[zebra].mean(dim=(1, 2)), torch.tensor([1.0, -1.0, -1.0]))
    save(tmp_path / "flat" / "1.png", (255, 0, 0))
    flat = load_images(str(tmp_path / "flat"), size=4, channels=1)
    assert flat.batch([0]).targets.tolist() == [[-100]]
    assert flat.batch([0]).pixels.shape == (1, 1, 4, 4)
    assert flat.batch([0]).keep.tolist() == [[True]]


ANIMALS = {0: "zebra", 1: "Great_white  shark, Carcharodon", 2: "crane", 3: "crane, bird"}


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["zebra"], {"zebra": 0}),
        (["Zebra", "great white shark"], {"Zebra": 0, "great white shark": 1}),
        (["carcharodon", "bird"], {"carcharodon": 1, "bird": 3}),
    ],
)
def test_folders_are_matched_with_the_names_of_classes(names, labels):
    assert class_labels(names, ANIMALS) == (labels, [])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["zebra", "ape", "bee"], "of 3 folders of images 1 are named .* no class is called 'ape', 'bee'; name each"),
        (["crane", "zebra"], "not one class each: 'crane'"),
        (["zebra", "ZEBRA"], "not one class each: 'zebra', 'ZEBRA'"),
    ],
)
def test_folders_that_match_in_part_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        class_labels(names, ANIMALS)


def test_folders_that_match_nothing_are_numbered_and_that_is_said():
    labels, (note,) = class_labels(["ape", "bee"], {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"})
    assert labels == {"ape": 0, "bee": 1}
    assert "in sorted order they are its classes (of 3): 'ape' = 0, 'bee' = 1; if they are not" in note
    assert class_labels(["ape"], None)[0] == {"ape": 0}


def test_labels_of_a_folder_are_those_of_the_model(tmp_path):
    save(tmp_path / "zebra" / "1.png", (255, 0, 0))
    save(tmp_path / "bird" / "2.png", (0, 255, 0))
    (tmp_path / ".cache").mkdir()
    data = load_images(str(tmp_path), size=4, channels=3, id2label=ANIMALS)
    assert sorted(data.batch([0, 1]).targets.flatten().tolist()) == [0, 3]
    assert (data.description["classes"], data.description["labels"]) == (["zebra", "bird"], [0, 3])
    assert data.description["notes"] == []
    by_order = load_images(str(tmp_path), size=4, channels=3)
    assert by_order.description["classes"] == ["bird", "zebra"]
    assert len(by_order.description["notes"]) == 1
    assert by_order.fingerprint != data.fingerprint
    save(tmp_path / "stray.png", (0, 0, 255))
    with pytest.raises(InputError, match=r"holds 1 images and sub-folders of images \('bird', 'zebra'\)"):
        load_images(str(tmp_path), size=4, channels=3)


def test_sample_of_a_folder_is_fixed_by_the_seed(tmp_path):
    for index in range(12):
        save(tmp_path / f"{index}.png", (index * 20, 0, 0))
    prints = [load_images(str(tmp_path), size=4, channels=3, n_images=5, seed=seed).fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1]
    assert prints[0] != prints[2]


def test_fingerprint_sees_pixels_labels_and_preparation(tmp_path):
    def fingerprint(size=4):
        return load_images(str(tmp_path / "data"), size=size, channels=3).fingerprint

    save(tmp_path / "data" / "a" / "1.png", (255, 0, 0))
    save(tmp_path / "data" / "b" / "2.png", (255, 0, 0))
    first = fingerprint()
    assert first == fingerprint()
    seen = {first, fingerprint(size=5)}
    save(tmp_path / "data" / "b" / "2.png", (254, 0, 0))
    seen.add(fingerprint())
    (tmp_path / "data" / "0").mkdir()  # one more class: every label moves
    seen.add(fingerprint())
    assert len(seen) == 4


@pytest.mark.parametrize("harm", ["truncated", "text", "empty"])
def test_corrupt_picture_is_named(tmp_path, harm):
    chaos = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    chaos.save(tmp_path / "bad.jpg")
    data = (tmp_path / "bad.jpg").read_bytes()
    save(tmp_path / "good.png", (1, 2, 3))
    before = load_images(str(tmp_path), size=4, channels=3)
    (tmp_path / "bad.jpg").write_bytes({"truncated": data[:500], "text": b"hello", "empty": b""}[harm])
    with pytest.raises(InputError, match=r"bad\.jpg cannot be read as a picture"):
        load_images(str(tmp_path), size=4, channels=3)
    with pytest.raises(InputError, match=r"bad\.jpg cannot be read as a picture"):
        before.batch([0, 1])
    (tmp_path / "bad.jpg").unlink()
    assert load_images(str(tmp_path), size=4, channels=3).n_documents == 1


def test_refusals(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        load_images(str(tmp_path / "missing"), size=4, channels=3)
    with pytest.raises(InputError, match="holds no images"):
        load_images(str(tmp_path), size=4, channels=3)
    for options in ({"channels": 2, "size": 4}, {"channels": 1, "size": 0}, {"channels": 1, "size": 4, "n_images": 0}):
        with pytest.raises(InputError, match="channels must be 1 or 3"):
            load_images("digits", **options)
    data = load_images("digits", size=4, channels=1, n_images=3)
    for indices in ([3], [-1], []):
        with pytest.raises(InputError, match="images from 0 to 2"):
            data.batch(indices)


@pytest.fixture
def processor():
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.0] * 3, image_std=[1.0] * 3)


def test_processor_prepares(tmp_path, processor):
    save(tmp_path / "1.png", (255, 0, 51))
    data = load_images(str(tmp_path), size=16, channels=3, processor=processor)
    means = data.batch([0]).pixels.mean(dim=(2, 3))
    assert torch.allclose(means, torch.tensor([[1.0, 0.0, 0.2]]), atol=1e-6)  # float32 rounding
    without = load_images(str(tmp_path), size=16, channels=3)
    assert data.fingerprint != without.fingerprint
    assert without.batch([0]).pixels.mean(dim=(2, 3))[0, 1] == -1
    with pytest.raises(InputError, match=r"gives pixels of shape \(1, 3, 16, 16\), the model expects \(1, 3, 32, 32\)"):
        load_images(str(tmp_path), size=32, channels=3, processor=processor)


def test_hub_pictures(monkeypatch):
    rows = [{"img": Image.new("RGB", (5, 5), (i * 10, 0, 0)), "label": i % 2, "id": i} for i in range(9)]
    taken = []

    def load_dataset(path, name=None, *, split, streaming):
        assert (path, name, split, streaming) == ("org/set", None, "test", True)
        for row in rows:
            taken.append(row)
            yield row

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_images("hf:org/set@test", size=4, channels=3, n_images=4)
    assert len(taken) == data.n_documents == 4
    assert data.batch([0, 1, 2]).targets.tolist() == [[0], [1], [0]]
    assert data.domains == ("set",)
    assert load_images("hf:org/set@test#img", size=4, channels=3, n_images=4).fingerprint == data.fingerprint
    for column, message in (("#nothing", "no column 'nothing'; columns found: img, label, id"), ("#id", "holds int")):
        with pytest.raises(InputError, match=message):
            load_images(f"hf:org/set@test{column}", size=4, channels=3)
    rows[:] = [{**row, "label": label} for row, label in zip(rows, (-1, 1, 0), strict=False)]
    partly = load_images("hf:org/set@test", size=4, channels=3)
    assert partly.batch([0, 1]).targets.tolist() == [[1], [0]]
    assert partly.description["notes"] == ["1 of 3 images have no label and were left out"]
    rows[:] = [{**row, "label": -1} for row in rows]
    unlabelled = load_images("hf:org/set@test", size=4, channels=3)
    assert unlabelled.batch([0, 1, 2]).targets.tolist() == [[-100]] * 3
    assert unlabelled.description["notes"] == data.description["notes"] == []
    rows[:] = [{"id": 1}]
    with pytest.raises(InputError, match="no column of pictures; columns found: id"):
        load_images("hf:org/set@test", size=4, channels=3)
    rows.clear()
    with pytest.raises(InputError, match="has no rows"):
        load_images("hf:org/set@test", size=4, channels=3)


def test_hub_without_network():
    with pytest.raises(InputError, match="cannot be read"):
        load_images("hf:lesion-no/such", size=4, channels=3)
