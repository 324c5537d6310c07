"""The books: outcomes counted, called back and alarmed of, and the numbers of every step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial

from torch import Tensor

from gradscale.callers import level_of_caller
from gradscale.layerwise import Layerwise
from gradscale.metrics.lost_count import JudgedRow, count_lost
from gradscale.metrics.meter import Meter
from gradscale.metrics.metrics import LostShare
from gradscale.outcomes.alarm import SkipAlarm
from gradscale.outcomes.ledger import Ledger
from gradscale.outcomes.outcome import OptimizerOutcome
from gradscale.outcomes.triage import Reason
from gradscale.ranks import distributed, mesh_groups
from gradscale.scaler.aftermath import beyond_half
from gradscale.scaler.current_step import CurrentStep
from gradscale.scaler.device_patience import DevicePatience
from gradscale.scaler.patience import Patience
from gradscale.scaler.replicas import EVERY, Replicas

LEFT_OVER = (
    "a step was skipped because its gradients{names} were infinite or NaN before the backward "
    "pass: those of a step before, which was skipped, too, had not been cleared. Call "
    "`optimizer.zero_grad()` after every step, also one that was skipped."
)
CONSTANT = (
    " `Static({scale:g})` is a constant, so no lower scale was tried: if the loss is made of "
    "scaled gradients, or is multiplied by the scale, pass a lower one or a policy that moves."
)


class Books:
    """Who has to know what became of a step.

    Attributes:
        ledger: counts, and calls back.
        alarm: warns of a run that takes no step any more.
        patience: tries a lower scale for a loss that stays non-finite.
        device_patience: does so where the host must not look, or ranks would look apart; None until
            such a step was made.
        meter: hands on numbers; None until somebody asks for them.
        replicas: notices that other ranks decided otherwise, where nobody may ask them.
    """

    def __init__(self, sync_free: bool = False) -> None:
        self._sync_free = sync_free
        self.ledger = Ledger()
        self.alarm = SkipAlarm()
        self.patience = Patience()
        self.device_patience: DevicePatience | None = None
        self._warned_of_left_over = False
        self.meter: Meter | None = None
        self.replicas = Replicas()

    def compare_replicas(self, step: CurrentStep) -> None:
        """Now and then: do ranks that train the same weights decide alike? For a scaler alone."""
        update = self.ledger.settled_counters.updates
        # In every step, so nothing is called; the first digest is that of the first update.
        if (update % (EVERY // 2) and update != 1) or step.process_group is not None:
            return
        scale, tracker = step.held.tensor, step.held.tracker
        if scale is not None and tracker is not None:
            skipped = None if self.ledger.behind else self.ledger.settled_counters.skipped
            self.replicas.look(update, scale, tracker, skipped, step.parameters())

    def take_news(self, step: CurrentStep) -> None:
        """Tells those who have to know what has been counted: alarm, buffers, patience."""
        news, self.ledger.news = self.ledger.news, []
        for outcome in news:
            reason = outcome.reason
            if reason is not None:
                self._alert(outcome, reason, step)
            if self.device_patience is None:
                self.patience.hear(outcome, step.held)
        if self.device_patience is None:
            self.ledger.attentive = self.patience.active
            step.depends = self.patience.depends

    def note_unsettled(self, step: CurrentStep, scale: Tensor) -> None:
        """A step of which the host knows nothing has ended: where it must not ask, patience moves.

        On one accelerator it hears of such steps a little later, which is early enough. Several
        ranks would hear at different times.
        """
        if self.device_patience is not None or step.held.constant:
            return
        if self._sync_free or (distributed() and mesh_groups(step.process_group)):
            self.device_patience = DevicePatience(scale, self.patience.depends)
            step.evidence.depends = self.device_patience.depends

    def _alert(self, outcome: OptimizerOutcome, reason: Reason, step: CurrentStep) -> None:
        held = step.held
        in_a_row, update = outcome.in_a_row, self.ledger.settled_counters.updates
        if reason == "overflow" and not held.constant:
            scale, factor = outcome.scale, held.backoff_factor
            below = held.alarm_below
            self.alarm.hear_scale(in_a_row, update, scale, held.floor, factor, below)
        if reason != "overflow":
            # Bad data went through the forward pass, and what that wrote nobody takes back.
            step.models.warn_of_buffers(outcome.optimizer)
        if reason == "nonfinite_gradient" and not self._warned_of_left_over:
            self._warned_of_left_over = True
            found = ", ".join(repr(culprit.name) for culprit in outcome.culprits[:3])
            message = LEFT_OVER.format(names=f" ({found})" if found else "")
            warnings.warn(message, stacklevel=level_of_caller())
        self.alarm.hear(in_a_row, update, reason, partial(_hint, outcome, reason, step))

    def note_numbers(self, step: CurrentStep) -> None:
        """Begins to copy the numbers of a step that has ended, if anybody listens."""
        if self.meter is not None and step.closed:
            # This step has been counted already, and steps are numbered from 0.
            number = self.ledger.settled_counters.updates - 1
            self.meter.note(step.outcome, number, _scales_in_use(step.held.layerwise))

    def metering(self, step: CurrentStep) -> Meter:
        """The meter; the first call begins to meter, with the step just ended."""
        if self.meter is None:
            self.meter = Meter()
            self.ledger.keep_copies(step.outcome if step.closed else ())
            self.note_numbers(step)
        return self.meter

    def wait(self) -> None:
        """Hands on what is still under way. Waits for the device."""
        _ = self.ledger.counters
        if self.meter is not None:
            self.meter.poll(wait=True)

    def __getstate__(self) -> dict[str, object]:
        """What has been counted; outcomes that are still under way are waited for."""
        ledger = Ledger(self.ledger.on_skip)
        ledger.counters = self.ledger.counters
        ledger.copies = self.ledger.copies
        return {**self.__dict__, "ledger": ledger, "device_patience": None}


def _hint(outcome: OptimizerOutcome, reason: Reason, step: CurrentStep) -> str:
    """What else is known of steps that are skipped again and again."""
    constant = step.held.constant and reason in ("overflow", "nonfinite_loss")
    hint = CONSTANT.format(scale=outcome.scale) if constant else ""
    return hint + (beyond_half(outcome, step.names.items()) if reason == "nonfinite_loss" else "")


def note_lost(meter: Meter, step: int, rows: Sequence[JudgedRow]) -> None:
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
