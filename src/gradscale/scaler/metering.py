"""What a scaler says in numbers: metrics of every step, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradscale.gradients.step_gradients import StepGradients
from gradscale.layerwise import Layerwise
from gradscale.metrics.lost_count import count_lost
from gradscale.metrics.meter import FinishedStep, Meter, Subscription
from gradscale.metrics.metrics import LostShare, Metrics
from gradscale.policies.policy import Need
from gradscale.scaler.saving import SavedScaler
from gradscale.scaler.settings import check_listener


class MeteringScaler(SavedScaler):
    """A scaler that can be plotted."""

    _meter: Meter | None = None
    _step_closed: bool
    _also_needed: frozenset[Need] = frozenset()
    _gradients: StepGradients

    def metrics(self) -> Metrics:
        """The latest step whose numbers have reached the host; never waits for the device.

        On the CPU that is the step just ended. On an accelerator the numbers travel on their own
        and arrive a step or two later; `Metrics.step` says of which step they speak. The copies
        begin with the first call.

        Example:
            >>> import torch
            >>> from gradscale import GradScaler
            >>> model = torch.nn.Linear(4, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> scaler = GradScaler("cpu")
            >>> scaler.scale(model(torch.ones(2, 4)).mean()).backward()
            >>> scaler.step(optimizer)
            >>> scaler.update()
            >>> metrics = scaler.metrics()
            >>> metrics.step, metrics.scale, metrics.skipped
            (0, 65536.0, False)
        """
        return self._metering.latest

    def log_to(self, sink: Callable[[Metrics], object], every: int = 1) -> Subscription:
        """Calls `sink` with the metrics of every `every`-th step, in order, once they have arrived.

        Args:
            sink: any function of a `Metrics`; `gradscale.metrics` has some for well-known systems.
                What it raises comes out of `update()`, after the step has ended.
            every: 100 shows it the steps 0, 100, 200, …

        Returns:
            Its `remove()` ends it.

        Raises:
            TypeError: if `sink` cannot be called.
            ValueError: if `every` is below 1.

        Example:
            >>> from gradscale import GradScaler
            >>> scaler = GradScaler("cpu")
            >>> subscription = scaler.log_to(print, every=100)
            >>> subscription.remove()
        """
        check_listener(sink, every)
        return self._metering.listen(lambda finished: sink(finished.metrics), every)

    def also_measure(self, *needs: Need) -> None:
        """Has every step measure these too, for metrics and recordings; from the next step on.

        A fused optimizer's gradients are then divided before its step instead of inside it.

        Args:
            needs: ``"amax"``, one more pass over the gradients, or ``"exponents"``, a histogram.

        Raises:
            ValueError: if it is something else.

        Example:
            >>> from gradscale import GradScaler
            >>> GradScaler("cpu").also_measure("amax")
        """
        for need in needs:
            if need not in ("amax", "exponents"):
                raise ValueError(
                    f"`also_measure({need!r})` must be 'amax' or 'exponents'. Pass one of them."
                )
        self._also_needed |= frozenset(needs)
        if not self._per_optimizer_states:  # nothing of the step under way is measured yet
            self._gradients.needs = self.policy.needs | self._also_needed

    def follow(self, watch: Any) -> None:
        """Takes the lost share in `metrics()` from what a watch measures.

        Args:
            watch: what `gradscale.watch` returned.
        """
        watch.on_measured(self._note_lost)

    def _note_lost(self, step: int, rows: Sequence[Any]) -> None:
        lost = count_lost(rows)
        if lost.lost_share is not None:
            self._metering.lost = LostShare(lost.lost_share, step, lost.method)

    @property
    def _metering(self) -> Meter:
        if self._meter is None:
            self._meter = Meter()
            ended = self.last_step if self._step_closed else ()
            self._ledger.keep_copies(ended)
            self._meter_step()
        return self._meter

    def _hear_steps(self, listener: Callable[[FinishedStep], object]) -> Subscription:
        return self._metering.listen(listener)

    def _wait_for_metrics(self) -> None:
        """Hands on what is still under way. Waits for the device."""
        _ = self._ledger.counters
        self._metering.poll(wait=True)

    def _meter_step(self) -> None:
        if self._meter is None or not self._step_closed:
            return
        step = self._ledger.settled_counters.updates - 1
        self._meter.note(self.last_step, step, _scales_in_use(self._layerwise))


def _scales_in_use(layerwise: Layerwise | None) -> int:
    track = None if layerwise is None else layerwise.tracks.latest
    if track is None:
        return 1
    if track.decision is None:
        return len(set(track.plan.exponents))
    return len({*track.decision.scales, track.decision.log2_scale})
