"""Which line of somebody else's has led to a warning."""

from __future__ import annotations

import sys
from types import FrameType


def level_of_caller() -> int:
    """The `stacklevel` with which `warnings.warn` names the first line outside of this library.

    The same warning comes by way of `unscale_` and of `step`, so that no number written down is
    right for both.
    """
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("gradscale."):
        frame, level = frame.f_back, level + 1
    return level
