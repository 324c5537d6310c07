"""Holds the largest gradient between two bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from gradscale.formats import FloatFormat
from gradscale.policies.bits import MIN_SCALE
from gradscale.policies.observed import Maximum
from gradscale.policies.placement import MAX_PREDICTED_SCALE, backed_off, scale_under
from gradscale.policies.policy import Need, Observation, Policy
from gradscale.policies.setting_checks import check, check_count, check_placing, check_share


class BandState(NamedTuple):
    """What `Band` remembers, each field of shape `losses`.

    Attributes:
        scale: float32.
        maximum: float32, the decaying maximum of the unscaled gradients; 0 before the first.
    """

    scale: Tensor
    maximum: Tensor


@dataclass(frozen=True)
class Band(Policy):
    """Moves the scale only when the decaying maximum of the gradients leaves a band.

        clean step:  maximum = max(amax, decay * maximum)
                     scale = clamp(scale, highest / 2**(max_headroom - min_headroom), highest)
                     with highest the largest power of two that keeps
                     scale * maximum <= 2 ** (format.max_exponent - min_headroom)
        all zero:    nothing changes
        overflow:    scale *= backoff_factor

    A scale that is too high drops just inside the band at once; one that is too low rises just
    inside, without waiting for a growth interval. In between it rests, so a noisy maximum does not
    move it.

    Args:
        format: what the gradients are stored in: a `FloatFormat`, a torch dtype or a name.
        min_headroom: octaves that stay free below the format's topmost one.
        max_headroom: octaves above which the scale is raised.
        decay: what the maximum is multiplied by at each step, in (0, 1).
        init_scale: the scale of the first step, a power of two.
        min_scale: the floor, a power of two of at least 2^-126.
        max_scale: the cap, a power of two.
        backoff_factor: what an overflow multiplies by, a power of two below 1.

    Raises:
        TypeError: if a setting is of the wrong kind.
        ValueError: if a setting is outside its range.

    References:
        The idea is mpadam's, which holds a decayed maximum between a quarter and a half of
        float16's maximum, with a factor that is no power of two.

    Example:
        >>> policy = Band(min_headroom=1, max_headroom=3, init_scale=2.0**15)
        >>> state = policy.init()
        >>> for amax in (0.25, 0.01, 4.0):
        ...     state = policy.update(state, Observation(torch.tensor(0.0), torch.tensor(amax)))
        ...     print(state.scale.item())
        32768.0
        32768.0
        4096.0
    """

    format: FloatFormat | torch.dtype | str = "fp16"
    min_headroom: int = 1
    max_headroom: int = 3
    decay: float = 0.99
    init_scale: float = 2.0**16
    min_scale: float = MIN_SCALE
    max_scale: float = MAX_PREDICTED_SCALE
    backoff_factor: float = 0.5

    needs: ClassVar[frozenset[Need]] = frozenset({"amax"})

    def __post_init__(self) -> None:
        check_count(self, "min_headroom", 0, "Pass 0 to leave no octave free.")
        check_count(self, "max_headroom", 0, "It counts the same octaves as `min_headroom`.")
        fits = self.min_headroom <= self.max_headroom
        rule = f"must be at least `min_headroom` ({self.min_headroom})"
        check(self, "max_headroom", fits, rule, "Swap the two, or widen the band.")
        check_share(self, "decay", "To follow every step alone, use `LastMaximum`.")
        check_placing(self)

    def init(self, shape: tuple[int, ...] = (), device: torch.device | str = "cpu") -> BandState:
        """`init_scale` before any maximum, shape `shape`."""
        scale = torch.full(shape, self.init_scale, dtype=torch.float32, device=device)
        return BandState(scale, torch.zeros_like(scale))

    def update(self, state: BandState, observation: Observation) -> BandState:
        """The state with the maximum back inside the band."""
        amax, overflowed = Maximum.of(self, observation)
        seen = ~overflowed & (amax > 0)
        maximum = torch.where(seen, torch.maximum(amax, state.maximum * self.decay), state.maximum)
        top = FloatFormat.of(self.format).max_exponent
        highest = scale_under(maximum, top - self.min_headroom, self.min_scale, self.max_scale)
        lowest = scale_under(maximum, top - self.max_headroom, self.min_scale, self.max_scale)
        # Both ends are powers of two, so whichever is taken, unscaling stays exact.
        inside = torch.minimum(torch.maximum(state.scale, lowest), highest)
        held = torch.where(seen, inside, state.scale)
        return BandState(torch.where(overflowed, backed_off(self, state.scale), held), maximum)
