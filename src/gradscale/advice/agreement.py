"""How far two sets of tensors agree, module by module: gradients, or what becomes of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gradscale.backward.cancellation import mostly
from gradscale.truth import Gradients


class Agreement(NamedTuple):
    """Scalar products of what is true and what was held; they add up over parts.

    Attributes:
        along: of both.
        true: of the true one with itself.
        held: of the other with itself.
    """

    along: float = 0.0
    true: float = 0.0
    held: float = 0.0

    @property
    def cosine(self) -> float:
        """1 where both are zero, 0 where one is.

        Example:
            >>> Agreement(1.0, 1.0, 4.0).cosine, Agreement(0.0, 1.0, 0.0).cosine
            (0.5, 0.0)
        """
        if self.true == 0 or self.held == 0:
            return 1.0 if self.true == self.held else 0.0
        # sqrt(true * held) would underflow for gradients below 2^-500.
        return max(-1.0, min(1.0, self.along / math.sqrt(self.true) / math.sqrt(self.held)))

    @property
    def left(self) -> float:
        """The share of the true one that the other has along it, both measured by the longer.

        Of an update, what it comes to: this share of the learning rate, and noise. Half of the
        elements zero: a half; noise as long as the true one: a half; the wrong way: below zero.

        Example:
            >>> Agreement(along=4.0, true=8.0, held=4.0).left
            0.5
        """
        longer = max(self.true, self.held)
        return self.along / longer if longer else 1.0


def agreements(true: Gradients, held: Gradients) -> dict[str, Agreement]:
    """By module, over its own parameters; modules where the true ones are zero are left out.

    Gradients that are zero up to rounding have no direction, nor has what an optimizer makes of
    them: they are left out.

    Example:
        >>> one = Gradients(parameters={"a.weight": torch.tensor([1.0, 0.0])})
        >>> two = Gradients(parameters={"a.weight": torch.tensor([1.0, 1.0])})
        >>> round(agreements(one, two)["a"].cosine, 3)
        0.707
    """
    parts: dict[str, list[Agreement]] = defaultdict(list)
    for name, known in told(true).items():
        other = held.parameters.get(name)
        two = torch.zeros_like(known) if other is None else other.to(torch.float64) / held.scale
        if name in true.zeros:
            two = two.masked_fill(true.zeros[name].reshape(two.shape), 0.0)
        one, two = known.flatten(), two.flatten()
        found = Agreement(float(one @ two), float(one @ one), float(two @ two))
        parts[module_of(name)].append(found)
    sums = {name: total(of) for name, of in parts.items()}
    return {name: found for name, found in sums.items() if found.true > 0}


def total(parts: Iterable[Agreement]) -> Agreement:
    """Of all parts together.

    Example:
        >>> total([Agreement(1.0, 1.0, 1.0), Agreement(0.0, 1.0, 0.0)])
        Agreement(along=1.0, true=2.0, held=1.0)
    """
    return Agreement(*map(sum, zip(Agreement(), *parts, strict=True)))


def told(true: Gradients) -> dict[str, Tensor]:
    """In float64, without parameters and elements that are zero up to rounding."""
    known: dict[str, Tensor] = {}
    for name, values in true.parameters.items():
        zeros = true.zeros.get(name)
        if zeros is None:
            known[name] = values.to(torch.float64)
        elif not bool(mostly(zeros)):
            known[name] = values.to(torch.float64).masked_fill(zeros.reshape(values.shape), 0.0)
    return known


def reaches(moves: Gradients, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """How far each module moves, that which moves farthest being 1.

    Far is what moves its elements far, or far against the size of its weights, the larger: layers
    of the same network may differ in either without training differently.

    Example:
        >>> moves = Gradients(parameters={"a.w": torch.ones(2), "b.w": torch.full((2,), 1e-4)})
        >>> far = reaches(moves, {"a.w": torch.ones(2), "b.w": torch.ones(2)})
        >>> round(far["a"], 6), round(far["b"], 6)
        (1.0, 0.0001)
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for name, values in told(moves).items():
        total = sums[module_of(name)]
        total[0] += float(values.square().sum())
        total[1] += int(values.count_nonzero())
        total[2] += float(weights[name].detach().to(torch.float64).square().sum())
    steps = {name: math.sqrt(moved / max(1, count)) for name, (moved, count, _) in sums.items()}
    # Weights that are all zero, as those of a LoRA, have no size to move against.
    shares = {name: math.sqrt(moved / size) for name, (moved, _, size) in sums.items() if size}
    most, largest = (max(of.values(), default=0.0) or 1.0 for of in (steps, shares))
    return {name: max(steps[name] / most, shares.get(name, 0.0) / largest) for name in sums}


def module_of(parameter: str) -> str:
    """The name of the module that a parameter belongs to; its own, if it is the model's."""
    return parameter.rpartition(".")[0] or parameter
