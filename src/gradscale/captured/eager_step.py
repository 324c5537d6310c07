"""A training step as everybody writes it: what every captured step must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradscale.captured.step_count import StepCount
from gradscale.captured.step_result import StepResult
from gradscale.gradients.flags import combined
from gradscale.scaler.scaler import GradScaler

Loss = Callable[[Any, Any], Tensor]
"""Of a model and a batch, which users type as what theirs are."""


class EagerStep:
    """The scaler's loop over one batch.

    The slow, obvious version: the oracle of `TensorStep`, what a CUDA graph records, and how a
    captured step warms up.

    Args:
        model: what `loss_fn` runs.
        loss_fn: ``loss_fn(model, batch)``, a scalar tensor.
        optimizer: steps the model's parameters.
        scaler: scales, divides, skips.
        max_norm: clips by norm; None clips nothing.
        step_count: counts the steps.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss_fn: Loss,
        optimizer: torch.optim.Optimizer,
        scaler: GradScaler,
        max_norm: float | None,
        step_count: StepCount,
    ) -> None:
        self.model, self.loss_fn = model, loss_fn
        self.optimizer, self.scaler, self.max_norm = optimizer, scaler, max_norm
        self.step_count = step_count

    def __call__(self, batches: Sequence[object]) -> StepResult:
        """One optimizer step on the mean of the losses of `batches`."""
        self.optimizer.zero_grad()
        losses: list[Tensor] = []
        for batch in batches:
            loss = checked(self.loss_fn(self.model, batch))
            # Before it is scaled, so that the gradients add up to those of the mean.
            loss = loss if len(batches) == 1 else loss / len(batches)
            self.scaler.scale(loss).backward()
            losses.append(loss.detach())
        norm = None
        if self.max_norm is not None:
            norm = self.scaler.clip_grad_norm_(self.optimizer, self.max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        flags = [flag for outcome in self.scaler.last_step for flag in outcome.found_inf]
        found_inf = combined(flags, losses[0].device)
        self.step_count.count(found_inf)
        return StepResult(total_loss(losses), found_inf, norm)


def checked(loss: object) -> Tensor:
    """What `loss_fn` returned, if a backward pass can start there.

    Raises:
        TypeError: if it is no tensor.
        ValueError: if it has several elements.
        RuntimeError: if it depends on no parameter that gets a gradient.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"`loss_fn(model, batch)` returned a {type(loss).__name__}, and must return the loss, "
            "one tensor with one element. Return the loss alone; what else you need, compute "
            "outside of the step."
        )
    if loss.numel() != 1:
        raise ValueError(
            f"`loss_fn(model, batch)` returned a tensor of shape {tuple(loss.shape)}, and must "
            "return one with one element. Return its mean or its sum."
        )
    if not loss.requires_grad:
        raise RuntimeError(
            "`loss_fn(model, batch)` returned a loss that depends on no parameter with "
            "`requires_grad`. Compute it without `detach()`, `.item()` or `torch.no_grad()`."
        )
    return loss


def total_loss(losses: Sequence[Tensor]) -> Tensor:
    """The sum of a few 0-d tensors, first to last."""
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total
