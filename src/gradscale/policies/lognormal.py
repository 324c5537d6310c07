"""Predicts the next maximum from the moving mean and deviation of its logarithm."""

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
from gradscale.policies.setting_checks import check_flag, check_octaves, check_placing, check_share

_ORIGINAL_LOG_MAX = 16.0
# Before enough steps were seen, the deviation is taken to be two octaves, with the weight of ten
# steps.
_PRIOR_VARIANCE = 2.0**2
_PRIOR_STEPS = 10.0


class LogNormalState(NamedTuple):
    """What `LogNormal` remembers, each field of shape `losses`.

    Attributes:
        scale: float32.
        seen: int32, how many maxima the moments hold.
        mean: float32, moving mean of log2 amax that forgets with `mean_decay`, bias-corrected.
        slow_mean: float32, the same with `deviation_decay`.
        variance: float32, moving variance of log2 amax about `slow_mean`, bias-corrected.
    """

    scale: Tensor
    seen: Tensor
    mean: Tensor
    slow_mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class LogNormal(Policy):
    """Takes log2 of the maximum as normal and keeps its upper tail inside the format.

        x = log2(amax), or two octaves above what fitted if the step overflowed
        mean, slow_mean, variance = moving moments of x
        scale = 2 ** floor(log2(format.max) - headroom - mean - deviations * sqrt(variance))
        overflow:  scale = min(that, old scale * backoff_factor)
        all zero:  nothing changes

    The moments start from a prior (a deviation of 2 octaves, worth 10 steps), so the first
    predictions leave room. The default of 3.09 deviations means that one step in a thousand
    overflows if the maxima really are log-normal. With heavier tails it is several: use `Quantile`.

    Args:
        format: what the gradients are stored in: a `FloatFormat`, a torch dtype or a name.
        headroom: further octaves to keep free.
        deviations: how many standard deviations above the mean must fit.
        mean_decay: how slowly the mean forgets, in (0, 1).
        deviation_decay: how slowly the deviation forgets, in (0, 1).
        init_scale: the scale of the first step.
        min_scale: the floor, at least 2^-126.
        max_scale: the cap.
        backoff_factor: what an overflow multiplies by at least, in (0, 1).
        power_of_two: round the scale down to a power of two; the bounds must be ones, too.
        compat: reproduce OpenSeq2Seq's LogMax with its slips, for comparison only: the target is
            2^16 in any format, a non-finite step counts as x = 65536 although x is a logarithm, and
            there is neither prior, headroom, backoff nor rounding. Zero gradients are skipped all
            the same: the original turns its scale into NaN.

    Raises:
        TypeError: if a setting is of the wrong kind.
        ValueError: if a setting is outside its range.

    References:
        OpenSeq2Seq, `open_seq2seq/optimizers/automatic_loss_scaler.py`, class `LogMaxScaler`. The
        moments are updated by increments (the same values, without the cancellation of ``E[x^2] -
        E[x]^2`` in float32).

    Example:
        >>> policy = LogNormal()
        >>> state = policy.init()
        >>> for _ in range(1000):
        ...     state = policy.update(state, Observation(torch.tensor(0.0), torch.tensor(0.25)))
        >>> state.scale
        tensor(131072.)
    """

    format: FloatFormat | torch.dtype | str = "fp16"
    headroom: float = 0.0
    deviations: float = 3.09
    mean_decay: float = 0.99
    deviation_decay: float = 0.999
    init_scale: float = 2.0**16
    min_scale: float = MIN_SCALE
    max_scale: float = MAX_PREDICTED_SCALE
    backoff_factor: float = 0.5
    power_of_two: bool = True
    compat: bool = False

    needs: ClassVar[frozenset[Need]] = frozenset({"amax"})

    def __post_init__(self) -> None:
        check_flag(self, "power_of_two")
        check_flag(self, "compat")
        check_octaves(self, "headroom", "deviations")
        check_share(self, "mean_decay", "Closer to 1 averages over more steps.")
        check_share(self, "deviation_decay", "Closer to 1 averages over more steps.")
        check_placing(self, self._rounds)

    def init(
        self, shape: tuple[int, ...] = (), device: torch.device | str = "cpu"
    ) -> LogNormalState:
        """`init_scale` with empty moments, shape `shape`."""
        scale = torch.full(shape, self.init_scale, dtype=torch.float32, device=device)
        seen = torch.zeros(shape, dtype=torch.int32, device=device)
        zero = torch.zeros_like(scale)
        return LogNormalState(scale, seen, zero, zero.clone(), zero.clone())

    def update(self, state: LogNormalState, observation: Observation) -> LogNormalState:
        """The state with the step's maximum learned, and the scale predicted for the next."""
        amax, overflowed = maximum = Maximum.of(self, observation)
        learns = overflowed | (amax > 0)
        seen, mean, slow_mean, variance = self._learn(state, self._x(state, maximum))
        cutoff = mean + self.deviations * torch.sqrt(self._cautious(variance, seen))
        scale = scale_between(self._target - cutoff, self.min_scale, self.max_scale, self._rounds)
        lowered = state.scale if self.compat else backed_off(self, state.scale)
        # An overflow never raises the scale, whatever the moments say.
        scale = torch.where(overflowed, torch.minimum(scale, lowered), scale)
        fields = LogNormalState(scale, seen, mean, slow_mean, variance)
        return LogNormalState(
            *(torch.where(learns, new, old) for old, new in zip(state, fields, strict=True))
        )

    @property
    def _target(self) -> float:
        if self.compat:
            return _ORIGINAL_LOG_MAX
        return log2_max(FloatFormat.of(self.format)) - self.headroom

    @property
    def _rounds(self) -> bool:
        return self.power_of_two and not self.compat

    def _x(self, state: LogNormalState, maximum: Maximum) -> Tensor:
        x = log2_maximum(maximum, state.scale, FloatFormat.of(self.format))
        return torch.where(maximum.overflowed, 2.0**_ORIGINAL_LOG_MAX, x) if self.compat else x

    def _learn(self, state: LogNormalState, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        seen = state.seen + 1
        rate, slow_rate = _rate(self.mean_decay, seen), _rate(self.deviation_decay, seen)
        # Finch's recurrence of the exponentially weighted variance: no term of it is negative.
        step = x - state.slow_mean
        return (
            seen,
            state.mean + rate * (x - state.mean),
            state.slow_mean + slow_rate * step,
            (1.0 - slow_rate) * (state.variance + slow_rate * step * step),
        )

    def _cautious(self, variance: Tensor, seen: Tensor) -> Tensor:
        if self.compat:
            return variance
        return (seen * variance + _PRIOR_STEPS * _PRIOR_VARIANCE) / (seen + _PRIOR_STEPS)


def _rate(decay: float, seen: Tensor) -> Tensor:
    """The weight of the newest value in a bias-corrected moving mean: (1 - b) / (1 - b^t)."""
    # Rounding can take the first weight above 1, and the variance with it below 0.
    return ((decay - 1.0) / torch.expm1(seen * math.log(decay))).clamp(max=1.0)
