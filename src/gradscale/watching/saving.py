"""What a watch saves: where it is in the run, and what it has learned of the network.

The measurements themselves are not in it: they went to the callbacks, or into a report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch

from gradscale.watching.negligible import Negligible, NegligibleState
from gradscale.watching.steps import Steps


class WatchState(NegligibleState):
    """What a watch saves."""

    step: int


def saved(steps: Steps, negligible: Negligible) -> WatchState:
    """The number of the latest step, and which gradients were seen to be zero up to rounding."""
    return {"step": steps.step, **negligible.state()}


_ENTRIES = ("step", "passes", "negligible")


def restore(
    state: Mapping[str, object], steps: Steps, negligible: Negligible, device: torch.device
) -> None:
    """Goes on from `state`.

    Raises:
        ValueError: if it is no state of a watch.
    """
    # Before anything is taken over: a refused state leaves the watch as it was.
    missing = [name for name in _ENTRIES if name not in state]
    if missing:
        raise ValueError(
            f"`watch.load_state_dict(state)`: the state lacks {', '.join(missing)}. Pass what "
            "`watch.state_dict()` returned."
        )
    known = cast("WatchState", state)
    negligible.load(known, device)
    steps.step = known["step"]
