"""What a scaler tells its caller: counts, callbacks, names, schedules, agreement of ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gradscale.layerwise import Layerwise
from gradscale.outcomes.alarm import FloorAlarm
from gradscale.outcomes.ledger import Counters
from gradscale.outcomes.outcome import OptimizerOutcome
from gradscale.outcomes.schedule import step_if_taken
from gradscale.policies.bits import MIN_SCALE
from gradscale.ranks import differing_ranks
from gradscale.scaler.metering import MeteringScaler
from gradscale.scaler.settings import check_callback


class ReportingScaler(MeteringScaler):
    """A scaler that can be asked what it did."""

    process_group: Any
    _names: dict[int, str]
    _alarm: FloorAlarm

    @property
    def counters(self) -> Counters:
        """Optimizer steps taken and skipped. Waits for the device if an optimizer is fused."""
        return self._ledger.counters

    @property
    def layerwise(self) -> Layerwise | None:
        """The layer-wise part, whose `report()` says which scales are in use; None without one."""
        return self._layerwise

    def on_skip(self, callback: Callable[[OptimizerOutcome], object]) -> None:
        """Calls `callback` with the outcome of every skipped step from now on."""
        check_callback(f"on_skip({callback!r})", callback)
        self._ledger.on_skip.append(callback)

    def name_parameters(self, model: torch.nn.Module) -> None:
        """Lets outcomes and plans name this model's parts; else optimizers' own names are used."""
        self._names.update({id(p): name for name, p in model.named_parameters()})
        if self._layerwise is not None:
            self._layerwise.naming.know(model)

    def step_scheduler(self, scheduler: Any, *args: Any, **kwargs: Any) -> bool:
        """Calls `scheduler.step(...)` unless its optimizer skipped the last step; see `schedule`.

        Example:
            >>> from gradscale import GradScaler
            >>> model = torch.nn.Linear(4, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
            >>> scaler = GradScaler("cpu")
            >>> scaler.scale(model(torch.full((2, 4), torch.inf)).mean()).backward()
            >>> scaler.step(optimizer)
            >>> scaler.update()
            >>> scaler.step_scheduler(scheduler), scheduler.get_last_lr()
            (False, [0.1])
        """
        if not self._enabled:
            scheduler.step(*args, **kwargs)
            return True
        return step_if_taken(self.last_step, scheduler, *args, **kwargs)

    def check_ranks(self, process_group: Any = None) -> None:
        """Compares the scale and its counters over all ranks; a collective, and a host read.

        Args:
            process_group: the ranks to compare; the scaler's own group if it has one, else all.

        Raises:
            RuntimeError: if they differ; the message names the ranks.
        """
        group = process_group if process_group is not None else self.process_group
        scale, tracker = self._check_scale_growth_tracker("check_ranks")
        ranks = differing_ranks(torch.stack([scale.detach(), tracker.to(scale.dtype)]), group)
        if ranks:
            raise RuntimeError(
                f"`check_ranks()`: ranks {ranks} differ from rank 0 in the loss scale or its "
                f"growth counter (here: scale {float(scale):g}), so they skip different steps. "
                "Pass the group over which they must agree as `GradScaler(process_group=…)`."
            )

    def __repr__(self) -> str:
        if not self._enabled:
            return f"{type(self).__name__}(enabled=False)"
        planner = "" if self._layerwise is None else f", layerwise={self._layerwise.planner!r}"
        return f"{type(self).__name__}({self._device!r}, policy={self.policy!r}{planner})"

    def set_growth_factor(self, new_factor: float) -> None:
        """Sets the policy's `growth_factor`."""
        self._growth_factor = new_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """Sets the policy's `backoff_factor`."""
        self._backoff_factor = new_factor

    def set_growth_interval(self, new_interval: int) -> None:
        """Sets the policy's `growth_interval`."""
        self._growth_interval = new_interval

    def _sound_alarm(self) -> None:
        if self.last_step.reason == "overflow":
            consecutive = self._ledger.settled_counters.consecutive
            floor = getattr(self.policy, "min_scale", MIN_SCALE)
            self._alarm.hear(consecutive, self.last_step.scale, floor, self._backoff_factor)
