"""The dtype in which an optimizer keeps what it trains: too narrow, or changed in mid-run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch

from gradscale.gradients.master_weights import masters_of


def warn_of_half(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> None:
    """Warns of a parameter in float16 that has no float32 master, the first of them.

    Half of float16's numbers are more than 2^-11 of a weight apart: a step smaller than that
    leaves the weight as it is, and moments that are float16, too, overflow or vanish.
    """
    if masters_of(optimizer) is not None:
        return
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for number, parameter in enumerate(parameters):
        if parameter.dtype is torch.float16 and parameter.requires_grad:
            name = names.get(id(parameter), f"parameter {number}")
            warnings.warn(
                f"{type(optimizer).__name__} trains {name!r} in float16 itself: steps smaller than "
                "a 2048th of a weight are lost, and its moments overflow or vanish. Call "
                "`gradscale.half_precision(model, optimizer)`, which keeps float32 masters, or "
                "keep the model in float32 and use autocast.",
                stacklevel=8,
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
