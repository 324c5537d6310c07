"""Everything in a wider format: autocast, casts to half and emulation are undone as they happen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from gradscale.emulation import suspended

NARROW = (torch.float16, torch.bfloat16)


@contextmanager
def wider(dtype: torch.dtype = torch.float32) -> Generator[None]:
    """What is computed inside is computed in `dtype` where it would have been in half precision.

        torch.autocast, entered outside or inside     off; with bfloat16: to bfloat16
        x.half(), x.to(torch.float16), dtype=…        to `dtype`
        a half-precision tensor that meets a function is read in `dtype`
        gradscale.emulation.emulate                   suspended
        torch.compile                                 runs eagerly, because its casts are inside

    Parameters and buffers are the caller's to convert: see `untouched`.

    Args:
        dtype: float32, or bfloat16, which has float32's range at half the memory.

    Example:
        >>> with wider(), torch.autocast("cpu", torch.float16):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2).half()).dtype
        torch.float32
    """
    with ExitStack() as stack:
        stack.enter_context(eagerly())
        stack.enter_context(suspended())
        if dtype != torch.float32:
            for kind in _device_types():
                stack.enter_context(torch.autocast(kind, dtype))
        stack.enter_context(_Wider(dtype))
        yield


def eagerly() -> AbstractContextManager[object]:
    """Compiled code runs as it was written: what is inside a graph is seen by nobody."""
    # Whoever compiled something has loaded this; nobody else need wait for it.
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


class _Wider(TorchFunctionMode):
    """Sees every call of torch from Python, above autocast and above autograd."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._narrow = tuple(kind for kind in NARROW if kind != dtype)
        single = dtype == torch.float32
        method = Tensor.float if single else Tensor.bfloat16
        self._methods: dict[Callable[..., object], Callable[..., object]] = {Tensor.half: method}
        if single:
            self._methods[Tensor.bfloat16] = method

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        del types
        # What is written to stays: a wider copy would be written to in its place.
        kept = 1 if _writes(func) else 0
        read = [tree_map(self._widened, value) for value in args[kept:]]
        named = {
            name: value if name == "out" else tree_map(self._widened, value)
            for name, value in (kwargs or {}).items()
        }
        with _autocast(self._dtype):
            return self._methods.get(func, func)(*args[:kept], *read, **named)

    def _widened(self, value: object) -> object:
        if isinstance(value, Tensor):
            return value.to(self._dtype) if value.dtype in self._narrow else value
        if isinstance(value, torch.dtype):
            return self._dtype if value in self._narrow else value
        return value


def _writes(func: Callable[..., object]) -> bool:
    """Whether a function changes its first argument, which then must stay the caller's own."""
    name = getattr(func, "__name__", "")
    return name in ("__set__", "__setitem__") or (name.endswith("_") and not name.endswith("__"))


def _device_types() -> list[str]:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ["cpu"] if found is None else ["cpu", found.type]


@contextmanager
def _autocast(dtype: torch.dtype) -> Generator[None]:
    """Autocast off, or to another dtype, for one call; without entering or leaving a context."""
    kinds = _device_types()
    before = [(torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds]
    for kind, (enabled, chosen) in zip(kinds, before, strict=True):
        torch.set_autocast_enabled(kind, enabled and dtype in NARROW)
        torch.set_autocast_dtype(kind, dtype if dtype in NARROW else chosen)
    try:
        yield
    finally:
        for kind, (enabled, chosen) in zip(kinds, before, strict=True):
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, chosen)
