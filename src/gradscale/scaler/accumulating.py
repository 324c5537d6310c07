"""How micro-batches are summed in float32, and how one that overflows is left out."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from gradscale.gradients.accumulate import Divisor, MicroBatches
from gradscale.gradients.flags import inverse
from gradscale.scaler.advancing import AdvancingScaler
from gradscale.scaler.eager import eager
from gradscale.scaler.settings import check_real

DIVISORS = ("kept", "all", "nothing")


class AccumulatingScaler(AdvancingScaler):
    """A scaler that accumulates."""

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
            raise RuntimeError(
                "`accumulate_(optimizer)` of a scaler with enabled=False. Use "
                "`GradScaler(policy=gradscale.Static(1.0))`, which scales by 1 and checks."
            )
        scale, _ = self._check_scale_growth_tracker("accumulate_")
        record = self._per_optimizer_states[id(optimizer)]
        self._check_accumulation(record, weight, divide_by)
        micro_batches: MicroBatches | None = record.get("micro_batches")
        if micro_batches is None:
            micro_batches = record["micro_batches"] = MicroBatches.of(
                optimizer, drop_overflow=drop_overflow, divide_by=divide_by
            )
        elif (micro_batches.drop_overflow, micro_batches.divide_by) != (drop_overflow, divide_by):
            raise ValueError(
                f"`accumulate_(drop_overflow={drop_overflow}, divide_by={divide_by!r})`: the "
                f"micro-batches of this step began with drop_overflow="
                f"{micro_batches.drop_overflow}, divide_by={micro_batches.divide_by!r}. Pass the "
                "same for all of them."
            )
        self._pending.note(optimizer)
        self._in_between = True
        with torch.no_grad():
            self._add(optimizer, record, micro_batches, inverse(scale), weight)

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
        for optimizer in optimizers:
            if not isinstance(optimizer, torch.optim.Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(
                    f"`expect({type(optimizer).__name__})` must be given optimizers, such as "
                    "`expect(slow_optimizer)`."
                )
            self._pending.note(optimizer)

    def _add(
        self,
        optimizer: torch.optim.Optimizer,
        record: dict[str, Any],
        micro_batches: MicroBatches,
        inv_scale: Tensor,
        weight: float,
    ) -> None:
        if not micro_batches.filled:
            raise RuntimeError(
                "`accumulate_(optimizer)` finds no gradients. Call it after each backward()."
            )
        if self._layerwise is not None:
            self._layerwise.after_unscale(optimizer)
        flag = None
        if micro_batches.drop_overflow:
            own = micro_batches.check(inv_scale)
            (flag,) = self._gradients.agreed(optimizer, {own.device: own}, own).values()
            self._blame(record, flag)
        micro_batches.add_(inv_scale, weight, flag)

    def _blame(self, record: dict[str, Any], flag: Tensor) -> None:
        """Notes that this micro-batch overflowed, unless its loss was not finite."""
        losses = self._evidence.losses[record.get("losses", 0) :]
        record["losses"] = len(self._evidence.losses)
        blamed = self._evidence.blamed(flag, self.process_group, losses)
        overflow = flag if blamed is None else blamed
        before = record.get("overflowed")
        record["overflowed"] = overflow if before is None else torch.maximum(before, overflow)

    def _check_accumulation(self, record: dict[str, Any], weight: float, divide_by: Any) -> None:
        check_real("accumulate_", "weight", weight)
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(
                f"`accumulate_(weight={weight})` must be positive and finite, such as the number "
                "of samples."
            )
        if divide_by not in DIVISORS:
            raise ValueError(f"`accumulate_(divide_by={divide_by!r})` must be one of {DIVISORS}.")
        if record["stage"] is not OptState.READY or "evaluating" in record:
            raise RuntimeError(
                "`accumulate_(optimizer)` after `unscale_`, clipping or `step`, or inside a "
                "closure: the gradients of this step are complete. Call it after each backward(), "
                "before them."
            )

    def _deliver(self, optimizer: torch.optim.Optimizer, record: dict[str, Any]) -> None:
        """Makes the mean of the micro-batches the gradient, unscaled and checked."""
        micro_batches: MicroBatches = record.pop("micro_batches")
        if micro_batches.filled:
            raise RuntimeError(
                "`step(optimizer)`: backward() has run since the last `accumulate_(optimizer)`. "
                "Call it after each backward(), or for none."
            )
        scale = cast(Tensor, self._scale)
        with torch.no_grad():
            flag = micro_batches.deliver_().to(scale.device, non_blocking=True)
            record["found_inf_per_device"] = self._gradients.agreed(
                optimizer, {scale.device: flag}, scale
            )
            self._gradients.measure(optimizer, scale.device)
        record["stage"], record["divided"] = OptState.UNSCALED, True
        record["dropped"] = micro_batches.dropped
        self._gradients.mark_divided(optimizer)
