"""The backward passes of one step: what was measured in them, and which leaves they reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from gradscale.backward.graph import BackwardGraph
from gradscale.backward.measurements import Measurements, PassCounts
from gradscale.layerwise.measuring_cost import MeasuredGraph, cost_in_steps
from gradscale.layerwise.timing import has_bad_data
from gradscale.layerwise.tracks import Tracks
from gradscale.outcomes.outcome import StepOutcome


class StepPasses:
    """What the passes of the step under way leave behind; begun anew with each step.

    Attributes:
        measurings: one for each pass that was measured.
        signatures: of the graphs that the passes ran through.
        walked: whether any graph was walked.
        scaled: whether some pass followed a plan that is not uniform.
        custom: whether some graph has custom functions, which may hide leaves.
    """

    def __init__(self) -> None:
        self.measurings: list[PassCounts] = []
        self.signatures: set[str] = set()
        self.walked = self.scaled = self.custom = False
        self._graphs: list[BackwardGraph] = []

    def see(self, graph: BackwardGraph, *, scaled: bool, custom: bool) -> None:
        """A pass that runs through `graph`."""
        self.walked = True
        self.scaled |= scaled
        self.custom |= custom
        self.signatures.add(graph.signature)
        self._graphs.append(graph)

    def unmeasured(self, tracks: Tracks) -> str | None:
        """The only graph that the passes can have run through, if nobody measured there."""
        if self.measurings:
            return None
        if self.walked:
            return next(iter(self.signatures)) if len(self.signatures) == 1 else None
        # Nothing is walked while no plan is followed: where one structure is known, it was that.
        only = tracks.latest if len(tracks) == 1 else None
        return None if only is None else only.graph.signature

    def missed(self, parameters: Iterable[Tensor]) -> list[Tensor]:
        """Those with a gradient that no walked graph leads to."""
        seen = {id(leaf) for graph in self._graphs for leaf in graph.parameters().values()}
        return [p for p in parameters if p.grad is not None and id(p) not in seen]


class MeasuredStep(NamedTuple):
    """A step that measured, between its end and the plan that is made of it.

    Attributes:
        measurings: one for each backward pass, on their way to the host.
        step: what became of the step.
        scale: the loss scale at which it was measured.
        bad_data: whether the data of some rank were bad; None if there is only this one.
    """

    measurings: Sequence[PassCounts]
    step: StepOutcome
    scale: Tensor
    bad_data: bool | None = None

    def merged(self) -> dict[str, Measurements]:
        """By signature, the passes through equal graphs counted as one. Waits for the copy."""
        merged: dict[str, Measurements] = {}
        for measuring in self.measurings:
            result = measuring.result()
            known = merged.get(measuring.signature)
            merged[measuring.signature] = result if known is None else known.merged([result])
        return merged

    def cost_in_steps(self, merged: Mapping[str, Measurements], tracks: Tracks, ranks: int) -> int:
        """What measuring cost, in steps.

        Args:
            merged: what `merged` gave, of all ranks.
            tracks: the structures that are known.
            ranks: how many counted.
        """
        passes = Counter(measuring.signature for measuring in self.measurings)
        graphs = [
            MeasuredGraph(len(tracks[key].graph), passes[key], measurements)
            for key, measurements in merged.items()
            if key in tracks
        ]
        return cost_in_steps(graphs, ranks)

    def blames_scale(self) -> bool:
        """Whether a skipped step was lost to the scale, not to bad data. Waits for the device."""
        return not (has_bad_data(self.step) if self.bad_data is None else self.bad_data)
