"""Every gradient operand of a product at a scale of its own: 8-bit training as others do it.

Transformer Engine's recipes `DelayedScaling` and `Float8CurrentScaling`, and torchao's dynamic
scaling, as published, in emulation: the gradient that a backward product reads is multiplied by a
power of two that brings its maximum to the top of the format, rounded, and divided again. What lies
between products is bfloat16, so no loss scale is needed. Each operand costs a maximum in every
step, which is what the table counts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

from torch import Tensor

from gradscale.formats import FloatFormat


@dataclass(frozen=True)
class CurrentScaling(FloatFormat):
    """An operand is scaled by its own maximum: the reduction ends before the product begins."""

    reductions: list[int] = field(default_factory=lambda: [0], compare=False)

    def round(self, tensor: Tensor) -> Tensor:
        """The nearest values, at the scale of this very tensor."""
        return self._at(tensor, self._largest(tensor))

    def begin_step(self) -> None:
        """Nothing is carried from step to step."""

    def _largest(self, tensor: Tensor) -> float:
        self.reductions[0] += 1
        return float(tensor.abs().max()) if tensor.numel() else 0.0

    def _at(self, tensor: Tensor, amax: float) -> Tensor:
        if not 0 < amax < math.inf:
            return FloatFormat.round(self, tensor)
        exponent = math.floor(math.log2(self.max / amax))
        # In two factors: float32 holds no power of two above 2**127.
        one, other = exponent // 2, exponent - exponent // 2
        scaled = tensor * 2.0**one * 2.0**other
        return FloatFormat.round(self, scaled) * 2.0**-one * 2.0**-other


@dataclass(frozen=True)
class DelayedScaling(CurrentScaling):
    """An operand is scaled by the largest maximum of its last `history` steps.

    Operands are told apart by their order in a step. The first step of each has no history: it is
    rounded at scale 1, as in Transformer Engine. What has outgrown its scale saturates.
    """

    history: int = 16
    seen: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list), compare=False)
    order: list[int] = field(default_factory=lambda: [0], compare=False)

    def round(self, tensor: Tensor) -> Tensor:
        """The nearest values, at the scale that earlier steps left for this operand."""
        maxima = self.seen[self.order[0]]
        self.order[0] += 1
        amax = max(maxima[-self.history :], default=self.max)
        maxima.append(self._largest(tensor))
        return self._at(tensor, amax)

    def begin_step(self) -> None:
        """The next operand is the first of a step."""
        self.order[0] = 0


def scaled_format(rule: str, name: str) -> CurrentScaling:
    """The format `name` under the rule ``"current"`` or ``"delayed"``, saturating as casts do.

    Example:
        >>> import torch
        >>> scaled_format("current", "e5m2").round(torch.tensor([2.0**-40, 2.0**-30])).log2()
        tensor([-40., -30.])
    """
    base = FloatFormat.of(name)
    kind = {"current": CurrentScaling, "delayed": DelayedScaling}[rule]
    return kind(base.exponent_bits, base.mantissa_bits, "saturate", base.reserved)
