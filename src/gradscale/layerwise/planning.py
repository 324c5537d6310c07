"""What to decide: the planner, the plan of each structure, and the loss scale that they ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from gradscale.backward.graph import Walk
from gradscale.backward.measure import Measuring, measure
from gradscale.backward.measurements import Measurements
from gradscale.exponents import floor_exponent
from gradscale.layerwise.layerwise_report import LayerwiseReport
from gradscale.layerwise.naming import Naming
from gradscale.layerwise.overflow_suspects import lower_suspects, nonfinite_leaves
from gradscale.layerwise.product_format import fitted
from gradscale.layerwise.remembered import remembered
from gradscale.layerwise.saved_plans import SavedPlans
from gradscale.layerwise.timing import EndedStep
from gradscale.layerwise.track import Track
from gradscale.layerwise.tracks import Tracks
from gradscale.plans.decision import Decision
from gradscale.plans.planner import Planner, UserGiven
from gradscale.plans.situation import Situation


class When(NamedTuple):
    """A step that begins, and the slot of the calendar in which the one before was measured."""

    step: int
    slot: int


class Planning:
    """Turns measurements into plans.

    Attributes:
        planner: decides the exponents.
        tracks: the structures that are known, with their plans.
        naming: what their nodes are called.
    """

    def __init__(self, planner: Planner, keep: int) -> None:
        self.planner = planner
        self.tracks = Tracks(keep)
        self.naming = Naming()
        self._fitted = planner
        self._lowered: int | None = None

    def __str__(self) -> str:
        """The planner, and the plan of the graph met last."""
        waiting = "loaded plans wait for their graphs" if self.tracks.followed else "no plan yet"
        return f"{type(self.planner).__name__}: {self.tracks.latest or waiting}"

    def measure(self, walk: Walk, exponents: tuple[int, ...], scale: Tensor) -> Measuring:
        """Counts what the planner needs in one backward pass."""
        self._fitted = fitted(self.planner)
        return measure(
            walk,
            exponents,
            scale,
            products=self._fitted.products,
            moments=self._fitted.moments,
            # A planner of somebody else's may want to know of every element.
            sampled=getattr(self._fitted, "sampled", False),
        )

    @property
    def given(self) -> bool:
        """Whether the plan is somebody's own: it stays, and the policy lowers the scale."""
        return isinstance(self.planner, UserGiven)

    def overflowed_unmeasured(self, step: EndedStep, *, gradients: bool) -> None:
        """After an overflow that nobody measured: it is remembered; who may be to blame goes down.

        Args:
            step: the one that was lost.
            gradients: whether they are still there, to tell the groups that may be to blame.
        """
        if self.given or step.signature is None or step.signature not in self.tracks:
            return
        track, log2_scale = self.tracks[step.signature], floor_exponent(step.outcome.scale)
        leaves = nonfinite_leaves(track.graph) if gradients else []
        track.lose(step.number, log2_scale, leaves=leaves)
        if gradients:
            self._lowered = lower_suspects(track, leaves, log2_scale)

    def carry_out_lowering(self, scale: Tensor) -> None:
        """Sets the loss scale that `overflowed_unmeasured` asked for."""
        if self._lowered is not None:
            scale.fill_(2.0**self._lowered)
            self._lowered = None

    def decide(
        self, merged: Mapping[str, Measurements], before: float, scale: Tensor, when: When
    ) -> bool:
        """Plans anew for all graphs that were measured.

        Args:
            merged: by signature, what was measured.
            before: the loss scale at which it was.
            scale: changed in place into the lowest that the plans ask for.
            when: the step that begins.

        Returns:
            Whether one of them overflowed, so that its new plan wants to be measured at once.
        """
        open_to_change = {
            key: measurements
            for key, measurements in merged.items()
            if key in self.tracks and self.tracks[key].frozen is None
        }
        if not open_to_change:
            return False
        log2_scale = floor_exponent(before)
        lowest = min(
            self._decide(self.tracks[key], measurements, log2_scale, when).log2_scale
            for key, measurements in open_to_change.items()
        )
        # No scale is ever below the smallest normal float32, nor infinite.
        scale.fill_(2.0 ** max(-126, min(127, lowest)))
        for track in self.tracks:
            track.anchor_at(lowest)
        return any(measurements.overflowed for measurements in open_to_change.values())

    def _decide(
        self, track: Track, measurements: Measurements, log2_scale: int, when: When
    ) -> Decision:
        overflowed = measurements.overflowed
        seen = measurements if overflowed else remembered(measurements, track.history)
        names = self.naming.of(track)
        known = track.history[-1] if track.history else None
        tail, lost = track.outliers.tail(when.step), track.lost
        situation = Situation(
            track.graph, seen, track.plan, log2_scale, names, known, track.overflows, tail, lost
        )
        decision = self._fitted.decide(situation)
        if overflowed:
            track.lose(when.step - 1, log2_scale, origins=decision.overflowed)
        else:
            track.learn(tail, decision)
            track.remember(measurements, when.slot)
        track.adopt(decision)
        return decision

    def report(self, functions: Sequence[str]) -> LayerwiseReport:
        """How many loss scales each structure needs, where and why; the latest structure last.

        Args:
            functions: what is said of the user's own.
        """
        described = [self.naming.describe(track) for track in self.tracks]
        known = tuple(it for it in described if it is not None)
        if not described and self.tracks.followed:
            waiting = "loaded plans come into force as their graphs are met"
            return LayerwiseReport(known, tuple(functions), waiting)
        return LayerwiseReport(known, tuple(functions))

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries."""
        return {"lowered": self._lowered, "tracks": self.tracks.state_dict()}

    def take_over(self, saved: SavedPlans) -> None:
        """Goes on where another run stopped."""
        self.tracks.take_over(saved.tracks)
        self._lowered = saved.lowered
