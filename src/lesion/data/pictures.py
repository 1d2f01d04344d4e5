"""Where pictures come from: embedded digits, a folder, or a dataset of the hub."""

import hashlib
import io
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from lesion.data.batches import NO_TARGET
from lesion.data.documents import hash_order
from lesion.data.hub import parse_hub_spec, stream_rows
from lesion.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
IMAGE_COLUMNS = ("image", "img", "picture", "photo")
LABEL_COLUMNS = ("label", "labels", "fine_label")


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


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def embedded_digits(n_images: int | None) -> tuple[list[Picture], list[str]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = []
    for index, (image, label) in enumerate(zip(digits.images[:n_images], digits.target, strict=False)):
        grey = np.round(image * (255 / 16)).astype(np.uint8)
        pictures.append(Picture(f"digit {index}", _png(Image.fromarray(grey)), int(label)))
    return pictures, [str(label) for label in digits.target_names]


def folder_pictures(folder: Path, n_images: int | None, seed: int) -> tuple[list[Picture], list[str]]:
    if not folder.is_dir():
        raise InputError(f"there is no folder '{folder}'; images are digits, a folder, or hf:ID[:CONFIG][@SPLIT]")
    direct = _image_files(folder.iterdir())
    classes = [] if direct else sorted(path.name for path in folder.iterdir() if path.is_dir())
    found = [(path, NO_TARGET) for path in direct]
    for label, name in enumerate(classes):
        found += [(path, label) for path in _image_files((folder / name).rglob("*"))]
    if not found:
        raise InputError(f"the folder {folder} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))})")
    found.sort(key=lambda item: hash_order(item[0].relative_to(folder).as_posix(), salt=str(seed)))
    return [Picture(str(path), path, label) for path, label in found[:n_images]], classes


def _image_files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def hub_pictures(data: str, n_images: int | None) -> tuple[list[Picture], list[str]]:
    spec = parse_hub_spec(data)
    pictures: list[Picture] = []
    column = label_column = None
    for number, row in enumerate(itertools.islice(stream_rows(spec), n_images), start=1):
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
    return pictures, [str(label) for label in sorted({picture.label for picture in pictures} - {NO_TARGET})]


def _image_column(row: dict[str, Any], asked: str | None, where: str) -> str:
    found = [name for name, value in row.items() if isinstance(value, Image.Image)]
    columns = ", ".join(row) or "none"
    if asked is not None and asked not in row:
        raise InputError(f"{where} has no column '{asked}'; columns found: {columns}")
    candidates = [asked] if asked is not None else [*(name for name in IMAGE_COLUMNS if name in found), *found]
    if not candidates:
        raise InputError(f"{where} has no column of pictures; columns found: {columns}; name one with #COLUMN")
    return candidates[0]
