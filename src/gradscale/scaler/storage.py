"""The dtype of what an optimizer trains, and that it stays."""

from __future__ import annotations

import torch


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
