"""Normalisation in float32 that keeps its input for the backward pass in half precision.

A float32 copy of the input is what such a layer computes with, and would keep: 4 bytes where the
half-precision tensor, of which it is an exact copy, has 2 and often is there anyway. So the half
one is kept and converted again. Batch normalisation needs no copy: torch's own kernels read half
precision, and compute and keep statistics in float32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from gradscale.half.casting import cast_to
from gradscale.half.rounding import floating

_MIXED_DEVICES = ("cpu", "cuda")
Outer = tuple[Callable[[Tensor], object], Callable[[object], Tensor]]
"""Hooks that pack what is saved and unpack it again."""

_top_hooks = cast(
    "Callable[[bool], Outer | None]",
    cast(Any, torch._C)._autograd._top_saved_tensors_default_hooks,  # the stubs know no `_autograd`
)
_running = threading.local()


class NormReads:
    """A forward pre-hook: the input in float32, unless the layer reads half precision itself."""

    def __call__(self, module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
        """The inputs, cast."""
        keeping: _Keeping | None = None
        result = args
        given = args[0] if args else None
        if not (isinstance(given, Tensor) and _reads_half(module, given)):
            result = tuple([cast_to(argument, torch.float32) for argument in args])
            wide = result[0] if args else None
            if isinstance(given, Tensor) and isinstance(wide, Tensor) and wide is not given:
                keeping = _Keeping(given, wide) if _may_keep(given) else None
        if not torch.compiler.is_compiling():  # a compiler decides by itself what it keeps
            _stack().append((id(module), keeping))
        return result


class NormReturns:
    """A forward hook, called after errors as well: outputs cast back to half precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: object, output: object) -> object:
        """The output, cast."""
        del args
        stack = _stack()
        if not torch.compiler.is_compiling() and stack and stack[-1][0] == id(module):
            _, keeping = stack.pop()
            if keeping is not None:
                keeping.end()
        return cast_to(output, self.dtype)


class _Kept(NamedTuple):
    """What stands for the float32 copy: the original, and its count of in-place changes."""

    original: object
    version: int


class _Keeping:
    """While a layer runs: whoever saves the float32 copy saves the half-precision original.

    Hooks that are at work already, such as a checkpoint's, are given the original in its place.
    """

    def __init__(self, original: Tensor, copy: Tensor) -> None:
        self._original = original.detach()
        self._version = original._version
        self._copy: Tensor | None = copy.detach()
        self._outer = _top_hooks(False)
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()

    def end(self) -> None:
        """The layer has run."""
        self._hooks.__exit__()
        self._copy = None

    def _pack(self, tensor: Tensor) -> object:
        original = self._original_of(tensor)
        saved = tensor if original is None else original
        packed = saved if self._outer is None else self._outer[0](saved)
        return packed if original is None else _Kept(packed, self._version)

    def _original_of(self, tensor: Tensor) -> Tensor | None:
        """What stands for a saved tensor, if that is the float32 copy or another shape of it."""
        copy = self._copy
        # By address, because a layer saves views of what it was given, which are other objects.
        if copy is None or tensor.dtype != copy.dtype or tensor.data_ptr() != copy.data_ptr():
            return None
        if tensor.shape == copy.shape and tensor.stride() == copy.stride():
            return self._original
        dense = tensor.is_contiguous() and self._original.is_contiguous()
        same = dense and tensor.numel() == copy.numel()
        return self._original.view(tensor.shape) if same else None

    def _unpack(self, packed: object) -> Tensor:
        kept = packed if isinstance(packed, _Kept) else None
        saved = packed if kept is None else kept.original
        tensor = cast(Tensor, saved) if self._outer is None else self._outer[1](saved)
        if kept is None:
            return tensor
        if self._outer is None and tensor._version != kept.version:
            raise RuntimeError(
                "the input of a normalisation layer was modified by an inplace operation after "
                "the layer had read it, and its backward pass needs it. Modify a copy: `x.clone()`."
            )
        return tensor.to(torch.float32)


def _stack() -> list[tuple[int, _Keeping | None]]:
    if not hasattr(_running, "stack"):
        _running.stack = []
    return _running.stack


def _reads_half(module: nn.Module, given: Tensor) -> bool:
    mixed = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return mixed and given.dtype.itemsize == 2 and given.device.type in _MIXED_DEVICES


def _may_keep(given: Tensor) -> bool:
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return type(given) is Tensor and floating(given) and given.dtype.itemsize == 2
