"""From names of tensors in files to names of parameters in the model, as transformers loads them."""

from collections.abc import Callable
from typing import Any


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
