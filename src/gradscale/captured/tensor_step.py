"""A training step as a function of tensors: nothing in it depends on a value the host must read.

Word for word what `EagerStep` does, in the functions of `gradscale.functional`; the update is
computed always, and kept only where `found_inf` is zero:

    g  = d(S * loss)/dp                      forward, backward
    c  = clipping(g, S)                      if asked for
    q, found_inf = unscale(g, S, c)
    p' = optimizer(p, q);  p = select(found_inf, p, p'), and so each moment and step counter
    S  = next_state(policy, S, observe(found_inf, g))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from gradscale.captured.eager_step import EagerStep, total_loss
from gradscale.captured.planned_gradients import Gradients, plain_gradients
from gradscale.captured.step_result import StepResult
from gradscale.functional import clipping, next_state, observe, select, unscale
from gradscale.policies.policy import Observation, Policy

GradientsOf = Callable[[Tensor, Tensor, Sequence[Tensor]], tuple[Gradients, Tensor | None]]


class TensorStep:
    """One optimizer step that `torch.compile(fullgraph=True)` can take in whole.

    Args:
        written: the step as written; its optimizer has made its state already.
        trained: those of its parameters that get a gradient, each with a `.grad` that stays.
        policy: chooses the scale.
        state: of the policy, overwritten by every step.
        gradients_of: gives the gradients of a loss times the scale; under a plan, if there is one.
    """

    def __init__(
        self,
        written: EagerStep,
        trained: Sequence[Tensor],
        policy: Policy,
        state: Any,
        gradients_of: GradientsOf = plain_gradients,
    ) -> None:
        self.model, self.loss_fn, self.optimizer = written.model, written.loss_fn, written.optimizer
        self.max_norm, self.step_count = written.max_norm, written.step_count
        self.policy, self.state, self.gradients_of = policy, state, gradients_of
        self.trained = list(trained)
        self.gradients = [cast(Tensor, parameter.grad) for parameter in trained]
        # What a skipped step must leave as it was: moments and step counters as well as weights.
        self.changing = [*self.trained, *_state_tensors(self.optimizer, trained)]
        # Torch wraps `step` in graph breaks, which guard a gradient mode that we set ourselves.
        self.optimizer_step = inspect.unwrap(type(self.optimizer).step)

    def __call__(self, batches: Sequence[object]) -> StepResult:
        """One optimizer step on the mean of the losses of `batches`."""
        losses, gradients, counted = self._backward(batches)
        with torch.no_grad():
            scale, coefficient, norm = self.state.scale, None, None
            if self.policy.needs:
                # What is measured is unscaled first, in a pass of its own.
                gradients, _ = unscale(gradients, scale, keep_dtype=True)
                scale = torch.ones_like(scale)
            if self.max_norm is not None:
                coefficient, norm = clipping(gradients, scale, self.max_norm)
            quotients, found_inf = unscale(gradients, scale, coefficient, keep_dtype=True)
            seen = observe(found_inf, gradients, self.policy.needs)
            self._update(quotients, found_inf)
            self._advance(seen, losses)
            self.step_count.count(found_inf)
        return StepResult(total_loss(losses), found_inf, norm, tuple(counted))

    def _backward(
        self, batches: Sequence[object]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        losses: list[Tensor] = []
        counted: list[Tensor] = []
        gradients: list[Tensor | None] = [None] * len(self.trained)
        for batch in batches:
            loss = self.loss_fn(self.model, batch)
            loss = loss if len(batches) == 1 else loss / len(batches)
            new, rows = self.gradients_of(loss, self.state.scale, self.trained)
            counted += [] if rows is None else [rows]
            gradients = [_sum(a, b) for a, b in zip(gradients, new, strict=True)]
            losses.append(loss.detach())
        whole = [gradient for gradient in gradients if gradient is not None]
        # A compiled optimizer updates every parameter, also one whose gradient would be stale.
        if len(whole) < len(gradients):
            raise RuntimeError(
                "`step(batch)`: a parameter that had a gradient in an earlier step has none now. "
                "Run such a batch with `eager_step(batch)`."
            )
        return losses, whole, counted

    def _update(self, quotients: Sequence[Tensor], found_inf: Tensor) -> None:
        for gradient, quotient in zip(self.gradients, quotients, strict=True):
            # Into the `.grad` that stays, because the optimizer reads that tensor and no other.
            gradient.copy_(quotient)
        # Cloned first: optimizers write in place, and what is overwritten cannot be selected.
        before = [tensor.clone() for tensor in self.changing]
        self.optimizer_step(self.optimizer)
        for tensor, kept in zip(
            self.changing, select(found_inf, before, self.changing), strict=True
        ):
            tensor.copy_(kept)

    def _advance(self, seen: Observation, losses: Sequence[Tensor]) -> None:
        for old, new in zip(
            self.state, next_state(self.policy, self.state, seen, losses), strict=True
        ):
            # In place: the scaler holds these very tensors, and reads the scale of the next step
            # there.
            old.copy_(new)


def _sum(total: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if total is None else total if new is None else total + new


def _state_tensors(optimizer: torch.optim.Optimizer, trained: Sequence[Tensor]) -> list[Tensor]:
    return [
        value
        for parameter in trained
        for value in optimizer.state.get(parameter, {}).values()
        if isinstance(value, Tensor)
    ]
