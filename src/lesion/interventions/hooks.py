"""The one door to hooks: everything that reaches into a running model is put in place, counted and removed here."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lesion.anatomy.family import Side
from lesion.errors import InterventionError

Operator = Callable[[Tensor], Tensor]
"""A pure function from the tensor at a site to the tensor that takes its place."""


@dataclass(frozen=True)
class Hook:
    """An operator at one side of a module; `label` names the site in errors."""

    module: nn.Module
    side: Side
    operator: Operator
    label: str


@contextlib.contextmanager
def hooked(hooks: Sequence[Hook]) -> Iterator[None]:
    """Puts operators in the path of tensors while the context lasts; removes them also after an exception.

    On one side of one module, operators apply in the given order.

    Raises:
        InterventionError: on leaving without an exception, where an operator never fired.
    """
    fired = [0] * len(hooks)
    handles = []
    try:
        for index, hook in enumerate(hooks):
            handles.append(_register(hook, index, fired))
        yield
    finally:
        for handle in handles:
            handle.remove()
    silent = [hook.label for hook, count in zip(hooks, fired, strict=True) if not count]
    if silent:
        raise InterventionError(f"nothing passed through {', '.join(silent)}: so it did nothing")


def _register(hook: Hook, index: int, fired: list[int]) -> Any:
    def before(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        fired[index] += 1
        if arguments:
            return (hook.operator(arguments[0]), *arguments[1:]), keywords
        return arguments, {**keywords, "hidden_states": hook.operator(keywords["hidden_states"])}

    def operate(tensor: Tensor) -> Tensor:
        changed = hook.operator(tensor)
        return changed.clone() if hook.side == "overwritten" else changed  # what the operator saw stays as it was

    def after(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        fired[index] += 1
        if isinstance(output, tuple):
            return (operate(output[0]), *output[1:])
        return operate(output)

    if hook.side == "input":
        return hook.module.register_forward_pre_hook(before, with_kwargs=True)
    return hook.module.register_forward_hook(after)


@contextlib.contextmanager
def forwards_replaced(replacements: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Gives modules another `forward` while the context lasts.

    What was there before comes back, also after an exception.
    """
    before = {module: module.__dict__.get("forward") for module in replacements}
    try:
        for module, forward in replacements.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, original in before.items():
            if original is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = original


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout is off while the context lasts; modules that were in training mode return to it."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True
