"""From names of tensors in files to names of parameters in the model, as transformers loads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lesion.anatomy.files import weight_files
from lesion.anatomy.streaming import StoredTensor, stored_tensors
from lesion.errors import LesionError


def renaming(model: Any) -> Callable[[str], str]:
    """A function from a name in a checkpoint's files to the name that the model has for it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping, state = get_model_conversion_mapping(model), model.state_dict()
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]

    def renamed(name: str) -> str:
        found: str = rename_source_key(name, renamings, converters, model.base_model_prefix, state)[0]
        return name if found not in state and name in state else found

    return renamed


def stored_parameters(model: Any) -> dict[str, StoredTensor]:
    """The tensors in the files that a model was loaded from, by its own names; only headers are read.

    Empty for a model that was not loaded from a folder with safetensors files. What the files hold need not be what
    the model has in memory by now.
    """
    folder = Path(str(getattr(model, "name_or_path", "") or "."))
    if not (folder / "config.json").is_file():
        return {}
    try:
        found = stored_tensors(weight_files(folder, allow_pickle=False))
    except LesionError:
        return {}
    renamed = renaming(model)
    return {renamed(name): tensor for name, tensor in found.items()}
