"""A `Dynamic` that climbs faster while its scale is very low."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import reduce
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

from gradscale.policies.bits import MAX_FLOAT32
from gradscale.policies.dynamic import Dynamic, DynamicState
from gradscale.policies.policy import Observation, Policy
from gradscale.policies.product import rounded_product
from gradscale.policies.setting_checks import check, check_number, quote


class RecoveringState(NamedTuple):
    """What `Dynamic` remembers (see `DynamicState`), and a count; each field of shape `losses`.

    Attributes:
        scale: float32.
        growth_tracker: int32.
        hysteresis_tracker: int32.
        steps_since_rescale: int32.
        overflows_since_backoff: int32.
        growth_window: int32.
        steps: int32, steps so far, counted anew where all entries of `below` come round at once.
    """

    scale: Tensor
    growth_tracker: Tensor
    hysteresis_tracker: Tensor
    steps_since_rescale: Tensor
    overflows_since_backoff: Tensor
    growth_window: Tensor
    steps: Tensor


def _is_pairs(below: object) -> bool:
    """Whether it holds pairs of an int and a number; to Python True is both."""
    return isinstance(below, tuple) and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and isinstance(pair[0], Integral)
        and isinstance(pair[1], Real)
        and not any(isinstance(value, bool) for value in pair)
        for pair in below
    )


@dataclass(frozen=True)
class Recovering(Policy):
    """Raises a low scale every few steps, however few of them were clean.

        step:   the policy's own update
                if step % every == 0 and scale < bound, for any (every, bound) of `below`:
                    scale *= growth_factor, after an overflow no higher than it was

    Steps are counted from 0, so that the first one may raise the scale already. A run that starts
    at a low scale, or was thrown down by a stretch of overflows, is back in a few hundred steps,
    where an interval of 2000 would take thousands; from the highest bound on the policy is alone.

    Args:
        policy: whose scale it is, with its bounds, factors and interval.
        below: pairs of a number of steps and a scale: every so many steps, a scale below that one
            is raised, once a step.
        alarm_below: a step that overflows and brings the scale below this sounds the scaler's alarm
            (`GradScaler.on_alarm`), once; 0 leaves it at the usual signs.

    Raises:
        TypeError: if `policy` is not a `Dynamic`, or a setting is of the wrong kind.
        ValueError: if a setting is outside its range.

    Example:
        >>> policy = Recovering(Dynamic(init_scale=0.25), below=((2, 1.0),))
        >>> state = policy.init()
        >>> for _ in range(4):
        ...     state = policy.update(state, Observation(torch.zeros(())))
        ...     print(state.scale.item())
        0.5
        0.5
        1.0
        1.0
    """

    policy: Dynamic = field(default_factory=Dynamic)
    below: tuple[tuple[int, float], ...] = ((100, 1.0),)
    alarm_below: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Dynamic):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"{quote(self, 'policy')} must be a `Dynamic`, not {type(self.policy).__name__}. "
                "Others place their scale by what they measure, and need no such help."
            )
        check_number(self, "alarm_below")
        fits = 0 <= self.alarm_below < math.inf
        check(self, "alarm_below", fits, "must be a scale", "Pass 0 for no alarm of its own.")
        if not _is_pairs(self.below):
            raise TypeError(
                f"{quote(self, 'below')} must hold pairs of a whole number and a scale. "
                "Write `below=((100, 8.0),)`."
            )
        highest = MAX_FLOAT32 / self.policy.growth_factor
        # A scale just below a bound is multiplied once, and must stay finite.
        fits = all(every >= 1 and 0 < bound <= highest for every, bound in self.below)
        rule = "must hold pairs of at least 1 step and a positive scale that can still be raised"
        check(self, "below", bool(self.below) and fits, rule, "Write `below=((100, 8.0),)`.")
        rule = "must come round within 2**31 steps"
        check(self, "below", self._period < 2**31, rule, "Take multiples of one number of steps.")

    @property
    def min_scale(self) -> float:
        """The policy's."""
        return self.policy.min_scale

    @property
    def max_scale(self) -> float | None:
        """The policy's."""
        return self.policy.max_scale

    @property
    def backoff_factor(self) -> float:
        """The policy's."""
        return self.policy.backoff_factor

    @property
    def _period(self) -> int:
        # After so many steps every entry of `below` comes round at once: the count may begin anew.
        return math.lcm(*(int(every) for every, _ in self.below))

    def init(
        self, shape: tuple[int, ...] = (), device: torch.device | str = "cpu"
    ) -> RecoveringState:
        """The policy's first state, shape `shape`."""
        steps = torch.zeros(shape, dtype=torch.int32, device=device)
        return RecoveringState(*self.policy.init(shape, device), steps)

    def update(self, state: RecoveringState, observation: Observation) -> RecoveringState:
        """The policy's next state, raised where it is time to."""
        inner = self.policy.update(DynamicState(*state[:-1]), observation)
        due = reduce(
            torch.logical_or,
            ((state.steps % every == 0) & (inner.scale < bound) for every, bound in self.below),
        )
        raised = rounded_product(inner.scale, self.policy.growth_factor)
        # At the floor an overflow has lowered nothing, so this would raise the scale that failed.
        ceiling = torch.where(observation.found_inf > 0, state.scale, self.max_scale or math.inf)
        scale = torch.where(due, torch.minimum(raised, ceiling), inner.scale)
        return RecoveringState(scale, *inner[1:], (state.steps + 1) % self._period)
