"""`Watch`: measures the gradients of a training loop that knows nothing of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler as TorchScaler

from gradscale.argument_checks import format_given
from gradscale.capturing import capturing
from gradscale.compiled.preparing import prepare_compiled
from gradscale.emulation.later_passes import Roots
from gradscale.formats import FloatFormat
from gradscale.layerwise.agreement import rank_groups
from gradscale.layerwise.calendar import Calendar
from gradscale.ranks import Ranks
from gradscale.waiting_line import WaitingLine
from gradscale.watching import settings
from gradscale.watching.activations import Activations
from gradscale.watching.attaching import Attaching
from gradscale.watching.measured_pass import MeasuredPass
from gradscale.watching.measuring_step import MeasuringStep, StepSights
from gradscale.watching.passes import listen, stop_listening
from gradscale.watching.report import WatchReport
from gradscale.watching.reporting import report_of
from gradscale.watching.rows import Row
from gradscale.watching.saving import WatchState, restore, saved
from gradscale.watching.steps import Steps

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Callback = Callable[[int, Sequence[Row]], object]


class Watch:
    """What `gradscale.watch(model)` returns: measures inside its `with` block, reports any time.

        every backward pass:  does an optimizer step lie before it? then a new step begins
                              on a measuring step walk the graph and hook its nodes
        optimizer.step():     the counts start on their way to the host
        later:                once they are there, callbacks get their rows

    Attributes:
        model: that is watched, without the wrapper around it.
        scaler: whose scale the gradients are divided by, or None.
        every: steps between two measurements.

    Example:
        >>> import gradscale
        >>> model = torch.nn.Linear(4, 1)
        >>> with gradscale.watch(model) as watch:
        ...     model(torch.ones(2, 4)).sum().backward()
        >>> [row.name for row in watch.report().in_order]
        ['Linear', 'bias', 'weight']
    """

    def __init__(
        self,
        model: nn.Module,
        scaler: TorchScaler | None = None,
        *,
        every: int = 100,
        activations: bool = False,
        format: FloatFormat | torch.dtype | str | None = None,
        keep: int = 10,
        process_group: Ranks | None = None,
    ) -> None:
        self.model = settings.checked_model(model)
        self.scaler = settings.checked_scaler(scaler)
        settings.check_rest(every, keep, activations, process_group)
        self.every, self.process_group = every, process_group
        self._format = None if format is None else format_given("watch", "format", format).name
        summing = lambda: settings.holds_sums(self.scaler)  # noqa: E731
        self._steps = Steps(self.model, Calendar(self.every), self._stepped, summing)
        self._attaching = Attaching(self.model, self.scaler)
        wanted = lambda: self._steps.will_measure  # noqa: E731
        self._activations = Activations(self.model, wanted) if activations else None
        self._kept: deque[StepSights] = deque(maxlen=keep)
        self._current: MeasuringStep | None = None
        self._under_way = WaitingLine(self._arrived)
        self._running: list[MeasuredPass | None] = []
        self._callbacks: list[Callback] = []
        self._active = False
        prepare_compiled(self)  # what is compiled from now on shows what is inside

    @property
    def step(self) -> int:
        """The number of the step under way, counted from 0; -1 before the first backward pass."""
        return self._steps.step

    @property
    def measures(self) -> bool:
        """Whether the step under way is a measuring step."""
        return self._steps.measures

    @property
    def format(self) -> str:
        """The format that was asked for; ``"fp16"`` if none was."""
        return self._format or "fp16"

    def measure_next(self) -> None:
        """Makes the next step a measuring step, whatever the calendar says.

        With several ranks all must call it, or they would wait for each other.
        """
        self._steps.again = True

    def end_step(self) -> None:
        """Tells that the step under way is over.

        Needed only where nothing else tells: an optimizer that is none of torch's, or a skipped
        step whose gradients stay as they are.
        """
        self._steps.end()
        self._stepped()

    def report(
        self, format: FloatFormat | torch.dtype | str | None = None, at: int | None = None
    ) -> WatchReport:
        """What was seen in the last measuring steps, judged for a format.

        The step under way is included as far as it has come, except where ranks share a report.
        Waits for its counts; those of earlier steps that have not arrived are left out.

        Args:
            format: any format. None: the one that `watch` was given, or else the one that each
                gradient really had, or float16 for a run in float32.
            at: judge as if everything were stored at ``2**at`` times its value; None for the
                scale, and the plan, that the gradients had.

        Returns:
            The rows, worst first; empty before the first measurement.

        Raises:
            ValueError: if there is no such format, or `at` is no whole number.
        """
        chosen = self._format if format is None else FloatFormat.of(format).name
        exponent = settings.checked_exponent(at)
        self.poll()
        seen = [*self._kept, *self._unfinished()]
        functions, scaled = self._attaching.verdicts(), self.scaler is not None
        return report_of(seen, chosen, exponent, scaled=scaled, functions=functions)

    @property
    def latest(self) -> WatchReport | None:
        """The report of the latest measuring step that has arrived; None before the first."""
        self.poll()
        return self._report_of(self._kept[-1]) if self._kept else None

    def state_dict(self) -> WatchState:
        """What a resumed run needs to measure the same steps, and to judge them alike.

        Example:
            >>> import gradscale
            >>> gradscale.watch(torch.nn.Linear(4, 1)).state_dict()
            {'step': -1, 'passes': 0, 'negligible': {}}
        """
        return saved(self._steps, self._attaching.negligible)

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Goes on behind the step after which `state_dict` was called."""
        restore(state, self._steps, self._attaching.negligible, self._device())

    def on_measured(self, callback: Callback) -> None:
        """Calls ``callback(step, rows)`` for every measuring step, once its counts have arrived.

        Rows are in backward order, activations after them in forward order; of one that is not
        finite, the place is the one where that is first seen. Nothing waits: on the CPU it is
        called as the optimizer steps, on an accelerator one or more passes later.

        Raises:
            TypeError: if `callback` cannot be called.
        """
        if not callable(callback):
            raise TypeError(
                f"`watch.on_measured({callback!r})` needs a function of (step, rows) to call."
            )
        self._callbacks.append(callback)

    def off_measured(self, callback: Callback) -> None:
        """Calls it no more."""
        self._callbacks.remove(callback)

    def poll(self) -> None:
        """Hands over what has arrived; never waits."""
        self._under_way.poll()

    def wait(self) -> None:
        """Hands over everything that was measured in steps that are over; waits for the device."""
        self._under_way.poll(wait=True)

    def _arrived(self, measured: MeasuringStep) -> None:
        seen = measured.seen()
        self._kept.append(seen)
        if self._callbacks:
            rows = self._report_of(seen).in_order
            for callback in tuple(self._callbacks):
                callback(seen.step, rows)

    def _report_of(self, seen: StepSights) -> WatchReport:
        return report_of([seen], self._format, None, scaled=self.scaler is not None)

    def _unfinished(self) -> list[StepSights]:
        """What the step under way has counted so far, where nobody else must be asked."""
        if self._current is None or self._groups() or self._running:
            return []
        return [self._current.so_far()] if self._current.passes else []

    def __enter__(self) -> Watch:
        if self._active:
            raise RuntimeError(
                "`with watch:` is inside its own block. Make a second one: `gradscale.watch(model)`"
                "; any number of them may watch the same model."
            )
        self._active = True
        self._steps.start()
        if self._activations is not None:
            self._activations.start()
        listen(self._around)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stop_listening(self._around)
        if self._activations is not None:
            self._activations.stop()
        self._steps.stop()
        self._active = False
        if error is None or not self._groups():
            self._end_step()
            self.wait()
        self._current = None  # other ranks may not be here: do not wait for them

    @contextmanager
    def _around(self, tensors: Roots) -> Generator[None]:
        """One backward pass."""
        if capturing():  # each replay would add to the counts of this one pass
            yield
            return
        outermost = not self._running
        if outermost:
            self._begin_pass()
        measured = self._attach(tensors)
        self._running.append(measured)
        try:
            yield
            if measured is not None and self._current is not None:
                self._current.passes.append(measured)
        finally:
            self._running.pop()
            if measured is not None:
                measured.end()
        if outermost:
            self._steps.end_pass()

    def _begin_pass(self) -> None:
        if self._steps.over:
            self._end_step()
        self._steps.begin_pass()
        self.poll()
        if self._steps.measures and self._current is None:
            self._current = MeasuringStep(self._steps.step)

    def _attach(self, tensors: Roots) -> MeasuredPass | None:
        if self._current is None:
            return None
        outer = next((each for each in reversed(self._running) if each is not None), None)
        return self._attaching.attach(tensors, len(self._current.passes), outer)

    def _stepped(self) -> None:
        # Ranks add up as the next step begins, a place that all of them come to in the same order.
        if not self._running and not self._groups():
            self._end_step()
            self.poll()

    def _end_step(self) -> None:
        if self._current is None:
            return
        measured, self._current = self._current, None
        taken = None if self._activations is None else self._activations.take()
        measured.finish(taken, self._groups(), self._device())
        self._under_way.add(measured)

    def _groups(self) -> list[ProcessGroup]:
        return rank_groups(self.process_group)

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device
