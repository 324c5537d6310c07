"""The truth, first way: the same batch once more at higher precision."""

from __future__ import annotations

import copy as copying
from typing import Literal

import torch
from torch import nn

from gradscale.truth.gradients import Gradients
from gradscale.truth.one_pass import Loss, one_pass

Precision = Literal["fp32", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def reference(
    model: nn.Module,
    loss: Loss,
    *,
    precision: Precision = "fp32",
    copy: bool = False,
    draw_alike: bool = False,
) -> Gradients:
    """The gradients of `loss(model)` as they would be in float32: what nothing was flushed from.

    Call it right before the half-precision pass that it is to be compared with: it draws the random
    numbers which that pass will draw, and then puts the generators back. Autocast and `emulate`,
    also where `loss` enters them, are off meanwhile, and everything of half precision, parameters,
    buffers, inputs and explicit casts, is float32. Gradients, buffers, hooks and dtypes of the
    model are afterwards as before, whether it is copied or not.

    Args:
        model: any module; DDP's and FSDP's too, if all ranks call.
        loss: of the model, a scalar: the training step up to, but without, `backward`.
        precision: ``"bf16"`` has the range of float32 with 8 bits of precision, at half the memory:
            enough to see what was flushed, not to judge directions.
        draw_alike: drop elements that only depend on the seed, not on the dtype; for passes that
            are run by `one_pass(draw_alike=True)`, as `measure_lost` and `advise` do. On a CPU
            plain dropout is alike without it, on an accelerator it is not.
        copy: work on a deep copy, for models that keep other state than parameters and buffers.

    Returns:
        Gradients by parameter and by module output, and which are zero up to rounding.

    Raises:
        TypeError: `loss(model)` is no tensor.
        ValueError: it is no scalar, requires no gradient, or the precision is not known.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> def loss(model):
        ...     with torch.autocast("cpu", torch.float16):
        ...         return model(torch.full((4, 2), 1e-6)).float().mean() * 1e-3
        >>> reference(model, loss).parameters["weight"]
        tensor([[1.0000e-09, 1.0000e-09]])
    """
    if precision not in DTYPES:
        raise ValueError(
            f"`reference(precision={precision!r})` must be 'fp32' or 'bf16': formats with the "
            "range of float32."
        )
    dtype = DTYPES[precision]
    subject = fresh_copy(model) if copy else model
    # bfloat16 rounds too much to tell a sum that cancels from one that does not.
    single = precision == "fp32"
    return one_pass(subject, loss, dtype=dtype, cancelled=single, draw_alike=draw_alike)


def fresh_copy(model: nn.Module) -> nn.Module:
    """A deep copy without gradients.

    Raises:
        ValueError: it cannot be copied.
    """
    try:
        twin = copying.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"this {type(model).__name__} cannot be copied ({error}). It holds something that "
            "`copy.deepcopy` refuses, such as a tensor that is the result of a computation, a lock "
            "or a file. Make that an argument of `forward`, or compute it when it is needed."
        ) from error
    # `deepcopy` copies gradients as well, which would be added to.
    twin.zero_grad(set_to_none=True)
    return twin
