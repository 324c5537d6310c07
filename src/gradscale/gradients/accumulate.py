"""Float32 sums of micro-batches: each unscaled, checked, added; an overflowing one left out.

Passes over the gradients, per micro-batch (`g`: the gradient as backward left it, `s`: the sum):

| | reads | writes | host reads |
|---|---|---|---|
| the first | g | s | 0 |
| every other | g, s | s | 0 |
| `drop_overflow` | +1 g | 0 | 0; on the CPU the flag, for free |
| the same on an accelerator | +1 g, +1 s | +1 s | 0 |
| in the end, once | s | s | 0 |

As long as nothing was kept the sum holds the micro-batch that was dropped last, so that whoever
asks why nothing is left finds the parameters to blame; the first that is kept takes its place.
Without `drop_overflow` no micro-batch is checked by itself: what is not finite stays so in the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradscale.gradients.flags import combined
from gradscale.gradients.master_weights import MasterWeight, masters_of, trained_by
from gradscale.gradients.unscale import (
    Groups,
    check_groups,
    collect_from,
    gradient_values,
    multiply_and_check_,
    tensor_values,
)
from gradscale.optimizer_parameters import parameters_of

Divisor = Literal["kept", "all", "nothing"]


class MicroBatches:
    """The gradient of one step, summed over micro-batches in float32 (or wider).

        add_:      sum += weight * grad / S, and `grad` is cleared; nothing if it is dropped and
                   another was kept
        deliver_:  grad = sum / divisor

    Args:
        sources: parameters whose `.grad` the backward pass fills.
        targets: parameters whose `.grad` receives the mean; `sources` themselves, or their float32
            masters in the same order.
        drop_overflow: leave out a micro-batch whose gradient is not finite, instead of the step.
        divide_by: what the sum is divided by: the weights of the micro-batches that were kept, of
            all of them, or nothing (losses that were divided by hand).
        masters: those among `sources` and `targets`.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(2))
        >>> micro_batches = MicroBatches([parameter], [parameter], drop_overflow=True)
        >>> for scaled in (8.0, float("inf"), 24.0):
        ...     parameter.grad = torch.full((2,), scaled)
        ...     flag = micro_batches.check(torch.tensor(1 / 8))
        ...     micro_batches.add_(torch.tensor(1 / 8), 1.0, flag)
        >>> micro_batches.deliver_().item(), parameter.grad.tolist(), micro_batches.dropped.item()
        (0.0, [2.0, 2.0], 1.0)
    """

    def __init__(
        self,
        sources: Sequence[Tensor],
        targets: Sequence[Tensor],
        *,
        drop_overflow: bool = False,
        divide_by: Divisor = "kept",
        masters: Sequence[MasterWeight] = (),
    ) -> None:
        self.drop_overflow = drop_overflow
        self.divide_by: Divisor = divide_by
        self._pairs = list(zip(sources, targets, strict=True))
        self._masters = {id(weight.parameter): weight for weight in masters}
        self._sums: dict[int, Tensor] = {}
        self._kept: Tensor | float = 0.0
        self._all = 0.0
        self.dropped: Tensor = torch.zeros((), dtype=torch.float32, device="cpu")

    @classmethod
    def of(
        cls, optimizer: Optimizer, *, drop_overflow: bool = False, divide_by: Divisor = "kept"
    ) -> MicroBatches:
        """Those of an optimizer: into its master weights, where it has some."""
        targets = parameters_of(optimizer)
        masters = masters_of(optimizer)
        return cls(
            trained_by(optimizer, targets),
            targets,
            drop_overflow=drop_overflow,
            divide_by=divide_by,
            masters=() if masters is None else masters.links,
        )

    @property
    def filled(self) -> bool:
        """Whether a backward pass has left gradients that are not added yet."""
        return any(source.grad is not None for source, _ in self._pairs)

    def check(self, inv_scale: Tensor) -> Tensor:
        """Float32 0-d, 0 or 1: whether a gradient, or it times `inv_scale`, is not finite."""
        flags = check_groups(collect_from(source for source, _ in self._pairs), inv_scale)
        if not flags:
            return torch.zeros((), dtype=torch.float32, device=inv_scale.device)
        return combined(list(flags.values()), inv_scale.device)

    def add_(self, inv_scale: Tensor, weight: float, flag: Tensor | None = None) -> None:
        """Adds the gradients that backward left, and clears them.

        Args:
            inv_scale: 1/S, float32 0-d.
            weight: this micro-batch's share, such as its number of samples or tokens.
            flag: what `check` said, agreed on by all ranks; only with `drop_overflow`.
        """
        self._all += weight
        use: Tensor | bool = True
        if flag is None:
            self._kept = self._kept + weight
        else:
            use = self._wanted(flag, weight)
        if use is False:
            self.clear()
            return
        factor = inv_scale * weight
        for source, target in self._pairs:
            if source.grad is not None:
                master = self._masters.get(id(source))
                # Under a plan a half-precision gradient is stored at 2^exponent of the scale; the
                # sum is at none.
                own = factor if master is None else factor * 2.0**-master.exponent
                self._add(source, id(target), own, use)
        self.clear()

    def _wanted(self, flag: Tensor, weight: float) -> Tensor | bool:
        """Counts a micro-batch; whether its gradient belongs into the sums."""
        on_host = flag.device.type == "cpu"
        return (self._wanted_on_host if on_host else self._wanted_on_device)(flag, weight)

    def _wanted_on_host(self, flag: Tensor, weight: float) -> bool:
        bad, empty = bool(flag.item()), not self._kept
        self.dropped = self.dropped + flag
        self._kept = self._kept + weight * (flag == 0).to(torch.float32)
        if empty:
            # What is there is of a micro-batch that was dropped, kept to name the parameters to
            # blame.
            self._sums.clear()
        return empty or not bad

    def _wanted_on_device(self, flag: Tensor, weight: float) -> Tensor | bool:
        keep, before = flag == 0, self._kept
        self._kept = before + weight * keep.to(torch.float32)
        # Moving the zero of the beginning to the device would wait for it.
        known = self.dropped.device == flag.device
        self.dropped = self.dropped + flag if known else flag.clone()
        if not isinstance(before, Tensor):  # the first
            return True
        empty = before == 0
        for total in self._sums.values():
            sums = tensor_values(total)
            sums.masked_fill_(empty.to(sums.device, non_blocking=True), 0.0)
        return keep | empty

    def clear(self) -> None:
        """Sets the gradients that backward fills to None."""
        for source, _ in self._pairs:
            source.grad = None

    def deliver_(self) -> Tensor:
        """Writes the mean into `.grad` of the targets and forgets the sums.

        Returns:
            Float32 0-d, 0 or 1: whether the mean is not finite, or nothing was kept of it.
        """
        divisor = {"kept": self._kept, "all": self._all, "nothing": 1.0}[self.divide_by]
        totals: list[tuple[Tensor, Tensor, Tensor]] = []
        groups: Groups = {}
        for source, target in self._pairs:
            total = self._sums.pop(id(target), None)
            if total is not None:
                totals.append((source, target, total))
                values = tensor_values(total)
                groups.setdefault(values.device, {}).setdefault(values.dtype, []).append(values)
        flags: list[Tensor] = []
        for device, by_dtype in groups.items():
            by = _scalar(divisor, device)
            # Where everything was dropped the divisor is zero.
            factor = torch.where(by > 0, by, 1.0).reciprocal()
            flags.append((_scalar(self._kept, device) == 0).to(torch.float32))
            for values in by_dtype.values():
                # The kernel raises the flag, never lowers it: it may be set already, for an empty
                # sum.
                multiply_and_check_(values, flags[-1], factor)
        for source, target, total in totals:
            # Rounded once, here: the sum was float32 until now, whatever the parameter is.
            target.grad = total.to(target.dtype)
            master = self._masters.get(id(source))
            if master is not None:  # whoever clips the model's parameters must find it there
                master.replace(target.grad)
                master.exponent = 0
            if target.dtype is torch.float16:  # what the sum holds may be beyond its range
                values = tensor_values(target.grad)
                flags.append(_scalar(0.0, values.device))
                multiply_and_check_([values], flags[-1], _scalar(1.0, values.device))
        if not flags:
            return (_scalar(self._kept, torch.device("cpu")) == 0).to(torch.float32)
        return combined(flags, flags[0].device)

    def _add(self, source: Tensor, key: int, factor: Tensor, use: Tensor | bool) -> None:
        grad = source.grad
        if grad is None:
            return
        if grad.layout is not torch.strided:
            raise TypeError(
                f"`accumulate_`: a gradient of layout {grad.layout} cannot be summed in float32. "
                "Let backward() accumulate it: call `backward()` several times before `step`."
            )
        total = self._sums.get(key)
        new = total is None
        if total is None:
            # A copy even if it is wide enough: it may be a view of a bucket that DDP reuses.
            wide = torch.promote_types(grad.dtype, torch.float32)
            total = self._sums[key] = grad.to(wide, copy=True)
        sums, values = tensor_values(total), gradient_values(source)
        factor = factor.to(device=sums.device, non_blocking=True)
        if new:
            sums.mul_(factor)
            if isinstance(use, Tensor):
                sums.copy_(torch.where(use.to(sums.device), sums, 0.0))
        elif values is not None:
            if isinstance(use, Tensor):
                values = torch.where(use.to(sums.device), values, 0.0)
            sums.addcmul_(values, factor)


def _scalar(value: Tensor | float, device: torch.device) -> Tensor:
    """Float32 0-d on `device`, without waiting for it."""
    if isinstance(value, Tensor):
        return value.to(device, torch.float32, non_blocking=True)
    return torch.full((), value, dtype=torch.float32, device=device)
