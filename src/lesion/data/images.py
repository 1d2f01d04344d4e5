"""Pictures as a model sees them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from lesion.data.batches import NO_TARGET, Batch
from lesion.data.documents import expanded, shown_name
from lesion.data.hub import parse_hub_spec
from lesion.data.pictures import DIGITS, Picture, embedded_digits, folder_pictures, hub_pictures
from lesion.data.sources import split_name
from lesion.errors import InputError

ImageProcessor = Any  # a transformers image processor; transformers is not imported for its name
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Preparation:
    """From encoded pictures to normalised pixels."""

    size: int
    channels: int
    processor: ImageProcessor | None

    def pixels(self, pictures: Sequence[Picture]) -> Float[Tensor, "batch channel height width"]:
        images = [picture.decoded(MODES[self.channels]) for picture in pictures]
        if self.processor is None:
            resized = [image.resize((self.size, self.size), Image.Resampling.BILINEAR) for image in images]
            values = np.stack([np.asarray(image, dtype=np.float32) for image in resized]) / 255
            values = values.reshape(len(images), self.size, self.size, self.channels).transpose(0, 3, 1, 2)
            return torch.from_numpy(np.ascontiguousarray((values - 0.5) / 0.5))
        pixels: Tensor = self.processor(images=images, return_tensors="pt")["pixel_values"]
        expected = (len(images), self.channels, self.size, self.size)
        if tuple(pixels.shape) != expected:
            raise InputError(
                f"the image processor {type(self.processor).__name__} gives pixels of shape {tuple(pixels.shape)}, "
                f"the model expects {expected}; use the processor that belongs to the model"
            )
        return pixels

    def describe(self) -> dict[str, Any]:
        processor = None if self.processor is None else json.loads(self.processor.to_json_string())
        return {"size": self.size, "channels": self.channels, "processor": processor}


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images of one domain, each a document of one output; the same interface as `TextData`.

    Attributes:
        domains: the name of the one domain.
        domain_of: zeros.
        lengths: ones: an image counts once.
        objective: `image`.
        fingerprint: SHA-256 over the encoded images, their labels, and how they are prepared.
        description: what was read and how; JSON can hold it.
    """

    domains: tuple[str, ...]
    domain_of: Int[np.ndarray, "document"]
    lengths: Int[np.ndarray, "document"]
    fingerprint: str
    description: dict[str, Any]
    _pictures: tuple[Picture, ...]
    _prepare: Preparation
    objective: Literal["image"] = "image"

    @property
    def n_documents(self) -> int:
        """How many images."""
        return len(self._pictures)

    @property
    def n_tokens(self) -> int:
        """How many images, too: what counts is one output an image."""
        return len(self._pictures)

    @property
    def largest_label(self) -> int:
        """The greatest label, -100 where there are none."""
        return max(picture.label for picture in self._pictures)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Images as one batch; targets are the labels, -100 where there are none; every output is kept.

        Raises:
            InputError: no indices, one that is out of range, or an image that can no longer be read.
        """
        wrong = [index for index in indices if not 0 <= index < self.n_documents]
        if wrong or len(indices) == 0:
            raise InputError(f"a batch needs images from 0 to {self.n_documents - 1}; asked for {wrong or 'none'}")
        pictures = [self._pictures[index] for index in indices]
        labels = torch.tensor([[picture.label] for picture in pictures])
        return Batch(
            ids=None,
            pixels=self._prepare.pixels(pictures),
            mask=None,
            keep=torch.ones_like(labels, dtype=torch.bool),
            targets=labels,
            documents=torch.tensor([int(index) for index in indices]),
            domains=torch.zeros(len(indices), dtype=torch.int64),
        )


def load_images(
    spec: str,
    *,
    size: int,
    channels: int,
    processor: ImageProcessor | None = None,
    n_images: int | None = None,
    seed: int = 0,
    id2label: Mapping[int, str] | None = None,
) -> ImageData:
    """Finds images and checks that each can be decoded; they are decoded again when a batch is made.

    Args:
        spec: `digits` (scikit-learn's, labels 0-9; `digits:train` and `digits:test` are the first 1437 and the last
            360 of them), a folder (images in it: no labels; its sub-folders: the classes), or
            `hf:ID[:CONFIG][@SPLIT][#COLUMN]`; `name=` in front gives the domain a name. Where some images have labels
            and others have not, those without are left out, and a note says so.
        size: height and width that the model expects.
        channels: 1 (grey) or 3 (colour) that the model expects.
        processor: a `transformers` image processor; without one, bilinear resize to `size` and (x - 0.5) / 0.5.
        n_images: how many; None takes all.
        seed: of the order of a folder's images; digits and hub datasets keep theirs.
        id2label: the names of the model's classes, which sub-folders are matched with (`pictures.class_labels`).

    Raises:
        InputError: nothing there, no images, a corrupt one (named), folders of which only some are named after
            classes, or a processor that does not fit the model.
    """
    if channels not in MODES or size < 1 or (n_images is not None and n_images < 1):
        raise InputError(f"images of {channels} channels and size {size}, {n_images} of them; channels must be 1 or 3")
    name, data = split_name(spec)
    if data in DIGITS:
        found = embedded_digits(data, n_images)
    elif data.startswith("hf:"):
        found = hub_pictures(data, n_images).labelled()
    else:
        found = folder_pictures(expanded(data), n_images, seed, id2label)
    pictures = found.pictures
    preparation = Preparation(size, channels, processor)
    digest = hashlib.sha256(json.dumps(preparation.describe(), sort_keys=True).encode())
    with ThreadPoolExecutor() as threads:
        for content in threads.map(lambda picture: picture.digest(MODES[channels]), pictures):
            digest.update(content)
    data_object = ImageData(
        domains=(name or _default_name(data),),
        domain_of=np.zeros(len(pictures), dtype=np.int64),
        lengths=np.ones(len(pictures), dtype=np.int64),
        fingerprint=digest.hexdigest(),
        description={
            "specs": [[name or _default_name(data), data]],
            "n_images": len(pictures),
            "n_labelled": sum(picture.label != NO_TARGET for picture in pictures),
            "classes": [found.classes[label] for label in sorted(found.classes)],
            "labels": sorted(found.classes),
            "notes": found.notes,
            "seed": seed,
            **preparation.describe(),
        },
        _pictures=tuple(pictures),
        _prepare=preparation,
    )
    data_object.batch([0])  # a processor that does not fit the model is found here, not in the middle of a run
    return data_object


def _default_name(data: str) -> str:
    if data.startswith("hf:"):
        return parse_hub_spec(data).id.rpartition("/")[2]
    return data if data in DIGITS else shown_name(expanded(data).resolve())
