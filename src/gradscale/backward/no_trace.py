"""A user's backward function called once more, without a trace: or not at all, with the reason."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradscale.random_state import RandomState

Given = Sequence[Tensor | None]
Returned = dict[int, Tensor]

_COMMUNICATION = ("c10d", "_c10d_functional", "_c10d_functional_autograd")
# Ops that update running statistics in place though their schema does not say so.
_STATISTICS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")


class LeavesTrace(Exception):
    """Why a function cannot be called once more: the words for "it is not probed, because …"."""


def call_again(node: Any, gradients: Sequence[Given]) -> list[Returned]:
    """What a function's node returns for each of several gradients, before it is really called.

    Random generators, the function's context and every tensor that exists already are as before;
    what would write to one of them, talk to another process or run a backward pass is stopped.
    State that its author keeps elsewhere in Python, such as a counter, is not known.

    Args:
        node: of a custom function in Python, about to run: its saved tensors are still there.
        gradients: for each call one tensor for each of its inputs; made for the call, and its own.

    Returns:
        For each call the tensors that it returned, by the number of the node's output.

    Raises:
        LeavesTrace: it cannot be called without a trace, or not at all.
    """
    _refuse_unsuitable(node)
    kept = dict(node.__dict__)
    state = RandomState()
    try:
        with torch.no_grad(), _no_backward_inside():
            results: list[Returned] = []
            for given in gradients:
                state.restore()
                with _OwnMemoryOnly(given):
                    results.append(_returned(node, given))
            return results
    except LeavesTrace:
        raise
    except Exception as error:
        raise LeavesTrace(f"it raised {type(error).__name__}: {error}") from error
    finally:
        state.restore()
        node.__dict__.clear()
        node.__dict__.update(kept)


def _refuse_unsuitable(node: Any) -> None:
    written: Any = getattr(node, "_forward_cls", None)
    if written is None:
        raise LeavesTrace("it is written in C++")
    if torch.is_grad_enabled():
        raise LeavesTrace("its gradient is being differentiated")
    if getattr(written, "clear_saved_tensors_on_access", False):
        raise LeavesTrace("it gives its saved tensors away as it reads them")
    unknown = object()
    # Behind a hook (checkpointing, offloading) a tensor can be read once, by the real call.
    if any(getattr(s, "unpack_hook", unknown) is not None for s in node._raw_saved_tensors or ()):
        raise LeavesTrace("its saved tensors are behind a hook, as under checkpointing")


def _returned(node: Any, given: Given) -> Returned:
    returned: Any = node.apply(*given)
    every: Sequence[Any] = returned if isinstance(returned, tuple | list) else (returned,)
    # The function returns something for each argument, the node for each argument that is a tensor.
    arguments = [i for i, needed in enumerate(node.needs_input_grad) if needed]
    outputs = [i for i, (target, _) in enumerate(node.next_functions) if target is not None]
    pairs = zip(outputs, arguments, strict=True)
    return {out: every[i] for out, i in pairs if every[i] is not None}


@contextmanager
def _no_backward_inside() -> Generator[None]:
    """A pass of its own would accumulate into leaves that no walk knows."""
    original, mine = torch.autograd.backward, threading.get_ident()

    def refuse(*args: Any, **kwargs: Any) -> None:
        if threading.get_ident() == mine:
            raise LeavesTrace("it runs a backward pass of its own")
        original(*args, **kwargs)

    torch.autograd.backward = refuse
    try:
        yield
    finally:
        torch.autograd.backward = original


class _OwnMemoryOnly(TorchDispatchMode):
    """Stops what writes to memory that was there before, or talks to other processes."""

    def __init__(self, given: Given) -> None:
        super().__init__()
        self._own = _memory_of(given)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace in _COMMUNICATION:
            raise LeavesTrace("it talks to other ranks")
        if func._schema.name.rpartition("::")[2] in _STATISTICS and args[3] is not None:
            raise LeavesTrace("it may update running statistics")
        if not _memory_of(_written(func, args, kwargs)) <= self._own:
            raise LeavesTrace("it writes to a tensor that outlives it")
        result = func(*args, **kwargs)
        # What shares memory with an argument is a view: its memory is not new.
        self._own |= _memory_of(tree_leaves(result)) - _memory_of(tree_leaves((args, kwargs)))
        return result


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    written: list[Any] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            named = kwargs.get(argument.name)
            written += tree_leaves(args[place] if place < len(args) else named)
    return written


def _memory_of(values: Iterable[Any]) -> set[int]:
    try:
        return {v.untyped_storage()._cdata for v in values if isinstance(v, Tensor)}
    except (NotImplementedError, RuntimeError) as error:
        raise LeavesTrace("it works on tensors without plain memory") from error


Multiply = Callable[[Tensor], Tensor]


def gradients_for(node: Any, arrived: Given, multiply: Multiply) -> list[Tensor | None]:
    """Copies of what arrived, multiplied; zeros in the place of what did not arrive.

    Raises:
        LeavesTrace: what arrived is no plain dense tensor.
    """
    made: list[Tensor | None] = []
    for gradient, expected in zip(arrived, node._input_metadata, strict=True):
        if gradient is None:
            size, kind = tuple(expected.shape), expected.dtype
            made.append(torch.zeros(size, dtype=kind, device=expected.device))
        elif type(gradient) is not Tensor or gradient.layout != torch.strided:
            raise LeavesTrace("it receives no plain dense tensor")
        else:
            made.append(multiply(gradient.detach()))
    return made
