"""The dtype of what an optimizer trains: that it can hold a step, and that it stays."""

from __future__ import annotations

import warnings

import torch

from gradscale.callers import level_of_caller


def warn_of_float16(optimizer: torch.optim.Optimizer) -> None:
    """Warns if an optimizer writes float16 weights, to which most updates are too small to add.

    torch's scaler refuses their gradients, and with them the loop; here they are divided right.
    """
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            # 11 significant bits: what is below half a unit, 2^-12 to 2^-11 of the weight, changes
            # nothing when it is added.
            if parameter.dtype is torch.float16:
                warnings.warn(
                    f"{type(optimizer).__name__} trains float16 weights without float32 masters "
                    f"(the first is parameter {place} of group {number}, of shape "
                    f"{tuple(parameter.shape)}): an update below a 2,048th of a weight is lost, "
                    "and Adam's squares leave the format. Call "
                    "`gradscale.half_precision(model, optimizer)` before the first step, or keep "
                    "the weights in float32 under `torch.autocast`.",
                    stacklevel=level_of_caller(),
                )
                return


def refuse_cast(
    optimizer: torch.optim.Optimizer, before: torch.dtype, now: torch.dtype | None
) -> None:
    """Refuses to go on with parameters that were cast to half precision under their optimizer.

    Raises:
        RuntimeError: if they were wider in an earlier step.
    """
    if before is torch.float32 and now in (torch.float16, torch.bfloat16):
        raise RuntimeError(
            f"{type(optimizer).__name__} trained float32 parameters, and they are {now} now: "
            "`model.half()` in mid-run leaves an optimizer whose state does not fit them, and "
            "rounds every step from here on. Call `gradscale.half_precision(model, optimizer)` "
            "instead, before the first step."
        )
