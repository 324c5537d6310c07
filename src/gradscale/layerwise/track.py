"""What layer-wise scaling remembers of one graph structure from step to step."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Measurements
from gradscale.backward.multipliers import Multipliers
from gradscale.backward.plan import ScalePlan
from gradscale.layerwise.outliers import Outliers
from gradscale.layerwise.saved_plans import SavedTrack
from gradscale.plans.decision import Decision
from gradscale.plans.groups import shifted

HISTORY = 4
"""Earlier measurements whose maxima still count: gradients that were large once will be again."""

MOST_FACTORS = 8
"""Sets of pinned nodes with factors of their own; hooks that come and go make ever new ones."""


class _Factors(NamedTuple):
    """A plan, what is left of it where some nodes are pinned, and the factors of that."""

    made_for: ScalePlan
    plan: ScalePlan
    multipliers: Multipliers


class Track:
    """One structure's plan, its factors on the device, and its measurements.

    Attributes:
        graph: the latest graph of this structure, plain data.
        plan: in force; uniform at first.
        decision: how the plan came about; None before the first measurement.
        frozen: why the structure stays at one scale whatever is measured; None if it does not.
        anchor: the exponent of the loss scale that the plan was made for.
        overflows: measurements in a row in which something overflowed.
        tops: of the last decision that knew them, see `Decision`.
        outliers: what overflows have taught.
    """

    def __init__(self, graph: BackwardGraph) -> None:
        self.graph = graph
        self.plan = ScalePlan.uniform(graph)
        self.decision: Decision | None = None
        self.frozen: str | None = None
        self.anchor = self.overflows = 0
        self.tops: tuple[int, ...] = ()
        self.outliers = Outliers()
        self.history: deque[Measurements] = deque(maxlen=HISTORY)
        self._factors: dict[tuple[frozenset[int], frozenset[int]], _Factors] = {}

    @property
    def unmeasured(self) -> bool:
        """Whether a measurement is wanted, because there has been none."""
        seen = self.decision is not None or self.history or self.overflows
        return self.frozen is None and not seen

    @property
    def situation(self) -> tuple[object, ...]:
        """What the next plan depends on, besides the measurements."""
        history = len(self.history)
        return self.plan.exponents, self.frozen, self.anchor, history, self.overflows, self.outliers

    def rooms(self, log2_scale: int) -> list[int]:
        """For each node the octaves between what was measured and overflow; empty if not known."""
        stored = zip(self.tops, self.plan.exponents, strict=False)
        return [top - (log2_scale + exponent) for top, exponent in stored]

    def learn(self, step: int, room: int | None) -> None:
        """An overflow in which gradients went beyond this room, at least; None if nobody knows."""
        if room is not None:
            self.outliers = self.outliers.overflowed(step, room)

    def adopt(self, decision: Decision) -> None:
        """Takes a planner's decision."""
        self.decision, self.plan, self.anchor = decision, decision.plan, decision.log2_scale
        self.overflows = self.overflows + 1 if decision.overflowed else 0
        self.tops = decision.tops or self.tops

    def anchor_at(self, log2_scale: int) -> None:
        """Keeps the absolute exponents of a plan that was made for another loss scale."""
        difference, self.anchor = self.anchor - log2_scale, log2_scale
        if difference and not self.plan.is_uniform:
            nodes = range(len(self.plan.exponents))
            self.plan = shifted(self.plan, nodes, difference).pinning(self.graph)

    def freeze(self, why: str) -> None:
        """One scale from now on."""
        self.frozen = why
        self.plan = ScalePlan.uniform(self.graph)

    def factors(self, graph: BackwardGraph) -> tuple[ScalePlan, Multipliers]:
        """The plan as this iteration's pinned nodes allow it, and its factors on the device.

        A new plan that cuts the same edges is written over the factors of the one before, where a
        captured CUDA graph finds it. One that cuts other edges gets factors of its own.
        """
        key = graph.held, graph.freed
        known = self._factors.get(key)
        if known is not None and known.made_for == self.plan:
            return known.plan, known.multipliers
        plan = self.plan.pinning(graph)
        if known is not None and known.multipliers.suit(graph, plan):
            multipliers = known.multipliers
            multipliers.set(plan)
        else:
            multipliers = Multipliers(graph, plan)
        if known is None and len(self._factors) >= MOST_FACTORS:
            self._factors.clear()
        self._factors[key] = _Factors(self.plan, plan, multipliers)
        return plan, multipliers

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries."""
        return {
            "plan": self.plan.to_dict(),
            "frozen": self.frozen,
            "anchor": self.anchor,
            "overflows": self.overflows,
            "tops": list(self.tops),
            "outliers": list(self.outliers),
            "history": [measurements.as_dict() for measurements in self.history],
        }

    @staticmethod
    def restored(graph: BackwardGraph, saved: SavedTrack) -> Track:
        """A track that goes on where the saved one stopped."""
        track = Track(graph)
        track.plan, track.frozen, track.anchor, track.overflows = saved[:4]
        track.tops, track.outliers = saved.tops, saved.outliers
        track.history.extend(saved.history)
        return track
