"""One training step of layer-wise scaling: the part of `GradScaler(layerwise=…)` that acts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from gradscale.backward.graph import BackwardGraph, Walk
from gradscale.backward.loss_entry import LossEntry
from gradscale.backward.measure import Measuring, measure
from gradscale.backward.measurements import Measurements
from gradscale.backward.rescale import rescale
from gradscale.capturing import capturing
from gradscale.layerwise.agreement import Wishes, on_any_rank, rank_groups, reduced
from gradscale.layerwise.calendar import Calendar
from gradscale.layerwise.emulated import fitted
from gradscale.layerwise.finished import Finished, has_bad_data, lost_to_scale
from gradscale.layerwise.given import planner_given
from gradscale.layerwise.hidden import Leaves, custom_nodes, owned, refusal
from gradscale.layerwise.naming import Naming
from gradscale.layerwise.own_exponents import carried, freed
from gradscale.layerwise.suspicion import lower_suspects
from gradscale.layerwise.track import Track, exponent_of
from gradscale.layerwise.tracks import Tracks
from gradscale.outcomes.outcome import StepOutcome
from gradscale.plans.planner import Decision, Planner
from gradscale.plans.windows import Windows


class Layerwise:
    """Gives every part of a network its own loss scale, replanned as training goes on.

        every backward pass:   walk the graph; on a measuring step hook all its nodes to measure,
                               if its plan is not uniform hook the edges whose ends differ
        update():              on a measuring step begin to copy the measurements to the host
        next scale():          planner(graph, measurements) -> plan and loss scale

    A step that neither measures nor has a plan walks nothing and costs nothing.

    Args:
        planner: decides the exponents.
        measure_every: steps between two measurements; the first steps measure more often.
        keep: how many graph structures are remembered; the one unused for longest is forgotten.
        process_group: the ranks that must have the same plan; None for all of them.

    Example:
        >>> from gradscale import GradScaler
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> scaler = GradScaler("cpu", layerwise=Layerwise(measure_every=50))
        >>> scaler.scale(model(torch.ones(2, 4)).mean()).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()
    """

    def __init__(
        self,
        planner: Planner | None = None,
        *,
        measure_every: int = 100,
        keep: int = 8,
        process_group: Any = None,
    ) -> None:
        self.planner: Planner = planner if planner is not None else Windows()
        self._planning = self.planner
        self.calendar = Calendar(measure_every)
        self.process_group = process_group
        self.tracks = Tracks(keep)
        self.steps = 0
        self._entry = LossEntry(self._begin_pass)
        self._scale: Tensor | None = None
        self._again = False
        self._unsettled: list[StepOutcome] = []
        self._wishes = Wishes()
        self.taken = False
        self._finished: Finished | None = None
        self._lowered: int | None = None
        self.naming = Naming()
        self._hiding = False
        self._warned: set[str] = set()
        self._begin_step()

    @classmethod
    def of(cls, layerwise: Any, process_group: Any) -> Layerwise:
        """What `GradScaler(layerwise=…)` means: True, a planner, a plan, a function or this class.

        Raises:
            TypeError: if it is none of these.
        """
        if isinstance(layerwise, Layerwise):
            if layerwise.taken:
                raise ValueError(
                    "`GradScaler(layerwise=Layerwise(…))`: that one belongs to another scaler, and "
                    "holds its plans. Make one for each."
                )
            layerwise.taken = True
            if layerwise.process_group is None:
                layerwise.process_group = process_group
            return layerwise
        return cls(planner_given(layerwise), process_group=process_group)

    def begin_step(self, scale: Tensor) -> None:
        """Before the first loss of a step is scaled: the last measurement becomes a plan.

        Args:
            scale: the loss scale; changed in place if the planner moved it.
        """
        self._scale = scale
        if self._fresh:
            self._fresh = False
            self._plan(scale)

    def attach(self, loss: Tensor) -> Tensor:
        """The same loss, watched if this step measures or follows a plan; otherwise as it is."""
        return self._entry.watch(loss) if self._measures or self.tracks.followed else loss

    def after_unscale(self, optimizer: Any) -> None:
        """Refuses gradients of which nobody knows whether the plan scaled them.

        Raises:
            RuntimeError: if a parameter's gradient came from a backward pass that was not seen.
        """
        if not self._leaves.walked or not self._custom:
            return
        missed = self._leaves.missed(owned(optimizer))
        if missed and self._leaves.scaled and not self._hiding:
            raise refusal(missed, self.naming.parameters)
        self._hiding |= bool(missed)

    def update(self, last_step: StepOutcome) -> None:
        """Ends a step: the measurements start on their way to the host."""
        groups = rank_groups(self.process_group)
        if self._measurings or (self._measures and groups):
            measurings = self._agreed(groups)
            for measuring in measurings:
                measuring.fetch()
            scale = cast(Tensor, self._scale).detach().clone()
            bad = on_any_rank(has_bad_data(last_step), groups, scale.device) if groups else None
            self._finished = Finished(measurings, last_step, scale, bad)
        self._watch_outcomes(last_step, groups)
        self.steps += 1
        self._begin_step()

    def _begin_pass(self, walk: Walk) -> None:
        graph = walk.graph
        track = self.tracks.of(graph)
        self._again |= track.unmeasured
        self._custom |= bool(custom_nodes(walk) - graph.structure.pinned)
        if self._hiding:
            graph = graph.pinning(custom_nodes(walk))
            walk = Walk(graph, walk.nodes)
        graph, walk, own = freed(walk)
        track.graph = graph
        plan, factors = track.factors(graph)
        if own:
            plan, factors = carried(graph, own, plan, factors)
        if self._measures and not capturing():
            scale = cast(Tensor, self._scale)
            self._planning = fitted(self.planner, walk.nodes)
            products, moments = self._planning.products, self._planning.moments
            measuring = measure(walk, plan.exponents, scale, products=products, moments=moments)
            self._measurings.append(measuring)
        if not plan.is_uniform:
            rescale(walk, plan, factors)
        self._leaves.see(graph, scaled=not plan.is_uniform)
        self._report_reentrant(graph)

    def _report_reentrant(self, graph: BackwardGraph) -> None:
        if graph.structure.reentrant:
            self._warn_once(
                "layer-wise scaling: reentrant checkpointing hides what it recomputes, which "
                "stays at the loss scale. Pass `use_reentrant=False` to `checkpoint` to have it "
                "scaled too."
            )

    def _begin_step(self) -> None:
        self._fresh = True
        self._measures = self._again or self.calendar.due(self.steps)
        self._again = False
        self._measurings: list[Measuring] = []
        self._leaves = Leaves()
        self._custom = False

    def _agreed(self, groups: Sequence[Any]) -> Sequence[Measuring]:
        """The measurements of all ranks; where their graphs differ, one scale for all of them."""
        device = cast(Tensor, self._scale).device
        situations = [self.tracks[m.signature].situation for m in self._measurings]
        if reduced(self._measurings, situations, groups, device):
            return self._measurings
        for measuring in self._measurings:
            measuring.remove()
            self.tracks[measuring.signature].freeze("ranks run different graphs")
        self._warn_once(
            "layer-wise scaling: ranks run different graphs, so their plans could differ; these "
            "graphs stay at one loss scale."
        )
        return []

    def _watch_outcomes(self, last_step: StepOutcome, groups: Sequence[Any]) -> None:
        """After an overflow: those groups go down at once, and the next step measures again."""
        if groups:
            flags = [flag for outcome in last_step for flag in outcome.found_inf]
            self._again = self._wishes.ask(self._again, flags, groups)
            return
        self._unsettled.append(last_step)
        while self._unsettled and all(outcome.settled for outcome in self._unsettled[0]):
            step = self._unsettled.pop(0)
            if not lost_to_scale(step):
                continue
            self._again = True
            track = self.tracks.latest
            alone = len(self._leaves.signatures) == 1  # else it may have been another graph's
            if step is last_step and not self._measurings and alone and track is not None:
                self._lowered = lower_suspects(track, exponent_of(step.scale))

    def _plan(self, scale: Tensor) -> None:
        """Turns the last step's measurements into plans, and sets the loss scale they ask for."""
        if self._lowered is not None:
            scale.fill_(2.0**self._lowered)
            self._lowered = None
        if self._finished is None:
            return
        finished, self._finished = self._finished, None
        merged = finished.merged()
        if any(m.overflowed for m in merged.values()) and not finished.blames_scale():
            self._again = self._measures = True
            return
        log2_scale = exponent_of(float(finished.scale))
        decisions = [
            self._decide(self.tracks[key], measurements, log2_scale)
            for key, measurements in merged.items()
            if key in self.tracks and self.tracks[key].frozen is None
        ]
        if decisions:
            lowest = min(decision.log2_scale for decision in decisions)
            scale.fill_(2.0 ** max(-126, min(127, lowest)))
            for track in self.tracks:
                track.anchor_at(lowest)

    def _decide(self, track: Track, measurements: Measurements, log2_scale: int) -> Decision:
        overflowed = measurements.overflowed
        seen = measurements if overflowed else measurements.with_maxima(track.history)
        decision = self._planning.decide(
            track.graph, seen, track.plan, log2_scale, self.naming.of(track)
        )
        if overflowed:
            self._measures = True
        else:
            track.history.append(measurements)
        track.adopt(decision)
        return decision

    def report(self) -> str:
        """How many loss scales each structure needs, where and why; the latest structure last."""
        described = [self.naming.describe(track) for track in self.tracks]
        unmeasured = "nothing has been measured yet"
        if not described and self.tracks.followed:
            unmeasured = "loaded plans come into force as their graphs are met"
        return "\n".join(filter(None, described)) or unmeasured

    def state_dict(self) -> dict[str, Any]:
        """Plans, measurements and counters: a resumed run goes on bit for bit."""
        if self._finished is not None and self._scale is not None:
            self._plan(self._scale)
        return {
            "steps": self.steps,
            "again": self._measures,
            "hiding": self._hiding,
            "lowered": self._lowered,
            "tracks": self.tracks.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave; each plan comes into force as its graph is met."""
        self.tracks.load_state_dict(state["tracks"])
        self.steps, self._hiding, self._lowered = state["steps"], state["hiding"], state["lowered"]
        self._finished, self._unsettled = None, []
        self._again = state["again"]
        self._begin_step()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "settings": (self.planner, self.calendar.every, self.tracks.keep),
            "state": self.state_dict(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        planner, every, keep = state["settings"]
        self.__init__(planner, measure_every=every, keep=keep)
        self.load_state_dict(state["state"])

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=2)
