"""One scale for the whole run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradscale.policies.bits import MAX_FLOAT32, MIN_SCALE
from gradscale.policies.policy import Observation, Policy, ScaleState
from gradscale.policies.setting_checks import check, check_number


@dataclass(frozen=True)
class Static(Policy):
    """Keeps the scale that it was given, whatever happens.

    An overflowing step is still skipped; only the scale does not react to it. A power of two keeps
    unscaling exact.

    Args:
        scale: the loss scale, a normal float32 number.

    Raises:
        TypeError: if `scale` is not a number.
        ValueError: if `scale` is below 2^-126 or not finite.

    Example:
        >>> policy = Static(1024.0)
        >>> state = policy.init()
        >>> policy.update(state, Observation(found_inf=torch.tensor(1.0))).scale
        tensor(1024.)
    """

    scale: float

    def __post_init__(self) -> None:
        check_number(self, "scale")
        fits = MIN_SCALE <= self.scale <= MAX_FLOAT32
        rule = "must be a finite number of at least 2**-126, the smallest normal float32"
        check(self, "scale", fits, rule, "To train without loss scaling, pass 1.")

    def init(self, shape: tuple[int, ...] = (), device: torch.device | str = "cpu") -> ScaleState:
        """The given scale, shape `shape`."""
        return ScaleState(torch.full(shape, self.scale, dtype=torch.float32, device=device))

    def update(self, state: ScaleState, observation: Observation) -> ScaleState:
        """The same state."""
        del observation
        return ScaleState(state.scale.clone())
