"""A captured step that follows a plan: what the host does around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gradscale.captured.compiled import CompiledStep
from gradscale.captured.planned_gradients import PlannedGradients
from gradscale.captured.step_result import Captured, StepResult
from gradscale.captured.traced_counts import CountedPass
from gradscale.layerwise import Layerwise
from gradscale.outcomes.outcome import OptimizerOutcome, StepOutcome
from gradscale.scaler.scaler import GradScaler


def measures(scaler: GradScaler) -> bool:
    """Whether the next step measures; what the last such step has seen becomes a plan now."""
    held = scaler._held
    if held.layerwise is None or held.tensor is None:
        return held.layerwise is not None
    held.layerwise.begin_step(held.tensor)
    return held.layerwise.timing.now


class PlannedStep:
    """Runs a captured step under the plan in force, and tells the scaler what became of it.

    Args:
        run: the captured step; follows the plan in force by itself.
        scaler: whose plan it is.
        optimizer: that it steps.
        counted: what a measuring step has counted, as the scaler takes it.
    """

    def __init__(
        self,
        run: Captured,
        scaler: GradScaler,
        optimizer: torch.optim.Optimizer,
        counted: Callable[[StepResult, torch.Tensor], Sequence[CountedPass]] | None = None,
    ) -> None:
        self._run, self._scaler, self._optimizer = run, scaler, optimizer
        self._counted = counted

    def __call__(self, batches: Sequence[object]) -> StepResult:
        """One step."""
        measures(self._scaler)
        scale = self._scaler._held.ready("step").clone()
        result = self._run(batches)
        self._tell(result, scale)
        return result

    def _tell(self, result: StepResult, scale: torch.Tensor) -> None:
        """The scaler's books and calendar take note of the step, as at the end of `update()`."""
        held, step, books = self._scaler._held, self._scaler._step, self._scaler._books
        step.evidence.note_loss(result.loss)
        # The next captured step may overwrite the flag.
        flags = [result.found_inf.clone()]
        step.outcome = StepOutcome()
        step.outcome.add(OptimizerOutcome(self._optimizer, flags, scale, step.evidence))
        if held.layerwise is not None:
            if self._counted is not None:
                held.layerwise.passes.measurings += self._counted(result, scale)
            held.layerwise.update(step.outcome, scale)
        try:
            if books.ledger.add(step.outcome):
                books.take_news(step)
        finally:
            step.begin()


class PlannedForms:
    """The two compiled forms of one step: one that follows a plan, and one that measures as well.

    Args:
        plain: follows the plan.
        measuring: follows it and counts; compiled when it is first needed.
        gradients: of both.
        layerwise: whose plan it is.
    """

    def __init__(
        self,
        plain: CompiledStep,
        measuring: CompiledStep,
        gradients: PlannedGradients,
        layerwise: Layerwise,
    ) -> None:
        self._plain, self._measuring = plain, measuring
        self._gradients, self._layerwise = gradients, layerwise

    def __call__(self, batches: Sequence[object]) -> StepResult:
        """One step, in the form that is due."""
        form = self._measuring if self._layerwise.timing.now else self._plain
        known = self._gradients.graph is not None
        self._gradients.follow()
        try:
            return form(batches)
        except Exception:
            if known or self._gradients.graph is None:
                raise
        self._gradients.follow()  # the trace was ended once the graph was known
        return form(batches)

    def counted(self, result: StepResult, scale: torch.Tensor) -> list[CountedPass]:
        """What each backward pass of a step has counted."""
        graph, counts = self._gradients.graph, self._gradients.counts
        if graph is None or counts is None:
            return []
        exponents = self._gradients.exponents(graph)
        return [CountedPass(graph, exponents, scale, counts, rows) for rows in result.counted]
