"""Packed (quantised) weights: codes that mean nothing without their scales.

A model whose checkpoint was packed by bitsandbytes runs, so what it computes can be studied; its weights cannot.
"""

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from torch import nn

from lesion.errors import ModelError

METHOD = "bitsandbytes"
LIBRARIES = ("bitsandbytes", "accelerate")
"""What transformers needs to unpack with that method: the extra `[quant]`."""


def packing_of(config: Any) -> str | None:
    """The method by which a model's weights are packed, read from its configuration, or None."""
    packing = getattr(config, "quantization_config", None)
    if packing is None:
        return None
    method = _asked(packing, "quant_method")
    return str(getattr(method, "value", method))


def reason_against(packing: Any) -> str | None:
    """Why a model with this `quantization_config` (as stored, or transformers' object) cannot be studied, or None."""
    if not isinstance(packing, Mapping) and not hasattr(packing, "quant_method"):
        return f"its quantization_config is {packing!r}, which describes no packing"
    method = _asked(packing, "quant_method")
    method = getattr(method, "value", method)
    if method != METHOD:
        return f"its weights are packed (quantised) by {method}; of packed weights only those of {METHOD} are read"
    if not _asked(packing, "load_in_8bit"):
        return None
    if _asked(packing, "llm_int8_threshold", 6.0) > 0:
        return (
            "its 8-bit layers treat outliers of a whole call together (llm_int8_threshold), so that a token's numbers "
            "depend on what else is computed with it; set llm_int8_threshold to 0 in its config.json, or use 4 bits"
        )
    if _asked(packing, "llm_int8_has_fp16_weight"):
        return "its 8-bit layers hold weights of 16 bits (llm_int8_has_fp16_weight); use the unpacked checkpoint"
    return None


def refuse_without_libraries(name: object) -> None:
    """Raises ModelError where a library is missing without which packed weights cannot be loaded."""
    if missing := [library for library in LIBRARIES if find_spec(library) is None]:
        raise ModelError(
            f"{name} holds packed (quantised) weights, and {' and '.join(missing)} is not installed; "
            "run: pip install 'lesion[quant]'"
        )


def keep_float32(model: nn.Module) -> None:
    """Makes packed layers on a CPU compute in the dtype that was asked for.

    On some CPUs bitsandbytes would repack weights at the first call and multiply in bfloat16 whatever the dtype: 5 % of
    the largest logit on a tiny LLaMA, and other numbers on another machine.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


class _Once(logging.Filter):
    """Lets a message pass the first time."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this is news."""
        message = record.getMessage()
        news = message not in self._said
        self._said.add(message)
        return news


def say_once() -> None:
    """Keeps bitsandbytes from repeating at every call that 8-bit layers round their input to float16 first."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    if not any(isinstance(known, _Once) for known in logger.filters):
        logger.addFilter(_Once())


def _asked(packing: Any, name: str, default: Any = None) -> Any:
    return packing.get(name, default) if isinstance(packing, Mapping) else getattr(packing, name, default)
