"""Who says what became of a step: our scaler, torch's, or the training loop itself."""

from __future__ import annotations

from typing import Any, Protocol

from torch.amp.grad_scaler import GradScaler as TorchScaler

from gradscale.metrics.meter import FinishedStep
from gradscale.outcomes.outcome import OptimizerOutcome
from gradscale.recording.facts import Facts
from gradscale.scaler import GradScaler


class Listener(Protocol):
    """Who is told: of a step as it ends, and again once its values have arrived, both in order."""

    def departed(self) -> None:
        """A step has ended."""

    def arrived(self, facts: Facts) -> None:
        """The oldest step that has not arrived yet has."""


class Source(Protocol):
    """A scaler that is listened to."""

    def wait(self) -> None:
        """Has everything arrive. Waits for the device."""

    def leave(self) -> None:
        """Listens no more."""


class OurSource:
    """A `gradscale.GradScaler`: everything is known, and nothing is waited for."""

    def __init__(self, scaler: GradScaler, listener: Listener) -> None:
        self._scaler, self._listener = scaler, listener
        meter = scaler._metering
        self._subscriptions = [
            meter.see_off(lambda step: listener.departed()),
            meter.listen(self._hear),
        ]

    def _hear(self, finished: FinishedStep) -> None:
        metrics, outcomes = finished.metrics, list(finished.outcome)
        skips = tuple(outcome.skipped for outcome in outcomes)
        # A step that was taken without some micro-batches may have overflowed all the same.
        overflow = any(map(_blamed, outcomes)) or (not metrics.skipped and finished.overflow)
        dropped = metrics.dropped or 0
        self._listener.arrived(
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


def scaler_to_follow(scaler: Any) -> TorchScaler | None:
    """The scaler; None without one, or for one that is switched off.

    Raises:
        TypeError: if it is no scaler that is known.
    """
    if scaler is None:
        return None
    if not isinstance(scaler, TorchScaler):
        raise TypeError(
            f"`Recorder(scaler={type(scaler).__name__}(…))` must be a `gradscale.GradScaler` or a "
            "`torch.amp.GradScaler`. For another one leave it out, and call `recorder.step()` "
            "after every step."
        )
    return scaler if scaler.is_enabled() else None


def source_of(scaler: TorchScaler | None, listener: Listener) -> Source | None:
    """How to listen to a scaler."""
    from gradscale.recording.torch_source import TorchSource

    if scaler is None:
        return None
    if isinstance(scaler, GradScaler):
        return OurSource(scaler, listener)
    return TorchSource(scaler, listener)
