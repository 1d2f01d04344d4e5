"""Find out what the parts of a transformer do, by taking them away and by watching them fire."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lesion.anatomy import Loading, load
    from lesion.checkpoints.masks import Masks
    from lesion.data import load_images, load_text
    from lesion.errors import LesionError
    from lesion.interventions import Intervention, combine, drop, drop_attn, drop_mlp, parse, set_weights, swap
    from lesion.studies import training, zero_modes
    from lesion.studies.check import check
    from lesion.studies.copying import copying
    from lesion.studies.layers import layers
    from lesion.studies.setting import Outcome, Reading

_HOMES = {
    "Intervention": "lesion.interventions",
    "LesionError": "lesion.errors",
    "Loading": "lesion.anatomy",
    "Masks": "lesion.checkpoints.masks",
    "Outcome": "lesion.studies.setting",
    "Reading": "lesion.studies.setting",
    "check": "lesion.studies.check",
    "combine": "lesion.interventions",
    "copying": "lesion.studies.copying",
    "drop": "lesion.interventions",
    "drop_attn": "lesion.interventions",
    "drop_mlp": "lesion.interventions",
    "layers": "lesion.studies.layers",
    "load": "lesion.anatomy",
    "load_images": "lesion.data",
    "load_text": "lesion.data",
    "parse": "lesion.interventions",
    "set_weights": "lesion.interventions",
    "swap": "lesion.interventions",
}
_MODULES = {"training": "lesion.studies.training", "zero_modes": "lesion.studies.zero_modes"}

__all__ = [
    "Intervention",
    "LesionError",
    "Loading",
    "Masks",
    "Outcome",
    "Reading",
    "check",
    "combine",
    "copying",
    "drop",
    "drop_attn",
    "drop_mlp",
    "layers",
    "load",
    "load_images",
    "load_text",
    "parse",
    "set_weights",
    "swap",
    "training",
    "zero_modes",
]


def __getattr__(name: str) -> Any:
    """Imports torch and transformers only once something that needs them is asked for."""
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'lesion' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
