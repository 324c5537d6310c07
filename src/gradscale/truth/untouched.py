"""A model that is left as it was found: gradients, buffers, dtypes, hooks, random numbers."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from gradscale.random_state import same_random_numbers
from gradscale.truth.wider import NARROW


@contextmanager
def untouched(model: nn.Module, dtype: torch.dtype | None = None) -> Generator[None]:
    """Passes inside see copies of the buffers and no gradients; afterwards all is as before.

    The values of buffers are never written to, so that a graph which saved them stays valid.

    Args:
        model: any; what it keeps outside parameters and buffers, such as a Python counter, is not
            known to be state and stays as the passes leave it.
        dtype: hold parameters and buffers of half precision in this format meanwhile.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).half()
        >>> with untouched(model, torch.float32):
        ...     model(torch.randn(4, 2)).sum().backward()
        >>> model[0].weight.grad is None, model[1].num_batches_tracked.item(), model[0].weight.dtype
        (True, 0, torch.float16)
    """
    parameters = list(model.parameters())
    with ExitStack() as stack:
        # Gradients go before parameters change their dtype, and come back after it.
        stack.enter_context(same_random_numbers())
        stack.enter_context(_spare_buffers(model, dtype))
        stack.enter_context(no_gradients(parameters))
        if dtype is not None:
            stack.enter_context(_held_in(parameters, dtype))
        yield


@contextmanager
def no_gradients(leaves: Iterable[Tensor]) -> Generator[None]:
    """Leaves without gradients and without what runs once they have one; both come back.

    The hook that runs once a gradient is there may well be an optimizer's step.
    """
    kept = [(leaf, *_taken(leaf)) for leaf in leaves]
    try:
        yield
    finally:
        for leaf, grad, values, hooks in kept:
            leaf.grad = grad
            if grad is not None and values is not None:
                with torch.no_grad():
                    grad.copy_(values)
            if hooks:
                leaf._post_accumulate_grad_hooks.update(hooks)


def _taken(leaf: Tensor) -> tuple[Tensor | None, Tensor | None, dict[int, object]]:
    grad = leaf.grad
    # Among several ranks a gradient may be a view of a bucket that the next pass writes to.
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    values = grad.detach().clone() if grad is not None and shared else None
    leaf.grad = None
    registered: dict[int, object] | None = getattr(leaf, "_post_accumulate_grad_hooks", None)
    hooks = dict(registered or {})
    if registered:
        registered.clear()
    return grad, values, hooks


@contextmanager
def _spare_buffers(model: nn.Module, dtype: torch.dtype | None) -> Generator[None]:
    # By identity: a buffer that two modules share stays one.
    spare: dict[int, Tensor] = {}
    # Replaced in the dictionaries: what a module holds in attributes of its own stays the caller's.
    before = [(module, dict(module._buffers)) for module in model.modules()]
    for module, buffers in before:
        for name, buffer in buffers.items():
            if buffer is not None:
                copy = spare.get(id(buffer))
                copy = spare[id(buffer)] = _copied(buffer, dtype) if copy is None else copy
                module._buffers[name] = copy
    try:
        yield
    finally:
        for module, buffers in before:
            module._buffers.clear()
            module._buffers.update(buffers)


def _copied(buffer: Tensor, dtype: torch.dtype | None) -> Tensor:
    narrow = dtype is not None and buffer.dtype in NARROW
    copy = buffer.detach().clone()
    return copy.to(dtype) if narrow else copy


@contextmanager
def _held_in(parameters: Iterable[Tensor], dtype: torch.dtype) -> Generator[None]:
    narrow = [(p, p.data) for p in parameters if p.dtype in NARROW and p.dtype != dtype]
    for parameter, values in narrow:
        parameter.data = values.to(dtype)
    try:
        yield
    finally:
        for parameter, values in narrow:
            # A gradient must not differ in dtype from its parameter at any time.
            parameter.grad = None
            parameter.data = values
