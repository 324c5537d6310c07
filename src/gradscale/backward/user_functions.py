"""Which backward nodes torch did not write: what they do to their gradient is not known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

import torch

# Theirs are linear: copies, casts, communication, recomputation, products.
_TRUSTED = ("torch.", "gradscale.")
# Here torch wraps what a user registered with `custom_op(…).register_autograd(…)`, and what is
# called within `torch.func`.
_WRAPPED = ("torch._library.", "torch._functorch.autograd_function.")
Function: TypeAlias = type[torch.autograd.Function] | str
"""A custom function, as its class or by name."""
_FROM_C = "CppNode<"


def is_custom(node: Any, name: str) -> bool:
    """Whether a live node is that of a custom function, in Python or C++, by whoever wrote it.

    Args:
        node: the node.
        name: what autograd calls it.
    """
    return _FROM_C in name or isinstance(node, torch.autograd.function.BackwardCFunction)


def is_users(node: Any) -> bool:
    """Whether neither torch nor this library wrote a custom function's node.

    Example:
        >>> class Double(torch.autograd.Function):
        ...     __module__ = "mine"
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         return x * 2
        ...     @staticmethod
        ...     def backward(ctx, grad):
        ...         return grad * 2
        >>> is_users(Double.apply(torch.ones(1, requires_grad=True)).grad_fn)
        True
    """
    written: Any = getattr(node, "_forward_cls", None)
    if written is None:
        return True
    module = f"{written.__module__}."
    return module.startswith(_WRAPPED) or not module.startswith(_TRUSTED)


def function_name(node: Any) -> str:
    """What its author calls the function of a node, without what torch puts around it."""
    written: Any = getattr(node, "_forward_cls", None)
    name = node.name().partition(_FROM_C)[2].rstrip(">") if written is None else written.__name__
    return name.removeprefix("GeneratedBackwardFor_").removesuffix("Generated")


def is_one_of(node: Any, functions: Sequence[Function]) -> bool:
    """Whether a node's function is among these, given as classes or by name."""
    written: Any = getattr(node, "_forward_cls", None)
    return written in functions or function_name(node) in functions


def functions_given(given: object, call: str) -> tuple[Function, ...]:
    """Functions that a user has named.

    Args:
        given: what was passed.
        call: how, with a pair of braces in its place.

    Raises:
        TypeError: if that is one alone, or holds anything else.

    Example:
        >>> functions_given(["Double"], "Layerwise(linear={})")
        ('Double',)
    """
    several = isinstance(given, Iterable) and not isinstance(given, str | type)
    functions = tuple(cast("Iterable[object]", given)) if several else ()
    if not several or not all(map(_is_function, functions)):
        raise TypeError(
            f"`{call.format(repr(given))}` must be several `torch.autograd.Function`s, as classes "
            "or by name, such as `[MyFunction]`."
        )
    return cast("tuple[Function, ...]", functions)


def _is_function(one: object) -> bool:
    return isinstance(one, str) or (
        isinstance(one, type) and issubclass(one, torch.autograd.Function)
    )
