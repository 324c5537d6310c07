"""What was measured of one way to scale: lost share, and how far gradients are astray."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from gradscale.backward.cancellation import mostly
from gradscale.files.json_text import JsonObject
from gradscale.formats import FloatFormat
from gradscale.truth import Gradients, compared


@dataclass(frozen=True)
class ScalingEvidence:
    """Gradients of one format at one scale, or at the scales of a plan, against float32.

    Attributes:
        lost_share: the share of gradient elements that were flushed, over modules and parameters.
        cosine: between all parameters' gradients and the true ones.
        worst: the smallest cosine of a module's gradients; the module is `where`.
        where: a module's name.
        overflowed: whether something was infinite or NaN.
    """

    lost_share: float
    cosine: float
    worst: float
    where: str
    overflowed: bool

    def to_dict(self) -> JsonObject:
        """Plain numbers and strings."""
        return asdict(self)


@dataclass
class Collected:
    """Evidence added up over several moments of training."""

    flushed: int = 0
    nonzero: int = 0
    cosines: list[float] = field(default_factory=list[float])
    modules: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    overflowed: bool = False

    def add(self, true: Gradients, held: Gradients, format: FloatFormat) -> None:
        """One pass of the half-precision network, and the reference of the same batch."""
        if not held.finite:
            self.overflowed = True
            return
        lost = compared(true, held, format)
        self.flushed += lost.flushed
        self.nonzero += lost.nonzero
        whole, by_module = cosines(true, held)
        self.cosines.append(whole)
        for name, value in by_module.items():
            self.modules.setdefault(name, []).append(value)

    @property
    def evidence(self) -> ScalingEvidence | None:
        """The means; None if no pass was finite nor overflowed."""
        if not self.cosines:
            return ScalingEvidence(1.0, 0.0, 0.0, "", True) if self.overflowed else None
        means = {name: sum(values) / len(values) for name, values in self.modules.items()}
        where = min(means, key=lambda name: means[name], default="")
        return ScalingEvidence(
            self.flushed / max(1, self.nonzero),
            sum(self.cosines) / len(self.cosines),
            means.get(where, 1.0),
            where,
            self.overflowed,
        )


def cosines(true: Gradients, held: Gradients) -> tuple[float, dict[str, float]]:
    """The cosine over all parameters, and by module over its own parameters.

    Gradients that are zero up to rounding have no direction and are left out.

    Example:
        >>> one = Gradients(parameters={"a.weight": torch.tensor([1.0, 0.0])})
        >>> two = Gradients(parameters={"a.weight": torch.tensor([1.0, 1.0])})
        >>> whole, by_module = cosines(one, two)
        >>> round(whole, 3), round(by_module["a"], 3)
        (0.707, 0.707)
    """
    sums: dict[str, list[float]] = {}
    for name, reference in true.parameters.items():
        zeros = true.zeros.get(name)
        if zeros is not None and bool(mostly(zeros)):
            continue
        other = held.parameters.get(name)
        other = torch.zeros_like(reference) if other is None else other
        products = _products(reference, other, held.scale)
        total = sums.setdefault(name.rpartition(".")[0] or name, [0.0, 0.0, 0.0])
        for index, value in enumerate(products):
            total[index] += value
    # Products add up over parts, so one pass gives all cosines.
    whole = [sum(values[index] for values in sums.values()) for index in range(3)]
    return _cosine(whole), {n: _cosine(values) for n, values in sums.items() if values[1] > 0}


def _products(true: Tensor, held: Tensor, scale: float) -> list[float]:
    one = true.flatten().to(torch.float64)
    two = held.flatten().to(torch.float64) / scale
    return [float(one @ two), float(one @ one), float(two @ two)]


def _cosine(products: list[float]) -> float:
    along, one, two = products
    if one == 0 or two == 0:
        return 1.0 if one == two else 0.0
    # sqrt(one * two) would underflow for gradients below 2^-500.
    return max(-1.0, min(1.0, along / math.sqrt(one) / math.sqrt(two)))
