"""Schedulers, averages and counters that move only when the optimizer did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from gradscale.outcomes.outcome import StepOutcome


class Follower(Protocol):
    """What follows an optimizer, such as a learning-rate scheduler or an average of weights."""

    @property
    def step(self) -> Callable[..., object]:
        """Moves it on."""
        ...


def step_if_taken(
    last_step: StepOutcome,
    follower: Follower,
    *args: object,
    optimizer: torch.optim.Optimizer | None = None,
    **kwargs: object,
) -> bool:
    """Calls `follower.step(...)` unless its optimizer skipped the last step.

    A learning-rate schedule that runs on through skipped steps ends early, and torch warns that it
    was called before the optimizer (pytorch#67590, pytorch#55585).

    Args:
        last_step: `scaler.last_step`.
        follower: a learning-rate scheduler, or anything with a `step` method.
        args: passed on to `step`.
        optimizer: whose step to follow; `follower.optimizer` if it has one, else all of them.
        kwargs: passed on to `step`.

    Returns:
        Whether it was called. Waits for the device if the optimizer is fused.

    Raises:
        TypeError: if `follower` is an optimizer, which would step a second time, or has no `step`.
    """
    if isinstance(follower, torch.optim.Optimizer) or not hasattr(follower, "step"):
        raise TypeError(
            f"`step_scheduler({type(follower).__name__})` needs what follows an optimizer: a "
            "learning-rate scheduler, or anything else with a `step` method. "
            "`scaler.step(optimizer)` steps the optimizer itself."
        )
    leader = optimizer if optimizer is not None else getattr(follower, "optimizer", None)
    outcome = last_step[leader] if leader is not None and leader in last_step else last_step
    if outcome.skipped:
        return False
    follower.step(*args, **kwargs)
    return True
