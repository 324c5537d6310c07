"""One format on trial: the same batches in it under every way of scaling, the simplest first."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from gradscale.advice.evidence import Collected, Scaling, Truth
from gradscale.advice.module_under_way import modules_under_way
from gradscale.backward.names import module_places
from gradscale.backward.plan import ScalePlan
from gradscale.emulation.computing import EIGHT_BIT, computing_in, is_emulated
from gradscale.exponents import ceil_exponent
from gradscale.formats import FloatFormat
from gradscale.layerwise import Layerwise
from gradscale.layerwise.function_verdict import FunctionVerdict
from gradscale.layerwise.product_format import fitted
from gradscale.layerwise.track import Track
from gradscale.plans.window import FAR, Window
from gradscale.plans.windows import Windows
from gradscale.policies import Dynamic, Observation
from gradscale.scaler import GradScaler
from gradscale.truth import Gradients, Nonfinite, capture_gradients, compared, find_nonfinite
from gradscale.truth.alike import alike
from gradscale.truth.one_pass import Loss, checked_loss, one_pass, run_backward
from gradscale.truth.untouched import untouched
from gradscale.watching.rows import Row

SETTLING = 12
"""Passes over one batch in which a plan may find its scales."""

DEFAULT = Dynamic()
"""The policy of `GradScaler()`."""

BACKOFFS = 40
"""Passes over one batch in which it may back off: from 2^16 to below 2^-23."""


class ScaleGroup(NamedTuple):
    """Modules that share a scale.

    Attributes:
        exponent: of the scale.
        modules: their names, in backward order.
    """

    exponent: int
    modules: tuple[str, ...]


class Moment(NamedTuple):
    """What one look at a format found at the best single scale.

    Attributes:
        step: of the float32 training.
        loss: its float32 loss.
        rows: modules and parameters, most lost elements first.
        order: the modules' names in the order of the backward pass.
    """

    step: int
    loss: float
    rows: tuple[Row, ...]
    order: tuple[str, ...]


class _Stay(torch.optim.Optimizer):
    """An optimizer that leaves the parameters where they are: the float32 run moves them."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        del closure


class FormatTrial:
    """Runs one format beside the float32 training that says what is true.

    Args:
        format: ``"fp16"``, ``"bf16"``, ``"e5m2"`` or ``"e4m3"``.
        model: the float32 copy under training; left as it is by every call.
        device: where it is.
        choice: whether to emulate: ``"auto"``, ``"on"`` or ``"off"``.

    Attributes:
        ways: what was collected without scaling, under `GradScaler()` as it comes, at the best
            single scale and at the scales of a plan.
        moments: what each look found at the single scale.
        log2_default: the exponent that the default scaler has come to.
        log2_single: that of the best single scale.
        groups: of the plan, the largest first.
        hunt: where the forward pass stopped being finite.
        error: why the model could not run in this format; empty if it could.
    """

    def __init__(self, format: str, model: nn.Module, device: str, choice: str) -> None:
        self.format, self.device = format, device
        self.choice = "on" if torch.device(device).type == "cpu" and choice == "auto" else choice
        self.emulated = is_emulated(format, device, self.choice)
        self.ways: dict[Scaling, Collected] = {
            way: Collected(skips=way != "none") for way in get_args(Scaling)
        }
        self.moments: list[Moment] = []
        self.log2_default = self.log2_single = 0
        self.groups: tuple[ScaleGroup, ...] = ()
        self.scales: tuple[int, ...] = ()
        self.hunt: Nonfinite | None = None
        self.error = ""
        self._model = model
        self._planner = Windows(product_format=format) if format in EIGHT_BIT else Windows()
        layerwise = Layerwise(self._planner, measure_every=1)
        self._scaler = GradScaler(device, layerwise=layerwise, injected="scale")
        self._scaler.name_parameters(model)
        self._state = DEFAULT.init((), torch.device("cpu"))
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._stay = _Stay(parameters, {})

    @property
    def functions(self) -> tuple[FunctionVerdict, ...]:
        """What backward functions that torch did not write do to their gradient."""
        return () if self._scaler.layerwise is None else self._scaler.layerwise.functions.verdicts()

    @property
    def narrow(self) -> FloatFormat:
        """The format in which products read their gradient."""
        return FloatFormat.of(self.format)

    def _computing(self) -> AbstractContextManager[None]:
        return computing_in(self.format, self.device, self.choice)

    def look(self, step: int, loss: Loss, true: Truth) -> None:
        """One moment of training: every way of scaling against float32."""
        if self.hunt is not None or self.error:
            return
        with modules_under_way(self._model) as entered:
            try:
                self._look(step, loss, true)
            except (RuntimeError, TypeError, NotImplementedError) as error:
                # An operation that does not exist in this format, or refuses mixed dtypes.
                where = f" (in {entered[-1]})" if entered else ""
                self.error = " ".join(str(error).split()[:40]) + where

    def _look(self, step: int, loss: Loss, true: Truth) -> None:
        with self._computing():
            planned = self._settled(loss)
            if planned is None:
                return
            self._read_plan()
            single = self._single_scale_pass(loss)
            default = self._backed_off(loss)
            bare = self._at(loss, 0)
        passes = (bare, default, single, planned)
        for collected, found in zip(self.ways.values(), passes, strict=True):
            collected.add(true, found, self.narrow)
        rows = compared(true.gradients, single, self.narrow).rows
        order = tuple(dict.fromkeys(output.module for output in single.modules))
        self.moments.append(Moment(step, true.gradients.loss, rows, order))

    def _settled(self, loss: Loss) -> Gradients | None:
        """The gradients of the first pass whose plan was that of the pass before; else the last."""
        before: tuple[ScalePlan | None, float] | None = None
        found: Gradients | None = None
        for _ in range(SETTLING):
            found = self._scaled_pass(loss)
            reason = self._scaler.last_step.reason
            if reason in ("nonfinite_loss", "nonfinite_parameter", "nonfinite_input"):
                self.hunt = find_nonfinite(self._model, loss)
                return None
            track = self._track
            now = (None if track is None else track.plan, self._scaler.get_scale())
            if now == before and not self._scaler.last_step.skipped:
                break
            before = now
        return found

    def _backed_off(self, loss: Loss) -> Gradients:
        """The gradients of the first step that `GradScaler()` does not skip; else the last."""
        passes = (self._default_pass(loss) for _ in range(BACKOFFS))
        return next((found for found in passes if found.finite), self._at(loss, self.log2_default))

    def _default_pass(self, loss: Loss) -> Gradients:
        self.log2_default = ceil_exponent(float(self._state.scale))
        found = self._at(loss, self.log2_default)
        found_inf = torch.tensor(float(not found.finite))
        self._state = DEFAULT.update(self._state, Observation(found_inf))
        return found

    def _scaled_pass(self, loss: Loss) -> Gradients:
        """A training step of the layer-wise scaler in which nothing moves."""
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

    def _single_scale_pass(self, loss: Loss) -> Gradients:
        """At the highest scale that nothing in the graph forbids; lower where that overflows."""
        found = self._at(loss, self.log2_single)
        # The histograms are of what passes between nodes; what a kernel holds inside may overflow
        # first, as the product inside of an attention. Two octaves at a time, 16 at most.
        for _ in range(8):
            if found.finite:
                break
            self.log2_single -= 2
            found = self._at(loss, self.log2_single)
        return found

    def _at(self, loss: Loss, log2_scale: int) -> Gradients:
        return one_pass(self._model, loss, 2.0**log2_scale, draw_alike=True)


def single_exponent(windows: list[Window]) -> int:
    """The highest exponent that all windows allow: where they disagree, overflow is avoided first.

    Example:
        >>> single_exponent([Window(-3, 12), Window(15, 20), Window()])
        12
    """
    bounds = [window.hi for window in windows if window.hi < FAR]
    return max(-FAR, min(bounds, default=0))
