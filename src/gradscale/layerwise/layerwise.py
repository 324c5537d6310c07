"""One training step of layer-wise scaling: the part of `GradScaler(layerwise=…)` that acts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from gradscale.backward.graph import Walk
from gradscale.backward.loss_entry import LossEntry
from gradscale.backward.measurements import PassCounts
from gradscale.backward.rescale import rescale
from gradscale.backward.user_functions import functions_given, is_one_of
from gradscale.capturing import capturing
from gradscale.compiled.preparing import prepare_compiled
from gradscale.emulation.over_time import split_over_time
from gradscale.entries import Entries
from gradscale.gradients.master_weights import trained_by
from gradscale.layerwise.agreement import merged_over_ranks, on_any_rank, rank_groups, ranks_of
from gradscale.layerwise.calendar import Calendar
from gradscale.layerwise.closed_graphs import (
    closed_graphs,
    compiled_autograd,
    hidden_by_checkpoints,
)
from gradscale.layerwise.function_verdicts import FunctionVerdicts
from gradscale.layerwise.layerwise_report import LayerwiseReport
from gradscale.layerwise.naming import Naming
from gradscale.layerwise.own_exponents import freed, with_held_exponents
from gradscale.layerwise.planning import Planning, When
from gradscale.layerwise.saved_plans import SavedPlans, read_plans
from gradscale.layerwise.step_passes import MeasuredStep, StepPasses
from gradscale.layerwise.timing import EndedStep, Timing, has_bad_data
from gradscale.layerwise.tracks import Tracks
from gradscale.layerwise.unseen_leaves import custom_nodes, refusal
from gradscale.outcomes.outcome import StepOutcome
from gradscale.plans.planner import Planner
from gradscale.plans.planner_given import PlannerArgument, planner_given
from gradscale.ranks import Ranks, check_process_group
from gradscale.torch_types import StateDict

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Layerwise:
    """Gives every part of a network its own loss scale, replanned as training goes on.

        every backward pass:   walk the graph; on a measuring step hook all its nodes to measure,
                               if its plan is not uniform hook the edges whose ends differ
        update():              on a measuring step begin to copy the measurements to the host
        next scale():          planner(graph, measurements) -> plan and loss scale

    A step that neither measures nor has a plan walks nothing and costs nothing.

    Args:
        planner: decides the exponents: True for `Windows`, or what `GradScaler(layerwise=)` takes.
        measure_every: steps between two measurements; the first steps measure more often. None for
            100, or as many times more as a measurement costs steps, where that is more than one.
        keep: how many graph structures are remembered; the one unused for longest is forgotten.
        process_group: the ranks that must have the same plan; None for all of them.
        linear: functions of your own that are known to be linear in their gradient, as classes or
            by name: they need not be probed to leave the loss scale.

    Raises:
        TypeError: if the planner is none, or `linear` holds something else.
        ValueError: if a number is not a whole one of at least 1.

    Attributes:
        timing: when to measure.
        planning: what to decide.
        functions: what is known of functions that torch did not write.
        passes: what the backward passes of the step under way leave behind.

    Example:
        >>> from gradscale import GradScaler
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> scaler = GradScaler("cpu", layerwise=Layerwise(measure_every=50))
        >>> scaler.scale(model(torch.ones(2, 4)).mean()).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()
        >>> scaler.layerwise
        Layerwise(Windows: no plan yet, measures in this step, 1)
    """

    def __init__(
        self,
        planner: PlannerArgument = True,
        *,
        measure_every: int | None = None,
        keep: int = 8,
        process_group: Ranks | None = None,
        linear: Iterable[type[torch.autograd.Function] | str] = (),
    ) -> None:
        check_process_group("Layerwise", process_group)
        self.timing = Timing(Calendar(measure_every))
        self.planning = Planning(planner_given(planner, "Layerwise(planner={})"), keep)
        self.process_group = process_group
        self.linear = functions_given(linear, "Layerwise(linear={})")
        self.functions = FunctionVerdicts(naming=self.planning.naming)
        self.taken = self._hiding = False
        prepare_compiled(self)
        split_over_time(self)
        self._entry = LossEntry(self._begin_pass, self._begin_part)
        self._scale: Tensor | None = None
        self.passes = StepPasses()
        self._measured: MeasuredStep | None = None
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        """The planner, the plan in force, when it measures next: in a line, from the host alone."""
        return f"Layerwise({self.planning}, {self.timing})"

    @property
    def planner(self) -> Planner:
        """Who decides the exponents."""
        return self.planning.planner

    @property
    def tracks(self) -> Tracks:
        """The graph structures that are known, each with its plan."""
        return self.planning.tracks

    @property
    def naming(self) -> Naming:
        """What nodes and parameters are called."""
        return self.planning.naming

    def use_functions(self, functions: FunctionVerdicts) -> None:
        """Asks these about users' functions; they learn the names that are known here."""
        functions.naming = self.naming
        self.functions = functions

    def begin_step(self, scale: Tensor) -> None:
        """Before a loss is scaled: what the last step measured becomes a plan.

        Args:
            scale: the loss scale; changed in place if the planner moved it.
        """
        self._scale = scale
        self.functions.poll(wait=self._measured is not None)
        self.planning.carry_out_lowering(scale)
        if self._measured is not None:
            self._plan(scale, self._measured)

    def attach(self, loss: Tensor) -> Tensor:
        """The same loss, watched if this step measures or follows a plan; otherwise as it is."""
        if not (self.timing.now or self.tracks.followed or self.functions.injected == "scale"):
            return loss
        traced = compiled_autograd()
        if traced is not None:
            self._warn_once(traced)
            return loss
        self.functions.warn_of_transforms(loss)
        return self._entry.watch(loss)

    def after_unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuses gradients of which nobody knows whether the plan scaled them.

        Raises:
            RuntimeError: if a parameter's gradient came from a backward pass that was not seen.
        """
        if not self.passes.walked or not self.passes.custom:
            return
        missed = self.passes.missed(trained_by(optimizer))
        if missed and self.passes.scaled and not self._hiding:
            raise refusal(missed, self.naming)
        self._hiding |= bool(missed)

    def update(self, last_step: StepOutcome, scale: Tensor | None = None) -> None:
        """Ends a step, at this scale if it has moved since: measurements start to the host."""
        passes, self.passes = self.passes, StepPasses()
        if capturing():  # the host runs this once, the graph many times
            return
        groups = rank_groups(self.process_group)
        if passes.measurings or (self.timing.now and groups):
            measurings = self._agreed(passes.measurings, groups)
            for measuring in measurings:
                measuring.fetch()
            scale = cast(Tensor, self._scale if scale is None else scale).detach().clone()
            self.functions.end_step()
            bad = on_any_rank(has_bad_data(last_step), groups, scale.device) if groups else None
            self._measured = MeasuredStep(measurings, last_step, scale, bad)
        ended = EndedStep(last_step, self.timing.steps, passes.unmeasured(self.tracks))
        for step in self.timing.lost_steps(ended, groups):
            if not self.planning.given:
                self.timing.follow()
            self.planning.overflowed_unmeasured(step, gradients=step is ended and not groups)
        self.timing.next_step()

    def _begin_pass(self, walk: Walk) -> None:
        track = self.tracks.of(walk.graph)
        self.timing.again |= track.unmeasured
        custom = custom_nodes(walk)
        measures = self.timing.now and not capturing()
        walk = self._trusting(walk)
        self.functions.begin_pass(walk, cast(Tensor, self._scale), probes=measures)
        graph = walk.graph.proving(self.functions.proven(walk.graph.signature))
        walk = Walk(graph.pinning(custom) if self._hiding else graph, walk.nodes)
        walk, own = freed(walk)
        graph = track.graph = walk.graph
        plan, factors = track.factors(graph)
        if own:
            plan, factors = with_held_exponents(graph, own, plan, factors)
        if measures:
            scale = cast(Tensor, self._scale)
            self.passes.measurings.append(self.planning.measure(walk, plan.exponents, scale))
        if not plan.is_uniform:
            rescale(walk, plan, factors)
        hiding = bool(custom - graph.structure.pinned)
        self.passes.see(graph, scaled=not plan.is_uniform, custom=hiding)
        self._warn_once(hidden_by_checkpoints(walk))
        self._warn_once(closed_graphs(walk))

    def _begin_part(self, walk: Walk) -> None:
        """A pass to some of the leaves, which follows no plan; what is injected there is, too."""
        self.functions.begin_pass(self._trusting(walk), cast(Tensor, self._scale), probes=False)

    def _trusting(self, walk: Walk) -> Walk:
        """The walk with those of the users' functions that somebody said are linear."""
        graph = walk.graph
        trusted = [n for n in graph.unproven if is_one_of(walk.nodes[n], self.linear)]
        return Walk(graph.proving(trusted), walk.nodes)

    def _agreed(
        self, measurings: Sequence[PassCounts], groups: Sequence[ProcessGroup]
    ) -> Sequence[PassCounts]:
        """The measurements of all ranks; where their graphs differ, one scale for all of them."""
        device = cast(Tensor, self._scale).device
        situations = [self.tracks[m.signature].situation for m in measurings]
        if merged_over_ranks(measurings, situations, groups, device):
            self.functions.reduce(groups, device)
            return measurings
        for measuring in measurings:
            measuring.remove()
            self.tracks[measuring.signature].freeze("ranks run different graphs")
        self._warn_once(
            "layer-wise scaling: ranks run different graphs, so their plans could differ; these "
            "graphs stay at one loss scale."
        )
        return []

    def _plan(self, scale: Tensor, measured: MeasuredStep) -> None:
        """Turns what a step measured into plans, and sets the loss scale they ask for."""
        self._measured = None
        merged = measured.merged()
        overflowed = any(measurements.overflowed for measurements in merged.values())
        if overflowed and not measured.blames_scale():
            self.timing.at_once()
            return
        for track in self.tracks:
            track.graph = track.graph.proving(self.functions.proven(track.graph.signature))
        step, before = self.timing.steps, float(measured.scale)
        when = When(step, self.timing.calendar.slot(step - 1))
        self.timing.now |= self.planning.decide(merged, before, scale, when)
        ranks = ranks_of(rank_groups(self.process_group))
        self.timing.measuring_costs(measured.cost_in_steps(merged, self.tracks, ranks))

    def report(self) -> LayerwiseReport:
        """How many loss scales each structure needs, where and why; the latest structure last."""
        return self.planning.report(self.functions.report())

    def state_dict(self) -> StateDict:
        """Plans, measurements and counters: a resumed run goes on bit for bit."""
        if self._measured is not None and self._scale is not None:
            self.begin_step(self._scale)
        calendar, now = self.timing.calendar, self.timing.now
        timing = {"steps": self.timing.steps, "again": now, "cost": calendar.cost}
        timing |= {"since": calendar.since, "hiding": self._hiding}
        return {**timing, "linear": self.functions.state_dict(), **self.planning.state_dict()}

    def take_over(self, saved: SavedPlans) -> None:
        """Goes on where another run stopped; each plan comes into force as its graph is met."""
        self.planning.take_over(saved)
        self.functions.load_state_dict(saved.linear)
        self.timing.resume(saved.steps, saved.again, saved.cost, saved.since)
        self._hiding, self._measured, self.passes = saved.hiding, None, StepPasses()

    def __getstate__(self) -> dict[str, object]:
        return {
            "settings": (self.planner, self.timing.calendar.every, self.tracks.keep),
            "functions": (self.linear, self.functions),
            "state": self.state_dict(),
        }

    def __setstate__(self, state: StateDict) -> None:
        planner, every, keep = state["settings"]
        linear, functions = state["functions"]
        self.__init__(planner, measure_every=every, keep=keep, linear=linear)
        self.use_functions(functions)
        self.take_over(read_plans(Entries(state["state"])))

    def _warn_once(self, message: str | None) -> None:
        if message is not None and message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=2)
