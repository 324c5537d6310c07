"""`CapturedStep`: a whole training step that the host only starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor

from gradscale.captured.capture import capture_compiled, capture_cuda_graph
from gradscale.captured.compiled import Backend
from gradscale.captured.cuda_graph import on_side_stream
from gradscale.captured.eager_step import EagerStep, Loss
from gradscale.captured.planned_step import measures
from gradscale.captured.refusals import (
    Mode,
    check_arguments,
    check_compile,
    check_cuda_graph,
    check_gradients_on,
    check_mode,
    check_numbers,
    check_outside_autocast,
    check_saved_step,
)
from gradscale.captured.settings import FrozenSettings, learning
from gradscale.captured.step_count import StepCount
from gradscale.captured.step_result import Captured, StepResult
from gradscale.layerwise import Layerwise
from gradscale.optimizer_parameters import parameters_of
from gradscale.plans.planner_given import PlannerArgument
from gradscale.policies.policy import Policy
from gradscale.scaler.scaler import GradScaler
from gradscale.undo.select import prepared


class CapturedStep:
    """Forward, backward, check, unscale, clip, update and policy in one graph, captured once.

        the first steps:  run as written, by the `scaler`, until the optimizer has made its state
        then:             captured, and replayed: no decision is made on the host, no value read

    A step with a non-finite gradient leaves parameters, moments and step counters as they were, and
    lowers the scale, all on the device. The bits are those of the steps run as written wherever
    the operations are.

    Args:
        model: what `loss_fn` runs. Parameters that never get a gradient are left alone.
        loss_fn: ``loss_fn(model, batch)``, a scalar tensor; autocast belongs inside.
        optimizer: for ``"cuda_graph"``, built with `capturable=True` or `fused=True` if it has
            them; for ``"compile"`` not fused.
        mode: ``"cuda_graph"``; ``"compile"``, on any device; or ``"eager"``, which captures nothing
            and is what the others must equal.
        policy: chooses the scale; `Dynamic()` by default.
        layerwise: as in `GradScaler`: every part of the model gets a scale of its own. A step that
            measures runs another compiled form; with CUDA graphs, as written.
        max_norm: clips the unscaled gradients by norm.
        micro_batches: how many batches `step` is given, as a list; their mean loss is stepped on.
        warmup: steps run as written before a CUDA graph is recorded, at least.
        backend: of `torch.compile`.

    Attributes:
        scaler: holds policy and scale. Its host side (`last_step`, counters, callbacks) knows only
            the steps that ran as written.

    Raises:
        TypeError: if the model is no module, `loss_fn` no function, or `optimizer` no optimizer.
        ValueError: if a number is out of range, or the optimizer cannot be captured or trains
            nothing of the model.
        RuntimeError: if the mode needs another device or torch.

    Example:
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> def loss_fn(model, batch):
        ...     return model(batch).square().mean()
        >>> step = CapturedStep(model, loss_fn, optimizer, mode="eager")
        >>> for value in (1.0, torch.nan):
        ...     loss = step.step(torch.full((2, 4), value))
        >>> step.last_found_inf.item(), step.steps.item(), step.skipped_steps.item()
        (1.0, 2, 1)
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss_fn: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        mode: Mode,
        policy: Policy | None = None,
        layerwise: Layerwise | PlannerArgument | None = False,
        max_norm: float | None = None,
        micro_batches: int = 1,
        warmup: int = 3,
        backend: Backend = "inductor",
    ) -> None:
        check_mode(mode)
        check_numbers(max_norm, micro_batches, warmup)
        check_arguments(model, loss_fn, optimizer)
        self._optimizer, self._backend = optimizer, backend
        device = self._device = self._parameters[0].device
        if mode == "cuda_graph":
            check_cuda_graph(optimizer, device, layerwise=bool(layerwise))
        if mode == "compile":
            check_compile(model, optimizer, device)
        self.mode: Mode = mode
        # Skipping on the device, because a graph cannot stop for a host that reads a flag.
        self.scaler = GradScaler(device.type, policy=policy, sync_free=True, layerwise=layerwise)
        self._micro_batches, self._warmup = micro_batches, warmup
        self._steps = StepCount(device)
        self._written = EagerStep(model, loss_fn, optimizer, self.scaler, max_norm, self._steps)
        self._stream = torch.cuda.Stream(device) if mode == "cuda_graph" else None
        self._trained: list[int] | None = None
        self._learning: list[bool] = []
        self._last: StepResult | None = None
        self.recapture()
        _recapture_when_loaded(optimizer, self)

    def step(self, batch: object) -> Tensor:
        """One optimizer step.

        Args:
            batch: as `loss_fn` takes it; a list of them if there are several micro-batches. For a
                CUDA graph always of the same shapes, on any device.

        Returns:
            The unscaled loss, 0-d, detached, on the device.

        Raises:
            RuntimeError: if called within autocast or under `torch.no_grad()`; if a setting of the
                optimizer changed, or a parameter was frozen.
            ValueError: if the batch does not fit, or the loss is no scalar.
            TypeError: if `loss_fn` returns no tensor.
        """
        self._check_surroundings()
        batches = self._listed(batch)
        if self._captured is None and self._ready():
            self._captured, self._frozen = self._capture(batches), FrozenSettings(self._optimizer)
        if self._captured is None or self._frozen is None:
            return self._run_as_written(batches)
        self._frozen.check()
        if self._stream is not None and measures(self.scaler):
            return self._run_as_written(batches)
        self._last = self._captured(batches)
        return self._last.loss

    def eager_step(self, batch: object) -> Tensor:
        """The same step, not captured: for a batch of another shape."""
        self._check_surroundings()
        return self._run_as_written(self._listed(batch))

    def recapture(self) -> None:
        """Captures anew: after a setting or a tensor was replaced, a parameter frozen or added.

        At the next step; at the one after it if other parameters are trained now, since the
        optimizer has to make their state first. Loading a state into the optimizer or into this
        step recaptures by itself.
        """
        self._captured: Captured | None = None
        self._frozen: FrozenSettings | None = None
        self._warm = 0

    @property
    def captured(self) -> bool:
        """Whether the next step is a captured one, unless something changes before."""
        return self._captured is not None

    @property
    def scale(self) -> Tensor:
        """The loss scale of the next step, float32 0-d, on the device."""
        scale = self.scaler._scale
        if scale is None:
            return torch.tensor(self.scaler._init_scale, dtype=torch.float32, device=self._device)
        return scale

    @property
    def last_found_inf(self) -> Tensor:
        """Float32 0-d, on the device: 1 if the last step was skipped."""
        return self._last_result.found_inf

    @property
    def last_norm(self) -> Tensor | None:
        """The norm of the last step's unscaled gradients before clipping, 0-d, on the device."""
        return self._last_result.norm

    @property
    def steps(self) -> Tensor:
        """How many steps were asked for, int64 0-d, on the device."""
        return self._steps.counts[0]

    @property
    def skipped_steps(self) -> Tensor:
        """How many of them were skipped, int64 0-d, on the device."""
        return self._steps.counts[1]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the states of model and optimizer. Reads the device."""
        return {
            "scaler": self.scaler.state_dict(),
            "steps": self._steps.counts.tolist(),
            "trained": None if self._trained is None else list(self._trained),
            "requires_grad": list(self._learning),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was saved, bit for bit; the next step captures anew.

        Args:
            state_dict: from `state_dict`. Load the states of model and optimizer, too.

        Raises:
            ValueError: if it is not the state of such a step; nothing is loaded then.
        """
        check_saved_step(state_dict, len(self._parameters))
        self.scaler.load_state_dict(state_dict["scaler"])
        self._steps.counts.copy_(torch.tensor(state_dict["steps"], device="cpu"))
        self._trained, self._learning = state_dict["trained"], list(state_dict["requires_grad"])
        self.recapture()

    @property
    def _parameters(self) -> list[Tensor]:
        """All of them, so that their places stay, whichever are frozen or added meanwhile."""
        return parameters_of(self._optimizer)

    def _check_surroundings(self) -> None:
        check_outside_autocast(self._device)
        check_gradients_on()

    @property
    def _last_result(self) -> StepResult:
        if self._last is None:
            raise RuntimeError(
                "`last_found_inf` and `last_norm` speak of a step, and there was none yet. Call "
                "`step(batch)` first."
            )
        return self._last

    def _listed(self, batch: object) -> list[object]:
        if self._micro_batches == 1:
            return [batch]
        several = isinstance(batch, list | tuple)
        batches = list(cast(Sequence[object], batch)) if several else [batch]
        if len(batches) != self._micro_batches:
            raise ValueError(
                f"`step(batch)` was given {len(batches)} of {self._micro_batches} micro-batches. "
                "Pass a list of as many batches as `CapturedStep(micro_batches=…)` says."
            )
        return batches

    def _run_as_written(self, batches: Sequence[object]) -> Tensor:
        if self._stream is None:
            result = self._written(batches)
        else:
            with on_side_stream(self._stream):
                result = self._written(batches)
        # Parameters that got no gradient have no state either, and stay out of the capture.
        self._trained = [i for i, p in enumerate(self._parameters) if p.grad is not None]
        self._learning = learning(self._optimizer)
        self._warm += 1
        self._last = result
        return result.loss

    def _ready(self) -> bool:
        """Whether everything that a step changes exists, so that the device may leave it."""
        if self.mode == "eager" or self._trained is None:
            return False
        if self.mode == "cuda_graph" and self._warm < self._warmup:
            return False
        if self._learning != learning(self._optimizer):
            return False
        parameters = self._parameters
        for index in self._trained:
            parameter = parameters[index]
            # Cleared since: the capture needs a tensor that stays where it is.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return prepared(self._optimizer)

    def _capture(self, batches: Sequence[object]) -> Captured:
        if self._stream is not None:
            return capture_cuda_graph(self._written, batches, self._stream)
        parameters = self._parameters
        trained = [parameters[index] for index in self._trained or ()]
        return capture_compiled(self._written, trained, self._backend)


def _recapture_when_loaded(optimizer: torch.optim.Optimizer, step: CapturedStep) -> None:
    """Has `step` captured anew once the optimizer's tensors were replaced by loaded ones."""
    weak = ref(step)

    def recapture(_: torch.optim.Optimizer) -> None:
        alive = weak()
        if alive is not None:
            alive.recapture()

    optimizer.register_load_state_dict_post_hook(recapture)
