"""The steps of a scaler as metrics, in order, as soon as the host knows them and never sooner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from gradscale.capturing import capturing
from gradscale.host_copies import HostCopies
from gradscale.metrics.metrics import LostShare, Metrics
from gradscale.outcomes.counters import Counters
from gradscale.outcomes.outcome import StepOutcome
from gradscale.waiting_line import WaitingLine

Sink = Callable[[Metrics], object]
Listener = Callable[["FinishedStep"], object]


class FinishedStep(NamedTuple):
    """A step whose values have arrived.

    Attributes:
        metrics: as numbers.
        outcome: what it consisted of.
        exponents: the histogram of its gradients, on the host; None unless it was measured.
        overflow: whether a micro-batch that was left out had overflowed.
    """

    metrics: Metrics
    outcome: StepOutcome
    exponents: Tensor | None
    overflow: bool = False


@dataclass
class _Step:
    """One that has ended, and whose numbers may not be there yet."""

    step: int
    outcome: StepOutcome
    groups: int
    lost: LostShare | None
    copies: HostCopies[Tensor | None]
    waited: bool = False

    @property
    def arrived(self) -> bool:
        """Whether the ledger has counted it, or nobody waits for that any more, and all is here."""
        counted = self.waited or all(one.counted is not None for one in self.outcome)
        return counted and self.copies.arrived

    def wait(self) -> None:
        self.copies.wait()
        self.waited = True


class Subscription:
    """Somebody who is told of steps, until `remove()`; also a context manager."""

    def __init__(self, remove: Callable[[], object]) -> None:
        self._remove: Callable[[], object] | None = remove

    def remove(self) -> None:
        """Ends it; a second time does nothing."""
        if self._remove is not None:
            self._remove()
        self._remove = None

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


class Meter:
    """Turns outcomes into `Metrics`; copies nothing until somebody asks.

    Attributes:
        lost: the latest measurement of what is lost, made by somebody else.

    Example:
        >>> Meter().latest.step
        -1
    """

    def __init__(self) -> None:
        self.lost: LostShare | None = None
        self._listeners: list[tuple[Listener, int]] = []
        self._departed: list[Callable[[int], object]] = []
        self._line = WaitingLine(self._hand_on)
        self._latest: _Step | None = None
        self._known: Metrics = Metrics()
        self._asked = False
        self._noted: StepOutcome | None = None

    def listen(self, listener: Listener, every: int = 1) -> Subscription:
        """Calls `listener` with every `every`-th step, in order, once its values are there."""
        entry = (listener, every)
        self._listeners.append(entry)
        return Subscription(lambda: self._listeners.remove(entry))

    def see_off(self, departed: Callable[[int], object]) -> Subscription:
        """Calls `departed` with the index of every step as it ends, before its values arrive."""
        self._departed.append(departed)
        return Subscription(lambda: self._departed.remove(departed))

    def note(self, outcome: StepOutcome, step: int, groups: int) -> None:
        """Takes a finished step; hands on those that have arrived by now.

        Args:
            outcome: of the step, already counted by the ledger as far as it is known.
            step: its index.
            groups: how many loss scales are in use.
        """
        if outcome is self._noted or not len(outcome):
            return
        self._noted = outcome
        if not (self._asked or self._listeners):
            # Nobody listens. The latest is kept all the same, for whoever asks first.
            self._latest = _Step(step, outcome, groups, self.lost, _NOTHING)
            return
        if _capturing(outcome):
            return
        # A copy: who is told may take itself off the list.
        for departed in tuple(self._departed):
            departed(step)
        self._line.add(_depart(step, outcome, groups, self.lost))

    def poll(self, *, wait: bool = False) -> None:
        """Hands on what has arrived; with `wait`, all of it."""
        self._line.poll(wait=wait)

    @property
    def latest(self) -> Metrics:
        """The latest step whose values have arrived; see `Metrics.step`. Never waits."""
        if not self._asked and not self._listeners and self._latest is not None:
            # The first to ask: of the step just ended nothing has been copied yet.
            first, self._latest = self._latest, None
            self._line.add(_depart(first.step, first.outcome, first.groups, first.lost))
        self._asked = True
        self.poll()
        if self._latest is not None:
            self._known, self._latest = _finished(self._latest).metrics, None
        return self._known

    def _hand_on(self, step: _Step) -> None:
        self._latest = step
        due = [it for it, every in self._listeners if step.step % every == 0]
        if not due:
            return
        finished = _finished(step)
        self._known, self._latest = finished.metrics, None
        for listener in due:
            listener(finished)

    def __reduce__(self) -> tuple[type[Meter], tuple[()]]:
        # Sinks hold files and connections: a copy of a scaler starts without them.
        return Meter, ()


_NOTHING = HostCopies[Tensor | None]([])


def _depart(step: int, outcome: StepOutcome, groups: int, lost: LostShare | None) -> _Step:
    """A step whose numbers are on their way to the host from now on."""
    observation = outcome.observation
    amax = None if observation is None else observation.amax
    exponents = None if observation is None else observation.exponents
    dropped = [it.dropped_micro_batches for it in outcome if it.dropped_micro_batches is not None]
    shown = observation.found_inf if dropped and observation is not None else None
    copies = HostCopies([_device_scale(outcome), amax, exponents, shown, *dropped])
    return _Step(step, outcome, groups, lost, copies)


def _device_scale(outcome: StepOutcome) -> Tensor | None:
    scale = next(iter(outcome))._scale
    return scale if isinstance(scale, Tensor) else None


def _finished(step: _Step) -> FinishedStep:
    scale, amax, exponents, shown, *dropped = step.copies.tensors
    outcome = step.outcome
    counters = [one.counted for one in outcome if one.counted is not None]
    total = counters[-1] if counters else Counters()
    metrics = Metrics(
        step=step.step,
        scale=outcome.scale if scale is None else float(scale),
        skipped=outcome.skipped,
        reason=outcome.reason,
        dropped=sum(int(count) for count in dropped if count is not None) if dropped else None,
        steps=total.steps,
        skipped_steps=total.skipped,
        consecutive=total.consecutive,
        reasons=dict(total.reasons),
        groups=step.groups,
        amax=None if amax is None else float(amax),
        lost=step.lost,
    )
    return FinishedStep(metrics, outcome, exponents, shown is not None and bool(shown))


def _capturing(outcome: StepOutcome) -> bool:
    """Whether a graph is captured: the host runs this once, the graph many times."""
    return next(iter(outcome)).found_inf[0].device.type != "cpu" and capturing()
