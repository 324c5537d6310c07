"""Which line of the user's has led to a warning."""

from __future__ import annotations

import sys
from types import FrameType


def level_of_caller() -> int:
    """The `stacklevel` with which `warnings.warn` names the first line of neither us nor torch.

    The same warning comes by way of `unscale_` and of `step`, so that no number written down is
    right for both; and some by way of a hook, which torch calls.
    """
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and _package(frame) in ("gradscale", "torch"):
        frame, level = frame.f_back, level + 1
    return level


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]
