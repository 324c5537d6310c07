"""A lower scale tried where the host reads nothing: `Patience`, with all it knows on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.outcomes.evidence import Blame
from gradscale.scaler.patience import AFTER

TRIALS = 4
"""Trials in one run of skips: after 24, 240, 2400 and 24000 of them."""


class DevicePatience:
    """The rule of `Patience`, for steps that the device takes or leaves by itself.

    The host cannot see that a trial is due, so trials may begin at steps that it counts, one in
    every 24: after 24 to 47 skips in a row, and after about ten times as many. At all other steps
    the device only counts.

        count(…)    before the policy decides
        act(…)      after it: the scale of the next step may be another one

    Args:
        scale: S, float32 0-d.
        depends: what is known by now: 1, 0, or -1 for nothing.

    Attributes:
        depends: whether losses depend on the scale, float32 0-d: 1, 0, or -1 while nobody knows.

    Example:
        >>> scale, skipped = torch.tensor(4096.0), torch.tensor(1.0)
        >>> patience, scales = DevicePatience(scale), []
        >>> for _ in range(26):
        ...     patience.count(skipped, Blame(scaling=0 * skipped, loss=skipped), scale)
        ...     patience.act(scale, low=1.0, backoff=0.5)
        ...     scales.append(scale.item())
        >>> scales[22:], patience.depends.item()
        ([4096.0, 1.0, 4096.0, 4096.0], 0.0)
    """

    def __init__(self, scale: Tensor, depends: int = -1) -> None:
        self.depends = torch.full_like(scale, float(depends))
        self._row = self._first = self._return_to = torch.zeros_like(scale)
        self._bad = self._trial = torch.zeros_like(scale, dtype=torch.bool)
        self._scaling = self._row
        self._due = AFTER * 10.0 ** torch.arange(TRIALS, device=scale.device)
        self._steps = 0

    def count(self, found_inf: Tensor, blame: Blame, scale: Tensor) -> None:
        """Takes note of a step.

        Args:
            found_inf: whether it was skipped, float32 0-d.
            blame: what for; knows of losses.
            scale: that of the step.
        """
        self._steps += 1
        loss = blame.scaling if blame.loss is None else blame.loss
        self._bad, self._scaling = loss > 0, blame.scaling
        self._row = (self._row + 1) * self._bad
        # What the scale was as the row began: overflows among the losses may have lowered it since.
        self._first = torch.where(self._row == 1, scale, self._first)
        over = (found_inf == 0) & (self.depends == 0)  # the data is good again
        self.depends = torch.where(over, -1.0, self.depends)

    def act(self, scale: Tensor, low: float, backoff: float) -> None:
        """Begins a trial, or draws its conclusion.

        Args:
            scale: that of the next step, written in place.
            low: the scale to try.
            backoff: what an overflow multiplies a scale by.
        """
        # Counted by the host, alike on every rank, and nothing is read for it.
        phase = self._steps % AFTER
        if phase == 0:
            due = (self._row >= self._due) & (self._row < self._due + AFTER)
            self._trial = due.any() & (self._first > low)
            # What an overflow has lowered goes on from there, if the trial says so.
            suspected = self._bad & (self._scaling > 0)
            self._return_to = torch.where(suspected, scale, self._first)
            torch.where(self._trial, torch.full_like(scale, low), scale, out=scale)
        elif phase == 1:
            no_help = self._trial & self._bad
            self.depends = torch.where(no_help, 0.0, self.depends)
            back = torch.where(no_help, self._first, self._return_to)
            torch.where(self._trial, back, scale, out=scale)
            self._trial = self._trial & (self._row == 0) & (self._return_to >= self._first)
        elif phase == 2:
            proved = self._trial & self._bad
            self.depends = torch.where(proved, 1.0, self.depends)
            torch.where(proved, (self._first * backoff).clamp(min=low), scale, out=scale)
