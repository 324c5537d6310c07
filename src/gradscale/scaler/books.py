"""The books: outcomes counted, called back and alarmed of, and the numbers of every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradscale.layerwise import Layerwise
from gradscale.metrics.lost_count import count_lost
from gradscale.metrics.meter import FinishedStep, Meter, Subscription
from gradscale.metrics.metrics import LostShare, Metrics
from gradscale.outcomes.alarm import FloorAlarm
from gradscale.outcomes.ledger import Ledger
from gradscale.outcomes.outcome import StepOutcome
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.held_scale import HeldScale


class Books:
    """Who has to know what became of a step.

    Attributes:
        ledger: counts, and calls back.
        alarm: warns before the scale meets its floor.
        meter: hands on numbers; None until somebody asks for them.
    """

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.alarm = FloorAlarm()
        self.meter: Meter | None = None

    def sound_alarm(self, ended: StepOutcome, held: HeldScale) -> None:
        """Warns, if a step that the ledger has counted gives cause to."""
        if ended.reason == "overflow":
            consecutive = self.ledger.settled_counters.consecutive
            self.alarm.hear(consecutive, ended.scale, held.floor, held.backoff_factor)

    def note_numbers(self, step: CurrentStep, layerwise: Layerwise | None) -> None:
        """Begins to copy the numbers of a step that has ended, if anybody listens."""
        if self.meter is not None and step.closed:
            number = self.ledger.settled_counters.updates - 1
            self.meter.note(step.outcome, number, _scales_in_use(layerwise))

    def metering(self, step: CurrentStep, layerwise: Layerwise | None) -> Meter:
        """The meter; the first call begins to meter, with the step just ended."""
        if self.meter is None:
            self.meter = Meter()
            self.ledger.keep_copies(step.outcome if step.closed else ())
            self.note_numbers(step, layerwise)
        return self.meter

    def wait(self) -> None:
        """Hands on what is still under way. Waits for the device."""
        _ = self.ledger.counters
        if self.meter is not None:
            self.meter.poll(wait=True)

    def __getstate__(self) -> dict[str, Any]:
        """What has been counted; outcomes that are still under way are waited for."""
        ledger = Ledger(self.ledger.on_skip)
        ledger.counters = self.ledger.counters
        ledger.copies = self.ledger.copies
        return {**self.__dict__, "ledger": ledger}


def sends_to(meter: Meter, sink: Callable[[Metrics], object], every: int) -> Subscription:
    """Calls `sink` with the metrics of every `every`-th step."""

    def hear(finished: FinishedStep) -> None:
        sink(finished.metrics)

    return meter.listen(hear, every)


def note_lost(meter: Meter, step: int, rows: Sequence[Any]) -> None:
    """Takes the lost share of a step from the rows of a watch."""
    lost = count_lost(rows)
    if lost.lost_share is not None:
        meter.lost = LostShare(lost.lost_share, step, lost.method)


def _scales_in_use(layerwise: Layerwise | None) -> int:
    track = None if layerwise is None else layerwise.tracks.latest
    if track is None:
        return 1
    if track.decision is None:
        return len(set(track.plan.exponents))
    return len({*track.decision.scales, track.decision.log2_scale})
