"""`gradscale.GradScaler` listened to: it says everything by itself."""

from __future__ import annotations

from collections.abc import Callable

from gradscale.metrics.meter import FinishedStep
from gradscale.outcomes.outcome import OptimizerOutcome
from gradscale.recording.facts import Facts
from gradscale.scaler import GradScaler


class OurSource:
    """A `gradscale.GradScaler`: everything is known, and nothing is waited for.

    Args:
        scaler: whose steps.
        departed: called as a step ends.
        arrived: called once its values have arrived, in the order of the steps.
    """

    def __init__(
        self,
        scaler: GradScaler,
        departed: Callable[[], None],
        arrived: Callable[[Facts], None],
    ) -> None:
        self._scaler, self._arrived = scaler, arrived
        meter = scaler._metering
        # Both, because outcomes arrive later than steps end where a device is waited for.
        self._subscriptions = [
            meter.see_off(lambda step: departed()),
            meter.listen(self._hear),
        ]

    def _hear(self, finished: FinishedStep) -> None:
        metrics, outcomes = finished.metrics, list(finished.outcome)
        skips = tuple(outcome.skipped for outcome in outcomes)
        # A step that was taken without some micro-batches may have overflowed all the same.
        overflow = any(map(_blamed, outcomes)) or (not metrics.skipped and finished.overflow)
        dropped = metrics.dropped or 0
        self._arrived(
            Facts(
                scale=metrics.scale,
                skipped=metrics.skipped,
                reason=metrics.reason,
                overflow=overflow,
                asked=finished.outcome.observation is not None,
                optimizers=skips if len(skips) > 1 else (),
                dropped=dropped,
                micro_batches=sum(it.micro_batches for it in outcomes) if dropped else 0,
                culprits=tuple(culprit.name for culprit in finished.outcome.culprits),
                groups=metrics.groups,
                amax=metrics.amax,
                exponents=finished.exponents,
            )
        )

    def wait(self) -> None:
        """Has everything arrive. Waits for the device."""
        self._scaler._books.wait()

    def leave(self) -> None:
        """Listens no more."""
        for subscription in self._subscriptions:
            subscription.remove()


def _blamed(outcome: OptimizerOutcome) -> bool:
    """Whether the policy was shown an overflow of this optimizer's."""
    overflowed = outcome.reason == "overflow" and not outcome.unrepresentable
    return outcome.skipped and (outcome.blames_scale or overflowed)
