"""What layer-wise scaling remembers of one graph structure from step to step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Measurements
from gradscale.backward.multipliers import Multipliers
from gradscale.plans.plan import ScalePlan
from gradscale.plans.planner import Decision, moved

HISTORY = 4
"""Earlier measurements whose maxima still count: gradients that were large once will be again."""


class Track:
    """One structure's plan, its factors on the device, and its measurements.

    Attributes:
        graph: the latest graph of this structure, plain data.
        plan: in force; uniform at first.
        decision: how the plan came about; None before the first measurement.
        frozen: why the structure stays at one scale whatever is measured; None if it does not.
        anchor: the exponent of the loss scale that the plan was made for.
    """

    def __init__(self, graph: BackwardGraph) -> None:
        self.graph = graph
        self.plan = ScalePlan.uniform(graph)
        self.decision: Decision | None = None
        self.frozen: str | None = None
        self.anchor = 0
        self.history: deque[Measurements] = deque(maxlen=HISTORY)
        self._factors: dict[frozenset[int], tuple[ScalePlan, Multipliers]] = {}

    @property
    def unmeasured(self) -> bool:
        """Whether a measurement is wanted, because there has been none."""
        return self.frozen is None and self.decision is None and not self.history

    def adopt(self, decision: Decision) -> None:
        """Takes a planner's decision."""
        self.decision, self.anchor = decision, decision.log2_scale
        self.move_to(decision.plan)

    def anchor_at(self, log2_scale: int) -> None:
        """Keeps the absolute exponents of a plan that was made for another loss scale."""
        difference, self.anchor = self.anchor - log2_scale, log2_scale
        if difference and not self.plan.is_uniform:
            nodes = range(len(self.plan.exponents))
            self.move_to(moved(self.plan, nodes, difference).pinning(self.graph))

    def move_to(self, plan: ScalePlan) -> None:
        """Changes the plan; its factors are written when it is next used."""
        if plan != self.plan:
            self.plan = plan
            self._factors.clear()

    def freeze(self, why: str) -> None:
        """One scale from now on."""
        self.frozen = why
        self.move_to(ScalePlan.uniform(self.graph))

    def factors(self, graph: BackwardGraph) -> tuple[ScalePlan, Multipliers]:
        """The plan as this iteration's pinned nodes allow it, and its factors on the device."""
        known = self._factors.get(graph.pinned)
        if known is None:
            plan = self.plan.pinning(graph)
            known = plan, Multipliers(graph, plan)
            self._factors[graph.pinned] = known
        return known

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries."""
        return {
            "plan": self.plan.to_dict(),
            "frozen": self.frozen,
            "anchor": self.anchor,
            "history": [measurements.as_dict() for measurements in self.history],
        }

    @staticmethod
    def restored(graph: BackwardGraph, state: Mapping[str, Any]) -> Track:
        """A track that goes on where the saved one stopped."""
        track = Track(graph)
        track.plan = ScalePlan.from_dict(state["plan"])
        track.frozen, track.anchor = state["frozen"], state["anchor"]
        track.history.extend(Measurements.from_dict(saved) for saved in state["history"])
        return track


def exponent_of(scale: float) -> int:
    """The base-2 exponent of a scale, rounded down."""
    return math.frexp(scale)[1] - 1
