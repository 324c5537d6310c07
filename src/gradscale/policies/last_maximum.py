"""The largest gradient of the previous step places the scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gradscale.formats import FloatFormat
from gradscale.policies.bits import MIN_SCALE
from gradscale.policies.observed import Maximum
from gradscale.policies.placement import MAX_PREDICTED_SCALE, backed_off, scale_under
from gradscale.policies.policy import Need, Observation, Policy, ScaleState
from gradscale.policies.setting_checks import check_count, check_placing


@dataclass(frozen=True)
class LastMaximum(Policy):
    """Re-chooses the scale at every step from the largest gradient of that step.

        clean step:  scale = 2 ** floor(format.max_exponent - headroom - log2(amax))
        all zero:    scale stays
        overflow:    scale *= backoff_factor

    So ``scale * amax`` of an equal next step is at most ``2**(max_exponent - headroom)``. `amax` is
    that of the parameter gradients; where the limit is met inside the backward pass, wrap the
    policy in `Guarded`.

    Args:
        format: what the gradients are stored in: a `FloatFormat`, a torch dtype or a name.
        headroom: octaves to keep free below the format's topmost one.
        init_scale: the scale of the first step, a power of two.
        min_scale: the floor, a power of two of at least 2^-126.
        max_scale: the cap, a power of two.
        backoff_factor: what an overflow multiplies by, a power of two below 1.

    Raises:
        TypeError: if a setting is of the wrong kind.
        ValueError: if a setting is outside its range.

    References:
        US patent 11,842,280, claims 5 to 8, reading claim 6 as an exponent: S = 2^(15 - x).

    Example:
        >>> policy = LastMaximum(headroom=1)
        >>> state = policy.init()
        >>> policy.update(state, Observation(torch.tensor(0.0), amax=torch.tensor(0.25))).scale
        tensor(65536.)
    """

    format: FloatFormat | torch.dtype | str = "fp16"
    headroom: int = 1
    init_scale: float = 2.0**16
    min_scale: float = MIN_SCALE
    max_scale: float = MAX_PREDICTED_SCALE
    backoff_factor: float = 0.5

    needs: ClassVar[frozenset[Need]] = frozenset({"amax"})

    def __post_init__(self) -> None:
        check_count(self, "headroom", 0, "Pass 0 to leave no octave free.")
        check_placing(self)

    def init(self, shape: tuple[int, ...] = (), device: torch.device | str = "cpu") -> ScaleState:
        """`init_scale`, shape `shape`."""
        return ScaleState(torch.full(shape, self.init_scale, dtype=torch.float32, device=device))

    def update(self, state: ScaleState, observation: Observation) -> ScaleState:
        """The scale that suits `observation.amax`."""
        amax, overflowed = Maximum.of(self, observation)
        exponent = FloatFormat.of(self.format).max_exponent - self.headroom
        placed = scale_under(amax, exponent, self.min_scale, self.max_scale)
        held = torch.where(amax > 0, placed, state.scale)
        return ScaleState(torch.where(overflowed, backed_off(self, state.scale), held))
