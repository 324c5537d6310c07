"""A CUDA graph of a step under a plan: recorded anew when a plan cuts other edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gradscale.backward.multipliers import Multipliers
from gradscale.captured.step_result import Captured, StepResult
from gradscale.layerwise import Layerwise


class PlannedGraph:
    """Replays a recorded step, whose products read their factors on the device.

    A plan that cuts the edges of the one before writes its factors over the old ones, and the same
    graph follows it. Any other plan needs other products: the step is recorded again, once.

    Args:
        record: makes a graph of the step as written.
        layerwise: who plans.
    """

    def __init__(
        self, record: Callable[[Sequence[object]], Captured], layerwise: Layerwise
    ) -> None:
        self._record, self._layerwise = record, layerwise
        self._graph: Captured | None = None
        self._factors: Multipliers | None = None

    def __call__(self, batches: Sequence[object]) -> StepResult:
        """One step under the plan in force."""
        factors = self._factors_in_force()
        if self._graph is None or factors is not self._factors:
            self._graph = None  # its memory is free before the next one is recorded
            self._graph, self._factors = self._record(batches), factors
        return self._graph(batches)

    def _factors_in_force(self) -> Multipliers | None:
        """The factors that the recorded pass reads; None where its plan multiplies nothing."""
        track = self._layerwise.tracks.latest
        if track is None:
            return None
        plan, factors = track.factors(track.graph)
        return None if plan.is_uniform else factors
