"""What layer-wise scaling remembers of one graph structure from step to step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Measurements
from gradscale.backward.multipliers import Multipliers
from gradscale.backward.plan import ScalePlan
from gradscale.layerwise.outliers import Outliers
from gradscale.layerwise.remembered import remembered
from gradscale.layerwise.saved_plans import SavedTrack, lost_as_dict
from gradscale.plans.decision import Decision
from gradscale.plans.groups import shifted
from gradscale.plans.tail import LostStep, Tail

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
        outliers: what overflows have taught.
        lost: the last overflow, if no measurement has explained it yet.
        lost_at: the number of its step.
        slot: of the calendar, in which the latest measurement was made.
    """

    def __init__(self, graph: BackwardGraph) -> None:
        self.graph = graph
        self.plan = ScalePlan.uniform(graph)
        self.decision: Decision | None = None
        self.frozen: str | None = None
        self.anchor = self.overflows = 0
        self.outliers = Outliers()
        self.lost: LostStep | None = None
        self.lost_at = self.slot = 0
        self.history: deque[Measurements] = deque(maxlen=HISTORY)
        self._factors: dict[tuple[frozenset[int], frozenset[int]], _Factors] = {}

    @property
    def unmeasured(self) -> bool:
        """Whether a measurement is wanted, because there has been none."""
        seen = self.decision is not None or self.history or self.overflows
        return self.frozen is None and not seen

    def __str__(self) -> str:
        if self.frozen is not None:
            return f"one loss scale, as {self.frozen}"
        edges = len(self.plan.cuts(self.graph))
        if not edges:
            return "one loss scale" if self.decision else "no plan yet"
        scales = len(self.plan.groups)
        return f"{scales} loss scales, {edges} edge{'s' * (edges != 1)} multiplied"

    @property
    def situation(self) -> tuple[object, ...]:
        """What the next plan depends on, besides the measurements."""
        history = len(self.history)
        learned = self.outliers, self.lost, self.lost_at
        return self.plan.exponents, self.frozen, self.anchor, history, self.overflows, learned

    def lose(
        self, step: int, log2_scale: int, origins: Sequence[int] = (), leaves: Sequence[int] = ()
    ) -> None:
        """An overflow, for the next measurement to explain; see `LostStep`.

        Of a structure that was never measured whole nothing is known that it could go beyond.
        """
        if self.history:
            exponents = tuple(log2_scale + exponent for exponent in self.plan.exponents)
            self.lost = LostStep(exponents, tuple(origins), tuple(leaves))
            self.lost_at = step

    def learn(self, told: Tail, decision: Decision) -> None:
        """After a measurement in which nothing overflowed: what the planner made of the last."""
        if decision.tail not in (None, told):
            self.outliers = Outliers(decision.tail.reach, decision.tail.times, self.lost_at)
        self.lost = None

    def remember(self, measurements: Measurements, slot: int) -> None:
        """Keeps a measurement in which nothing overflowed.

        Those of one slot of the calendar are one, the latest with the maxima of all: the many that
        follow an overflow would drive out what was large before it.
        """
        if self.history and slot == self.slot:
            measurements = remembered(measurements, [self.history.pop()])
        self.history.append(measurements)
        self.slot = slot

    def adopt(self, decision: Decision) -> None:
        """Takes a planner's decision."""
        self.decision, self.plan, self.anchor = decision, decision.plan, decision.log2_scale
        self.overflows = self.overflows + 1 if decision.overflowed else 0

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
            "outliers": self.outliers._asdict(),
            "lost": None if self.lost is None else lost_as_dict(self.lost),
            "lost_at": self.lost_at,
            "slot": self.slot,
            "history": [measurements.as_dict() for measurements in self.history],
        }

    @staticmethod
    def restored(graph: BackwardGraph, saved: SavedTrack) -> Track:
        """A track that goes on where the saved one stopped."""
        track = Track(graph)
        track.plan, track.frozen, track.anchor, track.overflows = saved[:4]
        track.outliers, track.lost, track.lost_at = saved.outliers, saved.lost, saved.lost_at
        track.slot = saved.slot
        track.history.extend(saved.history)
        return track
