"""Backs off after an overflow and grows again after enough clean steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gradscale.policies.bits import MAX_FLOAT32, MIN_SCALE
from gradscale.policies.policy import Observation, Policy, advance
from gradscale.policies.product import rounded_product
from gradscale.policies.setting_checks import (
    check,
    check_backoff,
    check_count,
    check_flag,
    check_number,
    check_scale_range,
)

Refill = Literal["growth", "clean", "clean_or_backoff"]

# Half of int32, so that a window may double once more before it is cut back.
_LONGEST_WINDOW = 2**30


class DynamicState(NamedTuple):
    """What `Dynamic` remembers, each field of shape `losses`.

    A counter that the settings do not use keeps its first value.

    Attributes:
        scale: float32.
        growth_tracker: int32, clean steps since the last overflow or growth (with
            `window_follows_scale`: since the last overflow).
        hysteresis_tracker: int32, overflows left until one backs off, that one included.
        steps_since_rescale: int32, steps since the scale last moved.
        overflows_since_backoff: int32, overflows since the scale last fell.
        growth_window: int32, the growth interval in force.
    """

    scale: Tensor
    growth_tracker: Tensor
    hysteresis_tracker: Tensor
    steps_since_rescale: Tensor
    overflows_since_backoff: Tensor
    growth_window: Tensor


@dataclass(frozen=True)
class Dynamic(Policy):
    """Lowers the scale after overflows and raises it after `growth_interval` clean steps in a row.

    By default bit for bit what `torch.amp.GradScaler` does, except that the scale never falls below
    `min_scale`:

        overflow:    growth_tracker = 0
                     if hysteresis is used up and overflows / steps >= tolerance:
                         scale = max(scale * backoff_factor, min_scale)
        clean step:  growth_tracker += 1
                     if growth_tracker == growth_interval:
                         growth_tracker = 0
                         scale = min(scale * growth_factor, max_scale), unless that is not finite

    Args:
        init_scale: the first scale.
        growth_factor: what a growth multiplies by, above 1. A power of two keeps unscaling exact.
        backoff_factor: what a backoff multiplies by, in (0, 1).
        growth_interval: clean steps in a row before a growth.
        min_scale: the floor, at least 2^-126.
        max_scale: the cap; None lets the scale grow as long as it is finite.
        hysteresis: how many overflows it takes to back off; 1 backs off at once. Every overflow
            skips its step and restarts the growth interval.
        hysteresis_refill: when the count starts anew: ``"growth"`` only as the scale grows
            (Megatron-LM, ColossalAI, DeepSpeed), ``"clean"`` at every clean step (apex's kernel,
            DeepSpeed's `consecutive_hysteresis`), ``"clean_or_backoff"`` also after a backoff
            (Paddle, so that each backoff takes `hysteresis` overflows).
        tolerance: the share of overflows to put up with, in [0, 1) (fairseq): back off only if the
            overflows since the last backoff, over the steps since the scale last moved, reach it.
        window_follows_scale: multiply the growth interval by the same factors as the scale
            (metaseq), and count clean steps from the last overflow only: it grows where that count
            is a multiple of the interval.

    Raises:
        TypeError: if a setting is of the wrong kind.
        ValueError: if a setting is outside its range.

    Example:
        >>> policy = Dynamic(init_scale=8.0, growth_interval=2)
        >>> state = policy.init()
        >>> for found_inf in (0.0, 0.0, 1.0):
        ...     state = policy.update(state, Observation(torch.tensor(found_inf)))
        ...     print(state.scale.item(), state.growth_tracker.item())
        8.0 1
        16.0 0
        8.0 0
    """

    init_scale: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    min_scale: float = MIN_SCALE
    max_scale: float | None = None
    hysteresis: int = 1
    hysteresis_refill: Refill = "growth"
    tolerance: float = 0.0
    window_follows_scale: bool = False

    def __post_init__(self) -> None:
        check_scale_range(self)
        check_number(self, "growth_factor", "tolerance")
        fits = 1 < self.growth_factor <= MAX_FLOAT32
        way_out = "To change how fast the scale falls, pass `backoff_factor`."
        check(self, "growth_factor", fits, "must be finite and above 1", way_out)
        check_backoff(self)
        way_out = "For a scale that never grows, pass `Dynamic(max_scale=init_scale)`."
        check_count(self, "growth_interval", 1, way_out)
        check_count(self, "hysteresis", 1, "Pass 1 to back off at every overflow.")
        way_out = "Pass 0 to back off at every overflow."
        check(self, "tolerance", 0 <= self.tolerance < 1, "must lie in [0, 1)", way_out)
        fits = self.hysteresis_refill in ("growth", "clean", "clean_or_backoff")
        rule = "must be 'growth', 'clean' or 'clean_or_backoff'"
        check(self, "hysteresis_refill", fits, rule, "To back off at once, pass `hysteresis=1`.")
        check_flag(self, "window_follows_scale")

    @cached_property
    def fast(self) -> bool:
        """Whether torch's own kernel computes this update, so that `update_` is two launches."""
        largest = self.max_scale or 0.0
        return (
            self.hysteresis == 1
            and self.tolerance == 0
            and not self.window_follows_scale
            # Past this, torch refuses a growth that `update` would cut to the cap.
            and largest * self.growth_factor <= MAX_FLOAT32
        )

    def init(self, shape: tuple[int, ...] = (), device: torch.device | str = "cpu") -> DynamicState:
        """`init_scale` with fresh counters, shape `shape`."""

        def count(value: int) -> Tensor:
            return torch.full(shape, value, dtype=torch.int32, device=device)

        scale = torch.full(shape, self.init_scale, dtype=torch.float32, device=device)
        window = count(self.growth_interval)
        return DynamicState(scale, count(0), count(self.hysteresis), count(0), count(0), window)

    def update(self, state: DynamicState, observation: Observation) -> DynamicState:
        """The state after a clean or an overflowing step."""
        found = observation.found_inf > 0
        grows, growth_tracker = self._count_clean_steps(state, found)
        steps, overflows, tolerable = self._count_overflows(state, found)
        left = (state.hysteresis_tracker - 1).clamp(min=0)
        due = found & ~tolerable if self.hysteresis == 1 else found & ~tolerable & (left == 0)
        return DynamicState(
            scale=self._move(state.scale, due, grows),
            growth_tracker=growth_tracker,
            hysteresis_tracker=self._refill(state.hysteresis_tracker, left, found, due, grows),
            steps_since_rescale=torch.where(due | grows, 0, steps),
            # As in fairseq, a growth forgets the steps but not the overflows.
            overflows_since_backoff=torch.where(due, 0, overflows),
            growth_window=self._follow(state.growth_window, due, grows),
        )

    def update_(
        self,
        state: DynamicState,
        observation: Observation,
        ignore: Tensor | None = None,
        high: bool = False,
    ) -> None:
        """Changes `state` in place into what `advance` would return, sooner where `fast`.

        The two agree for every state that `init` and `update` can reach; one whose `growth_tracker`
        was set to `growth_interval` or more grows at once in `update` but not in torch's kernel.

        Args:
            state: its tensors are overwritten.
            observation: what the step saw; `found_inf` is float32, and 0 where `ignore` is not.
            ignore: as in `advance`.
            high: whether the host knows that this step does not bring the scale below `min_scale`.
        """
        if not (
            self.fast
            # Where torch._amp_update_scale_ has a kernel that multiplies as `rounded_product` does.
            and (state.scale.is_cpu or state.scale.is_cuda)
            and (state.scale.dim() == 0 or state.scale.numel() == 1)
        ):
            for old, new in zip(state, advance(self, state, observation, ignore), strict=True):
                old.copy_(new)
            return
        if ignore is not None:
            # To the kernel, an ignored step is a clean one that starts a step earlier.
            ignored = ignore if ignore.dtype is torch.bool else ignore > 0
            state.growth_tracker.add_(ignored, alpha=-1)
        torch._amp_update_scale_(  # pyright: ignore[reportPrivateImportUsage]
            state.scale,
            state.growth_tracker,
            observation.found_inf,
            self.growth_factor,
            self.backoff_factor,
            self.growth_interval,
        )
        # The kernel knows neither floor nor cap. Without a cap, and clear of the floor, it is all.
        if not high or self.max_scale is not None:
            state.scale.clamp_(self.min_scale, self.max_scale)

    def _count_clean_steps(self, state: DynamicState, found: Tensor) -> tuple[Tensor, Tensor]:
        clean_steps = torch.where(found, 0, state.growth_tracker + 1)
        if self.window_follows_scale:
            return ~found & (clean_steps % state.growth_window == 0), clean_steps
        grows = clean_steps >= self.growth_interval
        return grows, torch.where(grows, 0, clean_steps)

    def _count_overflows(self, state: DynamicState, found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        steps, overflows = state.steps_since_rescale, state.overflows_since_backoff
        if self.tolerance == 0:
            # Nothing is tolerated, so nothing need be counted: the fast path leaves both as they
            # are, too.
            return steps, overflows, torch.zeros_like(found)
        steps, overflows = steps + 1, overflows + found.to(torch.int32)
        return steps, overflows, overflows / steps < self.tolerance

    def _move(self, scale: Tensor, due: Tensor, grows: Tensor) -> Tensor:
        lowered = rounded_product(scale, self.backoff_factor).clamp(min=self.min_scale)
        raised = rounded_product(scale, self.growth_factor)
        if self.max_scale is not None:
            raised = raised.clamp(max=self.max_scale)
        # As torch's kernel has it: a growth beyond float32 does not take place.
        raised = torch.where(torch.isfinite(raised), raised, scale)
        return torch.where(due, lowered, torch.where(grows, raised, scale))

    def _refill(
        self, tracker: Tensor, left: Tensor, found: Tensor, due: Tensor, grows: Tensor
    ) -> Tensor:
        if self.hysteresis == 1:
            return tracker.clone()
        left = torch.where(found, left, tracker)
        full = {"growth": grows, "clean": ~found, "clean_or_backoff": ~found | due}
        return torch.where(full[self.hysteresis_refill], self.hysteresis, left)

    def _follow(self, window: Tensor, due: Tensor, grows: Tensor) -> Tensor:
        if not self.window_follows_scale:
            return window.clone()
        factor = torch.where(due, self.backoff_factor, torch.where(grows, self.growth_factor, 1.0))
        return (window * factor).clamp(1, _LONGEST_WINDOW).to(torch.int32)
