"""What a watch saves: where it is in the run, and what it has learned of the network.

The measurements themselves are not in it: they went to the callbacks, or into a report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gradscale.watching.negligible import Negligible
from gradscale.watching.steps import Steps

_ENTRIES = ("step", "passes", "negligible")


def saved(steps: Steps, negligible: Negligible) -> dict[str, Any]:
    """The number of the latest step, and which gradients were seen to be zero up to rounding."""
    return {"step": steps.step, **negligible.state()}


def restore(
    state: Mapping[str, Any], steps: Steps, negligible: Negligible, device: torch.device
) -> None:
    """Goes on from `state`.

    Raises:
        ValueError: if it is no state of a watch.
    """
    missing = [name for name in _ENTRIES if name not in state]
    if missing:
        raise ValueError(
            f"`watch.load_state_dict(state)`: the state lacks {', '.join(missing)}. Pass what "
            "`watch.state_dict()` returned."
        )
    negligible.load(state, device)
    steps.step = state["step"]
