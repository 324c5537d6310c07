"""A training step as a function of tensors: nothing in it depends on a value the host must read.

Word for word what `EagerStep` does, except that the update is computed always and kept only where
`found_inf` is zero:

    g  = d(S * loss)/dp                      forward, backward
    c  = min(1, max_norm / |g / S|)          clip, if asked for
    q  = g * (c / S);  found_inf = any(q is not finite)
    p' = optimizer(p, q);  p = where(found_inf, p, p'), and so each moment and step counter
    S  = policy.update(S, found_inf)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from gradscale.captured.eager_step import EagerStep, summed
from gradscale.captured.step_result import StepResult
from gradscale.captured.tensor_gradients import any_not_finite, clipping_factor, divided, measured
from gradscale.gradients.flags import inverse
from gradscale.policies.policy import Observation, Policy, advance


class TensorStep:
    """One optimizer step that `torch.compile(fullgraph=True)` can take in whole.

    Args:
        written: the step as written; its optimizer has made its state already.
        trained: those of its parameters that get a gradient, each with a `.grad` that stays.
        policy: chooses the scale.
        state: of the policy, overwritten by every step.
    """

    def __init__(
        self, written: EagerStep, trained: Sequence[Tensor], policy: Policy, state: Any
    ) -> None:
        self.model, self.loss_fn, self.optimizer = written.model, written.loss_fn, written.optimizer
        self.max_norm, self.tally = written.max_norm, written.tally
        self.policy, self.state = policy, state
        self.trained = list(trained)
        self.gradients = [cast(Tensor, parameter.grad) for parameter in trained]
        self.changing = [*self.trained, *_state_tensors(self.optimizer, trained)]
        # Torch wraps `step` in graph breaks, which guard a gradient mode that we set ourselves.
        self.optimizer_step = inspect.unwrap(type(self.optimizer).step)

    def __call__(self, batches: Sequence[Any]) -> StepResult:
        """One optimizer step on the mean of the losses of `batches`."""
        losses, gradients = self._backward(batches)
        with torch.no_grad():
            inv_scale = inverse(self.state.scale)
            if self.policy.needs:
                # What is measured is unscaled first, in a pass of its own.
                gradients = [divided(gradient, inv_scale) for gradient in gradients]
                inv_scale = torch.ones_like(inv_scale)
            factor, norm = inv_scale, None
            if self.max_norm is not None:
                factor, norm = clipping_factor(gradients, inv_scale, self.max_norm)
            quotients = [divided(gradient, factor) for gradient in gradients]
            found_inf = any_not_finite(quotients)
            seen = measured(gradients, self.policy.needs)
            self._update(quotients, found_inf)
            self._advance(Observation(found_inf, *seen), losses)
            self.tally.count(found_inf)
        return StepResult(summed(losses), found_inf, norm)

    def _backward(self, batches: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
        losses: list[Tensor] = []
        gradients: list[Tensor | None] = [None] * len(self.trained)
        for batch in batches:
            loss = self.loss_fn(self.model, batch)
            loss = loss if len(batches) == 1 else loss / len(batches)
            scaled = loss * self.state.scale
            new = torch.autograd.grad(scaled, self.trained, allow_unused=True)
            gradients = [_sum(a, b) for a, b in zip(gradients, new, strict=True)]
            losses.append(loss.detach())
        whole = [gradient for gradient in gradients if gradient is not None]
        if len(whole) < len(gradients):
            raise RuntimeError(
                "`step(batch)`: a parameter that had a gradient in an earlier step has none now. "
                "Run such a batch with `eager_step(batch)`."
            )
        return losses, whole

    def _update(self, quotients: Sequence[Tensor], found_inf: Tensor) -> None:
        for gradient, quotient in zip(self.gradients, quotients, strict=True):
            gradient.copy_(quotient)
        before = [tensor.clone() for tensor in self.changing]
        self.optimizer_step(self.optimizer)
        for tensor, old in zip(self.changing, before, strict=True):
            tensor.copy_(torch.where(found_inf > 0, old, tensor))

    def _advance(self, observation: Observation, losses: Sequence[Tensor]) -> None:
        """Shows the policy the step, unless a loss that is not finite explains it."""
        finite = torch.stack([(loss.abs() < torch.inf).reshape(()) for loss in losses]).all()
        ignore = ((observation.found_inf > 0) & finite.logical_not()).to(torch.float32)
        after = advance(self.policy, self.state, observation, ignore)
        for old, new in zip(self.state, after, strict=True):
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
