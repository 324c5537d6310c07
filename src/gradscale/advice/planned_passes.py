"""Passes under the plan that layer-wise scaling finds by itself, until it has settled."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradscale.backward.names import module_places
from gradscale.backward.plan import ScalePlan
from gradscale.emulation.computing import EIGHT_BIT
from gradscale.layerwise import Layerwise
from gradscale.layerwise.function_verdict import FunctionVerdict
from gradscale.layerwise.product_format import fitted
from gradscale.layerwise.track import Track
from gradscale.plans.window import FAR, Window
from gradscale.plans.windows import Windows
from gradscale.scaler import GradScaler
from gradscale.truth import Gradients, Nonfinite, capture_gradients, find_nonfinite
from gradscale.truth.alike import alike
from gradscale.truth.one_pass import Loss, checked_loss, run_backward
from gradscale.truth.untouched import untouched

SETTLING = 12
"""Passes over one batch in which a plan may find its scales."""


class ScaleGroup(NamedTuple):
    """Modules that share a scale.

    Attributes:
        exponent: of the scale.
        modules: their names, in backward order.
    """

    exponent: int
    modules: tuple[str, ...]


class _Stay(torch.optim.Optimizer):
    """An optimizer that leaves the parameters where they are: the float32 run moves them."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        del closure


class PlannedPasses:
    """One format under `GradScaler(layerwise=Windows())`.

    Args:
        format: what products read their gradient in.
        model: left as it is by every call.
        device: where it is.

    Attributes:
        scales: the exponents of the plan, ascending.
        groups: of the plan, the largest first.
        log2_single: the highest exponent that nothing in the graph forbids.
        hunt: where the forward pass stopped being finite, if it did.
    """

    def __init__(self, format: str, model: nn.Module, device: str) -> None:
        self.scales: tuple[int, ...] = ()
        self.groups: tuple[ScaleGroup, ...] = ()
        self.log2_single = 0
        self.hunt: Nonfinite | None = None
        self._model = model
        self._planner = Windows(product_format=format) if format in EIGHT_BIT else Windows()
        layerwise = Layerwise(self._planner, measure_every=1)
        self._scaler = GradScaler(device, layerwise=layerwise, injected="scale")
        self._scaler.name_parameters(model)
        self._stay = _Stay([p for p in model.parameters() if p.requires_grad], {})

    @property
    def functions(self) -> tuple[FunctionVerdict, ...]:
        """What backward functions that torch did not write do to their gradient."""
        return () if self._scaler.layerwise is None else self._scaler.layerwise.functions.verdicts()

    def settled(self, loss: Loss) -> Gradients | None:
        """The gradients of the first pass whose plan was that of the pass before; else the last.

        None if the forward pass is not finite.
        """
        before: tuple[ScalePlan | None, float] | None = None
        found: Gradients | None = None
        for _ in range(SETTLING):
            found = self._pass(loss)
            reason = self._scaler.last_step.reason
            if reason in ("nonfinite_loss", "nonfinite_parameter", "nonfinite_input"):
                self.hunt = find_nonfinite(self._model, loss)
                return None
            track = self._track
            now = (None if track is None else track.plan, self._scaler.get_scale())
            if now == before and not self._scaler.last_step.skipped:
                break
            before = now
        self._read_plan()
        return found

    def _pass(self, loss: Loss) -> Gradients:
        """A training step in which nothing moves."""
        with (
            untouched(self._model),
            torch.enable_grad(),
            alike(),
            capture_gradients(self._model) as found,
        ):
            value = checked_loss(loss(self._model))
            found.loss = float(value.detach())
            run_backward(self._scaler.scale(value))
            found.scale = self._scaler.get_scale()
            found.parameters = {
                name: parameter.grad.detach().clone()
                for name, parameter in self._model.named_parameters()
                if parameter.grad is not None
            }
            self._scaler.step(self._stay)
            self._scaler.update()
        return found

    @property
    def _track(self) -> Track | None:
        layerwise = self._scaler.layerwise
        return None if layerwise is None else layerwise.tracks.latest

    def _read_plan(self) -> None:
        """The decision after the last pass, with the names of the modules in each group."""
        layerwise, scale = self._scaler.layerwise, self._scaler._scale
        if layerwise is None or not isinstance(scale, Tensor):
            return
        layerwise.begin_step(scale)
        track = self._track
        if track is None or track.decision is None or not track.history:
            return
        decision = track.decision
        places = module_places(track.graph, self._model)
        self.scales = decision.scales or (decision.log2_scale,)
        self.groups = tuple(
            ScaleGroup(
                group.exponent,
                tuple(dict.fromkeys(p.module for p in map(places.__getitem__, group.nodes) if p)),
            )
            for group in decision.groups
        )
        planner = fitted(self._planner)
        if isinstance(planner, Windows):
            self.log2_single = single_exponent(planner.windows(track.graph, track.history[-1]))


def single_exponent(windows: list[Window]) -> int:
    """The highest exponent that all windows allow: where they disagree, overflow is avoided first.

    Example:
        >>> single_exponent([Window(-3, 12), Window(15, 20), Window()])
        12
    """
    bounds = [window.hi for window in windows if window.hi < FAR]
    return max(-FAR, min(bounds, default=0))
