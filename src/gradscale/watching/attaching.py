"""Hooks one backward pass, if it is one of the model's."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler as TorchScaler
from torch.autograd.graph import GradientEdge

from gradscale.backward.graph import BackwardGraph, Walk, walk
from gradscale.backward.names import ParameterName, parameter_names
from gradscale.emulation import DirectionFormats, emulating
from gradscale.emulation.later_passes import Roots
from gradscale.layerwise.closed_graphs import reasons_closed
from gradscale.layerwise.function_verdict import FunctionVerdict
from gradscale.layerwise.function_verdicts import FunctionVerdicts
from gradscale.watching.measured_pass import MeasuredPass
from gradscale.watching.negligible import Negligible
from gradscale.watching.plan_in_force import PlanInForce
from gradscale.watching.settings import corrects, live_scale
from gradscale.watching.spots import RowSpot, spots_of

_KEPT = 16  # structures, the latest; a training loop has a few


class Attaching:
    """Walks the graph of a pass and hooks the places that have rows.

    Args:
        model: whose passes are measured; those that reach none of its parameters are left alone.
        scaler: the loop's, or None.

    Attributes:
        negligible: which gradients were seen to be zero up to rounding.
        functions: what is known of functions that torch did not write.
    """

    def __init__(self, model: nn.Module, scaler: TorchScaler | None) -> None:
        self._model = model
        self._scaler = scaler
        self._known: OrderedDict[object, list[RowSpot]] = OrderedDict()
        self.negligible = Negligible()
        self.functions = FunctionVerdicts("ignore")
        self.functions.naming.know(model)
        self._warned = False

    def attach(
        self, tensors: Roots, passes: int, outer: MeasuredPass | None
    ) -> MeasuredPass | None:
        """Hooks the pass that is about to begin at `tensors`.

        Args:
            tensors: what `backward` was called with.
            passes: how many passes of the step were measured before.
            outer: the pass that runs already, if this one runs inside one of its nodes.

        Returns:
            None if there is nothing to measure, or if `backward` will refuse the tensors.
        """
        # An edge is a tuple, too.
        given = [tensors] if isinstance(tensors, Tensor | GradientEdge) else tensors
        roots = [root for root in given if not isinstance(root, Tensor) or root.requires_grad]
        # `backward` will refuse them itself, in torch's words.
        if not roots:
            return None
        walked = walk(roots)
        # Once a watch: each pass would say the same.
        self._warn_of_closed(walked)
        # Anew in each measured pass: parameters may have been replaced since, as FSDP does.
        names = parameter_names(self._model)
        spots = self._spots(walked.graph, names, emulating(roots))
        if not spots:
            return None
        recognizing = self.negligible.begin(walked, names)
        plan = PlanInForce.of(self._scaler, walked)
        node = torch._C._current_autograd_node()
        number = (passes,) if outer is None else outer.number_inside(node)
        scale = live_scale(self._scaler)
        ended = self._probe(walked, scale) if outer is None else None
        return MeasuredPass(walked, spots, scale, plan, recognizing, number, ended)

    def _probe(self, walked: Walk, scale: float | Tensor) -> Callable[[], object] | None:
        """Has a user's functions looked at in the first pass through them; how to end that."""
        if not walked.graph.unproven or self.functions.knows(walked.graph.signature):
            return None
        self.functions.probe(walked, torch.as_tensor(scale))
        return self.functions.end_pass

    def verdicts(self) -> tuple[FunctionVerdict, ...]:
        """What is known of users' functions; waits for what is under way."""
        self.functions.poll(wait=True)
        corrected = corrects(self._scaler)
        return tuple(replace(v, corrected=corrected) for v in self.functions.verdicts())

    def _warn_of_closed(self, walked: Walk) -> None:
        if self._warned or not walked.graph.structure.closed:
            return
        reasons = reasons_closed(walked, "this watch", "the watch")
        if reasons:
            self._warned = True
            warnings.warn(
                "`gradscale.watch`: of a compiled graph only what enters and leaves it is measured,"
                f" because {reasons}.",
                stacklevel=2,
            )

    def _spots(
        self,
        graph: BackwardGraph,
        names: Mapping[int, ParameterName],
        precision: DirectionFormats | None,
    ) -> list[RowSpot]:
        # By names as well: two parts of a model may have graphs that are alike.
        key = graph.signature, _leaf_names(graph, names), precision
        if key not in self._known:
            self._known[key] = spots_of(graph, self._model, names, precision)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]


def _leaf_names(graph: BackwardGraph, names: Mapping[int, ParameterName]) -> tuple[str | None, ...]:
    found = (names.get(id(parameter)) for parameter in graph.parameters().values())
    return tuple(None if name is None else name.name for name in found)
