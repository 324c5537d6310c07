"""Kernels that make CPU autocast treat operations as CUDA's does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TypeGuard

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from gradscale.emulation import cuda_lists
from gradscale.emulation.mode import current_mode
from gradscale.emulation.operators import Kernel, KernelFunction, Operator
from gradscale.nested_tensors import tensors_in

_KEY = "AutocastCPU"
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

Policy = Callable[..., object]
"""`policy(op, *args, **kwargs)`: `op(*args, **kwargs)` with its arguments cast."""


def autocast_kernels() -> Iterator[Kernel]:
    """One kernel for every operation that CUDA lists and CPU autocast lacks or treats otherwise."""
    for names, policy in _POLICIES:
        for name in names:
            op = operation(name)
            if op is not None and (name in cuda_lists.OVERRIDDEN or not _listed_on_cpu(op)):
                yield Kernel(name, _KEY, _kernel(op, policy))


def operation(name: str) -> Operator | None:
    """The overload called `name`, such as `"softmax.int"`, or None where torch has none."""
    base, _, overload = name.partition(".")
    packet = getattr(torch.ops.aten, base, None)
    return getattr(packet, overload or "default", None)


def _listed_on_cpu(op: Operator) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), _KEY)


def _kernel(op: Operator, policy: Policy) -> KernelFunction:
    # Asked now: once this kernel is there, the key has one.
    listed = _listed_on_cpu(op)

    def kernel(keyset: torch._C.DispatchKeySet, /, *args: object, **kwargs: object) -> object:
        if current_mode() is None and not listed:
            # A thread that does not emulate: as if there were no kernel at this key.
            return op.redispatch(keyset - _AUTOCAST, *args, **kwargs)
        # The operation itself runs below autocast, or it would come by here again.
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            # CPU autocast runs all that `OVERRIDDEN` takes over in float32.
            chosen = _in_float32 if current_mode() is None else policy
            return chosen(op, *args, **kwargs)

    return kernel


def _eligible(value: object) -> TypeGuard[Tensor]:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dtype != torch.float64
        and value.device.type == "cpu"
    )


def _cast_call(
    op: Operator, dtype: torch.dtype, args: tuple[object, ...], kwargs: dict[str, object]
) -> object:
    def cast(leaf: object) -> object:
        return leaf.to(dtype) if _eligible(leaf) else leaf

    args, kwargs = tree_map(cast, (args, kwargs))
    return op(*args, **kwargs)


def _in_lower_precision(op: Operator, /, *args: object, **kwargs: object) -> object:
    return _cast_call(op, torch.get_autocast_dtype("cpu"), args, kwargs)


def _in_float32(op: Operator, /, *args: object, **kwargs: object) -> object:
    return _cast_call(op, torch.float32, args, kwargs)


def _in_widest(op: Operator, /, *args: object, **kwargs: object) -> object:
    lower = torch.get_autocast_dtype("cpu")
    # One operand in another dtype than autocast's is enough for float32.
    found = {tensor.dtype for tensor in tensors_in((args, kwargs)) if _eligible(tensor)}
    return _cast_call(op, torch.float32 if found - {lower} else lower, args, kwargs)


def _with_float32_result(op: Operator, /, *args: object, **kwargs: object) -> object:
    names = _argument_names(op)
    given = dict(zip(names, args, strict=False)) | kwargs
    if not _eligible(args[0]) or given.get("dtype") is not None:
        return op(*args, **kwargs)
    # Where it may be given by position, `dtype` is the last of the arguments.
    return op(*args[: names.index("dtype")], **kwargs | {"dtype": torch.float32})


def _with_float32_appended(op: Operator, /, *args: object, **kwargs: object) -> object:
    wider = operation(cuda_lists.FLOAT32_APPENDED[op.name().removeprefix("aten::")])
    if wider is None or not _eligible(args[0]):
        return op(*args, **kwargs)
    names = _argument_names(op)
    defaults = {a.name: a.default_value for a in op._schema.arguments if a.has_default_value()}
    given = defaults | dict(zip(names, args, strict=False)) | kwargs
    return wider(*(given[name] for name in names), dtype=torch.float32)


def _argument_names(op: Operator) -> list[str]:
    return [argument.name for argument in op._schema.arguments]


def _refused(op: Operator, /, *args: object, **kwargs: object) -> NoReturn:
    raise RuntimeError(
        "`binary_cross_entropy` is refused under autocast, as on CUDA: its input is a probability "
        "that float16 has rounded. Pass the logits to `binary_cross_entropy_with_logits`, or leave "
        "autocast and call `.float()` on the input."
    )


_POLICIES: tuple[tuple[Iterable[str], Policy], ...] = (
    (cuda_lists.LOWER_PRECISION, _in_lower_precision),
    (cuda_lists.RECURRENT, _in_lower_precision),
    (cuda_lists.FLOAT32, _in_float32),
    (cuda_lists.FLOAT32_RESULT, _with_float32_result),
    (cuda_lists.FLOAT32_APPENDED, _with_float32_appended),
    (cuda_lists.PROMOTE, _in_widest),
    (cuda_lists.BANNED, _refused),
)
