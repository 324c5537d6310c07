"""Schedules of a Lightning trainer, held where their optimizer skipped."""

from __future__ import annotations

from typing import Any

from gradscale.outcomes.schedule import step_if_taken
from gradscale.scaler import GradScaler


class LightningSchedules:
    """Has a module's `lr_scheduler_step` wait for the optimizer.

    Args:
        scaler: whose last step says whether it was taken.
    """

    def __init__(self, scaler: GradScaler) -> None:
        self._scaler = scaler
        self._model: Any = None

    @property
    def held(self) -> bool:
        """Whether schedules wait."""
        return self._model is not None

    def hold(self, model: Any, trainer: Any) -> None:
        """Schedules that move by the step wait from now on; those that move by the epoch go on."""
        step = model.lr_scheduler_step

        def lr_scheduler_step(scheduler: Any, metric: Any) -> None:
            configs = trainer.lr_scheduler_configs
            by_step = any(c.scheduler is scheduler and c.interval == "step" for c in configs)
            if not by_step:
                step(scheduler, metric)
                return
            leader = getattr(scheduler, "optimizer", None)
            step_if_taken(self._scaler.last_step, _Call(step, scheduler, metric), optimizer=leader)

        self._model = model
        # Around the module's own, which its user may have written.
        model.__dict__["lr_scheduler_step"] = lr_scheduler_step

    def release(self) -> None:
        """Leaves the module as it was."""
        if self._model is not None:
            self._model.__dict__.pop("lr_scheduler_step", None)
            self._model = None


class _Call:
    """A call that is made or not, in the shape of a scheduler."""

    def __init__(self, step: Any, *args: Any) -> None:
        self._step, self._args = step, args

    def step(self) -> None:
        self._step(*self._args)
