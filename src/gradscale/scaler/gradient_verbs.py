"""What a loop may do with gradients between `backward()` and `step()`: clip, sum, give up."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gradscale.gradients.accumulate import Divisor
from gradscale.optimizer_parameters import distinct_parameters
from gradscale.scaler.accumulating import accumulate
from gradscale.scaler.advancing import give_up
from gradscale.scaler.asked import AskedScaler
from gradscale.scaler.clipping import clip_norm, clip_value_
from gradscale.scaler.eager import eager
from gradscale.scaler.order import SWITCHED_OFF
from gradscale.scaler.settings import (
    check_clip,
    check_optimizers,
    listed,
)


class GradientVerbs(AskedScaler):
    """A scaler that clips and sums gradients."""

    @eager
    def clip_grad_norm_(
        self,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        foreach: bool | None = None,
    ) -> Tensor:
        """Clips the norm of an optimizer's gradients, and unscales them in the same pass.

            grad *= min(1, max_norm / (norm(grad / S) + 1e-6)) / S

        As `unscale_` and `torch.nn.utils.clip_grad_norm_` after it, in three passes over the
        gradients instead of five, and in one with a fused optimizer: that one divides by
        ``S / coefficient`` while it steps, and `.grad` stays as it is until then. Norms of sharded
        gradients (DTensor) are those of the whole. A step whose norm is not finite is skipped, and
        its gradients keep the values that tell why; no norm of finite gradients overflows.

        Args:
            optimizer: whose gradients; several optimizers are clipped by their common norm.
            max_norm: of the true, unscaled gradients.
            norm_type: the order of the norm, or ``inf``. If it is not positive, they are unscaled
                first.
            error_if_nonfinite: raise instead of skipping the step. Waits for the device.
            foreach: as in torch.

        Returns:
            The norm of the unscaled gradients before clipping, 0-d, on the device.

        Raises:
            RuntimeError: after `step`; if they were clipped and stay scaled; and as asked for.

        Example:
            >>> from gradscale import GradScaler
            >>> model = torch.nn.Linear(3, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> scaler = GradScaler("cpu")
            >>> scaler.scale(model(torch.tensor([[2.0, 4.0, 4.0]])).sum() / 3).backward()
            >>> round(scaler.clip_grad_norm_(optimizer, 1.0).item(), 3)
            2.028
            >>> scaler.step(optimizer)
            >>> scaler.update()
        """
        optimizers = listed("clip_grad_norm_", optimizer)
        parameters = distinct_parameters(*optimizers)
        check_clip("clip_grad_norm_", "max_norm", max_norm)
        if not self._enabled:
            return torch.nn.utils.clip_grad_norm_(
                parameters, max_norm, norm_type, error_if_nonfinite, foreach
            )
        with torch.no_grad():
            return clip_norm(
                self._step,
                optimizers,
                parameters,
                max_norm,
                norm_type,
                error_if_nonfinite,
                foreach,
            )

    @eager
    def clip_grad_value_(
        self,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
        clip_value: float,
    ) -> None:
        """Clamps an optimizer's unscaled gradients to ``[-clip_value, clip_value]``.

        As `unscale_` and `torch.nn.utils.clip_grad_value_` after it, in four passes instead of six.
        Gradients that stay scaled until the step (fused optimizers, `undo`) are clamped to
        ``S * clip_value``. An infinite gradient is not clamped: it is an overflow, and skipped.

        Args:
            optimizer: whose gradients; may be several.
            clip_value: of the true, unscaled gradients.

        Raises:
            RuntimeError: after `step`; if they were clipped and stay scaled.

        Example:
            >>> from gradscale import GradScaler
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> scaler = GradScaler("cpu")
            >>> scaler.scale(model(torch.tensor([[0.25, 4.0]])).sum()).backward()
            >>> scaler.clip_grad_value_(optimizer, 1.0)
            >>> model.weight.grad.tolist()
            [[0.25, 1.0]]
        """
        optimizers = listed("clip_grad_value_", optimizer)
        parameters = distinct_parameters(*optimizers)
        check_clip("clip_grad_value_", "clip_value", clip_value)
        if not self._enabled:
            if any(parameter.grad is not None for parameter in parameters):
                torch.nn.utils.clip_grad_value_(parameters, clip_value)
            return
        with torch.no_grad():
            clip_value_(self._step, optimizers, parameters, clip_value)

    @eager
    def accumulate_(
        self,
        optimizer: torch.optim.Optimizer,
        weight: float = 1.0,
        *,
        drop_overflow: bool = False,
        divide_by: Divisor = "kept",
    ) -> None:
        """Takes the gradients of one micro-batch into a float32 sum; call it after each backward.

            for inputs, targets in micro_batches:
                scaler.scale(loss(inputs, targets)).backward()    # the mean loss, not divided
                scaler.accumulate_(optimizer, drop_overflow=True)
            scaler.step(optimizer)                                # on sum(weight * grad) / divisor

        Without it backward adds up in the gradients' own dtype, and one overflow costs the step.

        Args:
            optimizer: whose gradients; they are None afterwards.
            weight: the share of this micro-batch, such as its number of samples or tokens.
            drop_overflow: leave out a micro-batch whose gradient is not finite. The step is skipped
                only if nothing is left; the policy hears of the overflow in any case. All ranks of
                the process group drop the same ones.
            divide_by: the divisor of the weighted sum. ``"kept"``: the weights of the micro-batches
                that were kept, so that the step is their mean; ``"all"``: those of all, as if a
                dropped one had a gradient of zero; ``"nothing"``: losses are divided by hand.

        Raises:
            RuntimeError: without gradients, or after `unscale_`, clipping or `step`.
            ValueError: if the weight is not positive, or other settings than before are given.

        Example:
            >>> from gradscale import GradScaler
            >>> model = torch.nn.Linear(1, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> scaler = GradScaler("cpu")
            >>> for x in (1.0, float("inf"), 3.0):
            ...     scaler.scale(model(torch.tensor([[x]])).sum()).backward()
            ...     scaler.accumulate_(optimizer, drop_overflow=True)
            >>> scaler.step(optimizer)
            >>> model.weight.grad.item(), next(iter(scaler.last_step)).dropped
            (2.0, 1)
        """
        if not self._enabled:
            raise RuntimeError(SWITCHED_OFF)
        accumulate(self._step, optimizer, weight, drop_overflow, divide_by)

    def expect(self, *optimizers: torch.optim.Optimizer) -> None:
        """Makes optimizers known that step less often than `update()` is called.

        Their gradients add up while the scale may change, and are brought to each new one. Of an
        optimizer that was unscaled, clipped or stepped before, the scaler knows it by itself.

        Raises:
            TypeError: if one is no optimizer.

        Example:
            >>> import torch
            >>> from gradscale import GradScaler
            >>> slow = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
            >>> GradScaler("cpu").expect(slow)
        """
        check_optimizers("expect", optimizers)
        for optimizer in optimizers:
            self._step.pending.note(optimizer)

    def abandon(self) -> None:
        """Gives up the step under way, which was begun by `unscale_`, clipping or `accumulate_`.

        For whoever catches an exception or drops a batch before `update()`. The optimizers that
        took part have their gradients cleared; what they have stepped already stays, and is
        counted. The scale stays as it is. A loop that just calls `optimizer.zero_grad()` and begins
        anew is understood without this call, unless it accumulates.

        Example:
            >>> import torch
            >>> from gradscale import GradScaler
            >>> model = torch.nn.Linear(1, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> scaler = GradScaler("cpu")
            >>> scaler.scale(model(torch.ones(1, 1)).sum()).backward()
            >>> scaler.accumulate_(optimizer)
            >>> scaler.abandon()
            >>> scaler.counters.steps, model.weight.grad
            (0, None)
        """
        if self._enabled:
            give_up(self._step, self._books)
