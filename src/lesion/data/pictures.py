"""Where pictures come from: embedded digits, a folder, or a dataset of the hub."""

import hashlib
import io
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from lesion.data.batches import NO_TARGET
from lesion.data.documents import hash_order
from lesion.data.hub import hub_revision, parse_hub_spec, stream_rows
from lesion.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
IMAGE_COLUMNS = ("image", "img", "picture", "photo")
LABEL_COLUMNS = ("label", "labels", "fine_label")
DIGITS = {"digits": slice(None), "digits:train": slice(-360), "digits:test": slice(-360, None)}
"""The embedded digits: all, those to train on, and the fifth to look at afterwards."""


@dataclass(frozen=True)
class Picture:
    """One encoded picture: a file, or PNG bytes with a name for messages."""

    name: str
    content: Path | bytes
    label: int = NO_TARGET

    def encoded(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    def decoded(self, mode: str) -> Image.Image:
        try:
            with Image.open(io.BytesIO(self.encoded())) as image:
                return image.convert(mode)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = "no known picture format" if isinstance(error, UnidentifiedImageError) else str(error)
            raise InputError(f"{self.name} cannot be read as a picture: {reason}; mend or remove it") from error

    def digest(self, mode: str) -> bytes:
        """SHA-256 of the encoded picture and its label, after checking that it can be decoded."""
        self.decoded(mode)
        return hashlib.sha256(self.encoded() + str(self.label).encode()).digest()


@dataclass(frozen=True)
class Found:
    """Pictures, the names of their classes by label, and what a reader of their numbers must know."""

    pictures: list[Picture]
    classes: dict[int, str]
    notes: list[str] = field(default_factory=list)

    def labelled(self) -> "Found":
        """Without those that have no label, where others have one: a loss over some of the images is no loss of all."""
        kept = [picture for picture in self.pictures if picture.label != NO_TARGET]
        if len(kept) in (0, len(self.pictures)):
            return self
        note = f"{len(self.pictures) - len(kept)} of {len(self.pictures)} images have no label and were left out"
        return Found(kept, self.classes, [*self.notes, note])


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def embedded_digits(part: str, n_images: int | None) -> Found:
    """scikit-learn's 1797 digits in their order: all of them (`digits`), the first 1437, or the last 360."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = range(len(digits.target))[DIGITS[part]][:n_images]
    pictures = []
    for index in chosen:
        image, label = digits.images[index], digits.target[index]
        grey = np.round(image * (255 / 16)).astype(np.uint8)
        pictures.append(Picture(f"digit {index}", _png(Image.fromarray(grey)), int(label)))
    return Found(pictures, {int(label): str(label) for label in digits.target_names})


def folder_pictures(folder: Path, n_images: int | None, seed: int, id2label: Mapping[int, str] | None) -> Found:
    """The pictures of a folder, or of its sub-folders, which are then the classes.

    Args:
        id2label: the names of the model's classes; see `class_labels`.
    """
    try:
        if not folder.is_dir():
            raise InputError(
                f"there is no folder '{folder}'; images are digits[:train|:test], a folder, or hf:ID[:CONFIG][@SPLIT]"
            )
        direct = _image_files(folder.iterdir())
        folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        inner = {path.name: _image_files(path.rglob("*")) for path in folders}
    except OSError as error:
        raise InputError(f"{folder} cannot be searched for images: {error.strerror or error}") from error
    holding = [name for name, paths in inner.items() if paths]
    if direct and holding:
        raise InputError(
            f"{folder} holds {len(direct)} images and sub-folders of images ({_some(holding)}): with or without "
            "classes? give a folder that holds images only, or sub-folders only"
        )
    labels, notes = class_labels(list(inner), id2label) if holding else ({}, [])
    found = [(path, NO_TARGET) for path in direct]
    found += [(path, labels[name]) for name in holding for path in inner[name]]
    if not found:
        raise InputError(f"the folder {folder} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))})")
    found.sort(key=lambda item: hash_order(item[0].relative_to(folder).as_posix(), salt=str(seed)))
    pictures = [Picture(str(path), path, label) for path, label in found[:n_images]]
    return Found(pictures, {label: name for name, label in labels.items()}, notes)


def class_labels(names: list[str], id2label: Mapping[int, str] | None) -> tuple[dict[str, int], list[str]]:
    """Which class of the model each sub-folder is.

    A folder is a class if it has the name of one, or one of the names that a class has between commas (`tench` of
    `tench, Tinca tinca`); case, and `_` for a space, do not matter. Where no folder is, the sorted folders are the
    classes 0, 1, …, as image folders are read in training, and a note says so.

    Raises:
        InputError: some folders have names of classes and others have not, or a name means two classes.
    """
    known: dict[str, set[int]] = {}
    for label, text in (id2label or {}).items():
        for name in {text, *text.split(",")}:
            known.setdefault(_plain(name), set()).add(int(label))
    found = {name: known[_plain(name)] for name in names if _plain(name) in known}
    unknown = [name for name in names if name not in found]
    doubtful = [name for name, labels in found.items() if len(labels) > 1]
    if found and (unknown or doubtful or len({min(labels) for labels in found.values()}) < len(found)):
        problem = (
            f"no class is called {_some(unknown)}" if unknown else f"not one class each: {_some(doubtful or names)}"
        )
        raise InputError(
            f"of {len(names)} folders of images {len(found)} are named after classes of the model, but {problem}; "
            "name each after one of the model's classes (id2label in its config.json)"
        )
    if found:
        return {name: min(labels) for name, labels in found.items()}, []
    order = ", ".join(f"{name!r} = {label}" for label, name in list(enumerate(names))[:3]) + (" …" if names[3:] else "")
    of = f" (of {len(id2label)})" if id2label else ""
    note = f"no folder of images is named after a class of the model, so that in sorted order they are its classes{of}"
    return {name: label for label, name in enumerate(names)}, [f"{note}: {order}; if they are not, losses mean nothing"]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _some(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest


def _image_files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def hub_pictures(data: str, n_images: int | None) -> Found:
    spec = parse_hub_spec(data)
    pictures: list[Picture] = []
    column = label_column = None
    for number, row in enumerate(itertools.islice(stream_rows(spec, hub_revision(spec)), n_images), start=1):
        where = f"{spec} row {number}"
        if column is None:
            column = _image_column(row, spec.column, where)
            label_column = next((name for name in LABEL_COLUMNS if isinstance(row.get(name), int)), None)
        image = row.get(column)
        if not isinstance(image, Image.Image):
            raise InputError(f"{where}: column '{column}' holds {type(image).__name__}, not a picture")
        label = NO_TARGET if label_column is None else row[label_column]
        if not isinstance(label, int):
            raise InputError(f"{where}: the label is {label!r}, not a whole number")
        pictures.append(Picture(where, _png(image), label if label >= 0 else NO_TARGET))  # -1: a test split's "none"
    if not pictures:
        raise InputError(f"{spec} has no rows")
    labels = sorted({picture.label for picture in pictures} - {NO_TARGET})
    return Found(pictures, {label: str(label) for label in labels})


def _image_column(row: dict[str, Any], asked: str | None, where: str) -> str:
    found = [name for name, value in row.items() if isinstance(value, Image.Image)]
    columns = ", ".join(row) or "none"
    if asked is not None and asked not in row:
        raise InputError(f"{where} has no column '{asked}'; columns found: {columns}")
    candidates = [asked] if asked is not None else [*(name for name in IMAGE_COLUMNS if name in found), *found]
    if not candidates:
        raise InputError(f"{where} has no column of pictures; columns found: {columns}; name one with #COLUMN")
    return candidates[0]
