"""What a Hugging Face model is made of."""

from lesion.anatomy.anatomy import Anatomy, dissect, refuse_packed
from lesion.anatomy.family import SITES, Family, known_families
from lesion.anatomy.load import Loading, Model, adopt, load
from lesion.anatomy.source import resolve, zoo_models

__all__ = [
    "SITES",
    "Anatomy",
    "Family",
    "Loading",
    "Model",
    "adopt",
    "dissect",
    "known_families",
    "load",
    "refuse_packed",
    "resolve",
    "zoo_models",
]
