"""Text and images as batches that a model is called with."""

from lesion.data.batches import Batch, plan_batches
from lesion.data.images import ImageData, load_images
from lesion.data.text import TextData
from lesion.data.tokens import load_text

__all__ = ["Batch", "ImageData", "TextData", "load_images", "load_text", "plan_batches"]
