"""An empirical quantile of the recent maxima places the scale, whatever their distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from gradscale.formats import FloatFormat
from gradscale.policies.bits import MIN_SCALE
from gradscale.policies.observed import Maximum
from gradscale.policies.placement import (
    MAX_PREDICTED_SCALE,
    backed_off,
    log2_max,
    log2_maximum,
    scale_between,
)
from gradscale.policies.policy import Need, Observation, Policy
from gradscale.policies.setting_checks import (
    check,
    check_count,
    check_flag,
    check_octaves,
    check_placing,
    check_share,
)

# How far above the largest of the first few maxima the next one may lie.
_FIRST_ROOM = 3.0


class QuantileState(NamedTuple):
    """What `Quantile` remembers.

    Attributes:
        scale: shape `losses`, float32.
        seen: shape `losses`, int32, how many maxima were recorded.
        recent: shape `(*losses, window)`, float32, a ring of the last log2 maxima; -inf where still
            empty.
    """

    scale: Tensor
    seen: Tensor
    recent: Tensor


@dataclass(frozen=True)
class Quantile(Policy):
    """Keeps the share of overflowing steps at `overflow_share` with no assumption about the maxima.

        x = log2(amax), or two octaves above what fitted if the step overflowed; kept in a ring of
        `window`
        n = how many are in the ring;  r = floor((n + 1) * overflow_share)
        top = the r-th largest x, which the next one exceeds with probability r / (n + 1)
              (while r = 0: the largest x plus a room that shrinks from 3 octaves to none)
        scale = 2 ** floor(log2(format.max) - headroom - top)
        overflow:  scale = min(that, old scale * backoff_factor)
        all zero:  nothing changes

    Args:
        format: what the gradients are stored in: a `FloatFormat`, a torch dtype or a name.
        headroom: further octaves to keep free.
        overflow_share: the share of steps that may overflow, in (0, 1).
        window: how many maxima to keep; at least ``1 / overflow_share - 1``, so that the ring can
            show so rare an event.
        init_scale: the scale of the first step.
        min_scale: the floor, at least 2^-126.
        max_scale: the cap.
        backoff_factor: what an overflow multiplies by at least, in (0, 1).
        power_of_two: round the scale down to a power of two; the bounds must be ones, too.

    Raises:
        TypeError: if a setting is of the wrong kind.
        ValueError: if a setting is outside its range.

    Example:
        >>> policy = Quantile(overflow_share=0.1, window=9)
        >>> state = policy.init()
        >>> for amax in (1.0, 2.0, 3.0, 4.0, 1.0, 1.0, 1.0, 2.0, 2.0):
        ...     state = policy.update(state, Observation(torch.tensor(0.0), torch.tensor(amax)))
        >>> state.scale, 65504 / 4
        (tensor(8192.), 16376.0)
    """

    format: FloatFormat | torch.dtype | str = "fp16"
    headroom: float = 0.0
    overflow_share: float = 0.001
    window: int = 2000
    init_scale: float = 2.0**16
    min_scale: float = MIN_SCALE
    max_scale: float = MAX_PREDICTED_SCALE
    backoff_factor: float = 0.5
    power_of_two: bool = True

    needs: ClassVar[frozenset[Need]] = frozenset({"amax"})

    def __post_init__(self) -> None:
        check_flag(self, "power_of_two")
        check_octaves(self, "headroom")
        check_share(self, "overflow_share", "0.001 lets one step in a thousand overflow.")
        check_count(self, "window", 1, "It is the number of steps to remember.")
        # (window + 1) * overflow_share must reach 1, or no maximum of a ring is exceeded so rarely.
        least = math.ceil(1 / self.overflow_share - 1 - 1e-6)
        rule = f"must be at least 1 / overflow_share - 1 = {least}"
        check(self, "window", self.window >= least, rule, "Or raise `overflow_share`.")
        check_placing(self, self.power_of_two)

    def init(
        self, shape: tuple[int, ...] = (), device: torch.device | str = "cpu"
    ) -> QuantileState:
        """`init_scale` with an empty ring, shape `shape`."""
        scale = torch.full(shape, self.init_scale, dtype=torch.float32, device=device)
        seen = torch.zeros(shape, dtype=torch.int32, device=device)
        ring = (*shape, self.window)
        return QuantileState(
            scale, seen, torch.full(ring, -math.inf, dtype=torch.float32, device=device)
        )

    def update(self, state: QuantileState, observation: Observation) -> QuantileState:
        """The state with the step's maximum in the ring, and the scale that the ring asks for."""
        amax, overflowed = maximum = Maximum.of(self, observation)
        learns = overflowed | (amax > 0)
        x = log2_maximum(maximum, state.scale, FloatFormat.of(self.format))
        place = torch.arange(self.window, dtype=torch.int32, device=x.device)
        # The oldest gives way. A mask instead of an index, which would have to be read on the host.
        here = learns[..., None] & (place == (state.seen % self.window)[..., None])
        recent = torch.where(here, x[..., None], state.recent)
        seen = state.seen + learns.to(torch.int32)
        target = log2_max(FloatFormat.of(self.format)) - self.headroom
        log2_scale = target - self._top(recent, seen)
        scale = scale_between(log2_scale, self.min_scale, self.max_scale, self.power_of_two)
        lowered = torch.minimum(scale, backed_off(self, state.scale))
        scale = torch.where(overflowed, lowered, scale)
        return QuantileState(torch.where(learns, scale, state.scale), seen, recent)

    def _top(self, recent: Tensor, seen: Tensor) -> Tensor:
        """What the next x exceeds with a probability of at most `overflow_share`."""
        allowed = (seen.clamp(max=self.window) + 1) * self.overflow_share
        # A hair more, so that 1000 * 0.001 counts as 1 after rounding to float32.
        rank = torch.floor(allowed + 1e-5).to(torch.int64)
        most = math.floor((self.window + 1) * self.overflow_share + 1e-5)
        # As many as a full ring asks for: a number of the host's, so that shapes stay the same.
        largest = torch.topk(recent, most, dim=-1).values
        # While not one may overflow yet the rank is 0: then the largest counts, with room above it.
        top = torch.gather(largest, -1, (rank - 1).clamp(min=0)[..., None])[..., 0]
        return top + _FIRST_ROOM * (1.0 - allowed).clamp(min=0.0)
