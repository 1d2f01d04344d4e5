"""Small models trained from nothing or further, stored in several types, their zero modes counted on the way."""

from lesion.studies.training.configurations import ARCHITECTURES
from lesion.studies.training.loop import Progress
from lesion.studies.training.recipe import Keeping, Recipe
from lesion.studies.training.train import finetune, last_model, pretrain

__all__ = ["ARCHITECTURES", "Keeping", "Progress", "Recipe", "finetune", "last_model", "pretrain"]
