"""Kernels that make CPU autocast treat operations as CUDA's does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from gradscale.emulation import cuda_lists
from gradscale.emulation.kernel import Kernel
from gradscale.emulation.mode import current_mode
from gradscale.nested_tensors import tensors_in

_KEY = "AutocastCPU"
_AUTOCAST = torch._C.DispatchKey.AutocastCPU
_EXCLUDED = torch._C.DispatchKeySet(_AUTOCAST)
_FORWARDED = torch._C.DispatchKeySet(_AUTOCAST)

Policy = Callable[..., Any]


def autocast_kernels() -> Iterator[Kernel]:
    """One kernel for every operation that CUDA lists and CPU autocast lacks or treats otherwise."""
    for names, policy in _POLICIES:
        for name in names:
            op = operation(name)
            if op is not None and _missing(name, op):
                yield Kernel(name, _KEY, _kernel(op, policy))


def operation(name: str) -> Any:
    """The overload called `name`, such as `"softmax.int"`, or None where torch has none."""
    base, _, overload = name.partition(".")
    packet = getattr(torch.ops.aten, base, None)
    return getattr(packet, overload or "default", None)


def _missing(name: str, op: Any) -> bool:
    if name in cuda_lists.OVERRIDDEN:
        return True
    return not torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), _KEY)


def _kernel(op: Any, policy: Policy) -> Callable[..., Any]:
    listed_on_cpu = torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), _KEY)

    def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        if current_mode() is None:
            return _as_before(op, listed_on_cpu, keyset, args, kwargs)
        with torch._C._ExcludeDispatchKeyGuard(_EXCLUDED):
            return policy(op, args, kwargs)

    return kernel


def _as_before(
    op: Any, listed_on_cpu: bool, keyset: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What CPU autocast does in a thread that does not emulate: float32 if listed, else nothing."""
    if not listed_on_cpu:
        return op.redispatch(keyset - _FORWARDED, *args, **kwargs)
    with torch._C._ExcludeDispatchKeyGuard(_EXCLUDED):
        return _in_float32(op, args, kwargs)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return tree_map_only(Tensor, lambda it: it.to(dtype) if _eligible(it) else it, values)


def _eligible(tensor: Tensor) -> bool:
    return (
        tensor.is_floating_point() and tensor.dtype != torch.float64 and tensor.device.type == "cpu"
    )


def _call(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> Any:
    return op(*_cast(args, dtype), **_cast(kwargs, dtype))


def _in_lower_precision(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _call(op, args, kwargs, torch.get_autocast_dtype("cpu"))


def _in_float32(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _call(op, args, kwargs, torch.float32)


def _with_float32_result(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    names = [argument.name for argument in op._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    if _eligible(args[0]) and given.get("dtype") is None:
        position = names.index("dtype")
        args = (
            (*args[:position], torch.float32, *args[position + 1 :])
            if len(args) > position
            else args
        )
        if len(args) <= position:
            kwargs = kwargs | {"dtype": torch.float32}
    return op(*args, **kwargs)


def _with_float32_appended(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not _eligible(args[0]):
        return op(*args, **kwargs)
    wider = operation(cuda_lists.FLOAT32_APPENDED[_overload_name(op)])
    names = [argument.name for argument in op._schema.arguments]
    defaults = {a.name: a.default_value for a in op._schema.arguments if a.has_default_value()}
    given = defaults | dict(zip(names, args, strict=False)) | kwargs
    return wider(*(given[name] for name in names), dtype=torch.float32)


def _overload_name(op: Any) -> str:
    return op.name().removeprefix("aten::")


def _in_widest(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    lower = torch.get_autocast_dtype("cpu")
    found = {tensor.dtype for tensor in tensors_in((args, kwargs)) if _eligible(tensor)}
    return _call(op, args, kwargs, torch.float32 if found - {lower} else lower)


def _refused(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise RuntimeError(
        "`binary_cross_entropy` is refused under autocast, as on CUDA: its input is a probability "
        "that float16 has rounded. Pass the logits to `binary_cross_entropy_with_logits`, or leave "
        "autocast and call `.float()` on the input."
    )


_POLICIES: tuple[tuple[Any, Policy], ...] = (
    (cuda_lists.LOWER_PRECISION, _in_lower_precision),
    (cuda_lists.RECURRENT, _in_lower_precision),
    (cuda_lists.FLOAT32, _in_float32),
    (cuda_lists.FLOAT32_RESULT, _with_float32_result),
    (tuple(cuda_lists.FLOAT32_APPENDED), _with_float32_appended),
    (cuda_lists.PROMOTE, _in_widest),
    (cuda_lists.BANNED, _refused),
)
