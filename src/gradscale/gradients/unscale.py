"""One pass over the gradients: divide by the scale, check that the result is finite, measure.

Memory passes over the gradients, and host reads, of one optimizer step:

| | reads | writes | host reads |
|---|---|---|---|
| unfused optimizer | 1 | 1 | 1, made by the scaler: the flag and the scale in one transfer |
| fused optimizer, which divides by itself | 1 | 1 | 0 |
| `undo`, where an unfused optimizer absorbs the scale; on the CPU as above | 1 | 0 | 1 |
| the policy needs ``amax`` or ``exponents`` | +1 each | | 0 |
| the scale lies below 1, as far as the host knows | +1 | 0 | 0 |

The last row is what torch leaves out: it checks the *scaled* gradient, so a quotient that overflows
goes unnoticed into the weights. A quotient can only overflow when the scale is below 1, and the
host knows without asking when it is not (`scaler/known_scale.py`). A check alone writes what it has
read: torch's kernel takes all gradients in one launch, where a norm takes one result for each and
several launches to join them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from gradscale.histogram import EXPONENT_BINS, count_exponents

multiply_and_check_ = torch._amp_foreach_non_finite_check_and_unscale_  # pyright: ignore[reportPrivateImportUsage]
"""Torch's kernel `(tensors, flag, factor)`: flags what is not finite, then multiplies in place."""

Groups = dict[torch.device, dict[torch.dtype, list[Tensor]]]
Flags = dict[torch.device, Tensor]


def gradient_values(parameter: Tensor) -> Tensor | None:
    """The dense real tensor that holds a parameter's gradient, or None if there is none.

    Sparse gradients give their values (coalesced first if they are float16, where the sum of
    duplicates may overflow), complex ones their real view, distributed ones their local shard.
    """
    grad = parameter.grad
    if grad is None:
        return None
    if grad.is_complex() and grad.is_conj():
        # A lazy conjugate has no real view; optimizers would resolve it as well.
        grad = parameter.grad = grad.resolve_conj()
    if grad.is_sparse and grad.dtype is torch.float16 and not grad.is_coalesced():
        grad = parameter.grad = grad.coalesce()
    return tensor_values(grad)


def tensor_values(tensor: Tensor) -> Tensor:
    """The dense real tensor that holds a tensor's numbers; see `gradient_values`."""
    if hasattr(tensor, "to_local"):
        tensor = tensor._local_tensor  # pyright: ignore[reportAttributeAccessIssue]
    if tensor.is_sparse:
        tensor = tensor._values()
    elif tensor.layout is not torch.strided:
        tensor = tensor.values()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def collect_gradients(
    optimizer: torch.optim.Optimizer, apart: Collection[int] = ()
) -> tuple[Groups, Groups]:
    """The gradients of an optimizer by device and dtype, as the multi-tensor kernels want them.

    Args:
        optimizer: owns the parameters.
        apart: ids of parameters to be kept apart.

    Returns:
        The gradients of most parameters, and those of the parameters `apart`.
    """
    most: Groups = {}
    others: Groups = {}
    for group in optimizer.param_groups:
        _collect(group["params"], most, apart, others)
    return most, others


def collect_from(parameters: Iterable[Tensor]) -> Groups:
    """The gradients of these parameters by device and dtype."""
    groups: Groups = {}
    _collect(parameters, groups, (), {})
    return groups


def _collect(
    parameters: Iterable[Tensor], most: Groups, apart: Collection[int], others: Groups
) -> None:
    device = dtype = None
    bucket: list[Tensor] = []
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            continue
        plain = type(grad) is Tensor and not (apart or grad.is_sparse)
        # Neighbors mostly share device and dtype, and hashing both for each is costly. A bucket's
        # dtype is a real one: whoever has it needs no view.
        if plain and grad.dtype is dtype and grad.device == device:
            bucket.append(grad)
            continue
        values = grad if plain and not grad.is_complex() else gradient_values(parameter)
        if values is None:
            continue
        if id(parameter) in apart:
            others.setdefault(values.device, {}).setdefault(values.dtype, []).append(values)
            continue
        device, dtype = values.device, values.dtype
        bucket = most.setdefault(device, {}).setdefault(dtype, [])
        bucket.append(values)


def unscale_groups_(groups: Groups, inv_scale: Tensor, found_inf: Tensor) -> Flags:
    """Multiplies every gradient by `inv_scale` in place and flags the non-finite ones.

    Args:
        groups: gradients by device and dtype.
        inv_scale: float32 0-d tensor, 1 to check only.
        found_inf: float32 0-d tensor, the flag of its own device: set to 1, never cleared.

    Returns:
        A flag per device that holds gradients, 0 or 1: whether one of them was not finite *before*
        the multiplication.
    """
    flags: Flags = {}
    for device, by_dtype in groups.items():
        same = device == found_inf.device
        # The kernel writes its flag: each device has one of its own, which begins at this one's
        # value.
        flag = found_inf if same else found_inf.to(device=device, copy=True, non_blocking=True)
        factor = inv_scale if same else inv_scale.to(device=device, non_blocking=True)
        for grads in by_dtype.values():
            multiply_and_check_(grads, flag, factor)
        flags[device] = flag
    return flags


def check_groups(groups: Groups, factor: Tensor | None = None) -> Flags:
    """A flag per device, 0 or 1: whether a gradient, or it times `factor`, is not finite.

    No gradient changes and no host read is made.

    Args:
        groups: gradients by device and dtype.
        factor: float32 0-d; None for one that no finite gradient overflows with.
    """
    flags: Flags = {}
    for device, by_dtype in groups.items():
        # Times at most 1 what is finite stays so: torch's kernel, with a factor of 1, is enough.
        if factor is None or (device.type == "cpu" and factor.item() <= 1):
            flags[device] = torch.zeros((), dtype=torch.float32, device=device)
            one = torch.ones((), dtype=torch.float32, device=device)
            for grads in by_dtype.values():
                multiply_and_check_(grads, flags[device], one)
            continue
        # The largest magnitude tells both in one reading pass.
        largest = [tensor_amax(grads) for grads in by_dtype.values()]
        amax = torch.stack(largest).amax() if len(largest) > 1 else largest[0]
        flags[device] = not_finite(amax * factor.to(device=device, non_blocking=True))
    return flags


def not_finite(magnitude: Tensor) -> Tensor:
    """1 for inf and NaN, else 0; a NaN is below nothing."""
    return (magnitude < math.inf).logical_not().to(torch.float32)


def tensor_amax(tensors: Sequence[Tensor]) -> Tensor:
    """The largest magnitude over all tensors, float32 0-d; NaN or inf if one element is.

    Args:
        tensors: of one device and dtype, any shapes, empty ones allowed.
    """
    filled = [tensor for tensor in tensors if tensor.numel()]
    if not filled:
        return torch.zeros((), dtype=torch.float32, device=tensors[0].device)
    if filled[0].device.type != "cpu":
        return _largest(filled).amax().to(torch.float32)
    # Both ends in one reading, without the copy that `abs` makes; a NaN becomes both of them.
    ends = [end for tensor in filled for end in torch.aminmax(tensor)]
    return torch.stack(ends).abs().amax().to(torch.float32)


def _largest(tensors: list[Tensor]) -> Tensor:
    norms = torch._foreach_norm(tensors, float("inf"))  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(norms)


def finite_amax(groups: Groups, device: torch.device) -> Tensor:
    """The largest magnitude among the tensors that are finite throughout, float32 0-d on `device`.

    Tensors with a non-finite element count as zero: a step that has one is an overflow, and what
    else it held is no measurement.
    """
    largest = torch.zeros((), dtype=torch.float32, device=device)
    for by_dtype in groups.values():
        for grads in by_dtype.values():
            for grad in grads:
                amax = tensor_amax([grad])
                # Chosen on the device: an `if` would read it on the host, once a tensor.
                amax = torch.where(amax < math.inf, amax, 0.0)
                largest = torch.maximum(largest, amax.to(device=device, non_blocking=True))
    return largest


def exponent_counts(groups: Groups, device: torch.device) -> Tensor:
    """The gradients' magnitudes by octave, int64 of shape `(EXPONENT_BINS,)` on `device`."""
    counts = torch.zeros(EXPONENT_BINS, dtype=torch.int64, device=device)
    for by_dtype in groups.values():
        for grads in by_dtype.values():
            for grad in grads:
                # Tensor by tensor: counting makes an int64 index of every element.
                counts += count_exponents(grad).to(device=device, non_blocking=True)
    return counts
