"""Gradients that are zero up to rounding: sums whose terms cancel.

The gradient of a bias is a sum over the batch. In front of a batch normalisation, or as the bias of
attention's keys, that sum is zero whatever the data, and what is left of it is rounding noise: a
format that flushes it loses nothing. It is told by the size of its terms, not by a name:

    terms of random sign    |sum g| is about sqrt(sum g^2)
    terms that cancel       |sum g| is at most some rounding errors of sum |g|
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradscale.backward.graph import BackwardGraph, Walk

ROUNDINGS = 32
"""A sum that cancels is at most so many rounding errors, each of the size of all its terms."""

CHANCE = 1 / 16
"""Nor may it be above this share of a random sum. One random sum in twenty lies below."""

MOST = 0.75
"""A parameter is negligible if this share of its elements is: chance does not make so many."""

_PASSING = (
    "torch::autograd::CopyBackwards", "AliasBackward0", "CloneBackward0", "ExpandBackward0",
    "ReshapeAliasBackward0", "SqueezeBackward1", "ToCopyBackward0", "UnsqueezeBackward0",
    "UnsafeViewBackward0", "ViewBackward0",
)  # fmt: skip
_SPLITTING = ("SplitBackward0", "SplitWithSizesBackward0", "UnsafeSplitBackward0")
_CHANNELS_SECOND = ("ConvolutionBackward", "BatchNormBackward", "GroupNormBackward")


class Cancellations:
    """Follows, through one backward pass, the sums that become gradients of parameters.

    Results stay on the device until asked for. The pass should run in float32: in half precision
    the rounding noise of a long sum reaches the size of a random sum, and single elements may be
    taken for zero that are not; `MOST` of a whole parameter may not.

    Args:
        walk: the graph that the pass will run through.

    Example:
        >>> from gradscale.backward.graph import walk
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
        >>> loss = net(torch.randn(4, 1, 5, 5)).pow(3).sum()
        >>> sums = Cancellations(walk(loss))
        >>> loss.backward()
        >>> bool(sums.zeros()[id(net[0].bias)].all()), bool(sums.zeros()[id(net[1].bias)].any())
        (True, False)
    """

    def __init__(self, walk: Walk) -> None:
        self._sums: dict[int, _Sum] = {}
        self._handles: list[Any] = []
        wanted: dict[int, list[tuple[_Source, _Sum]]] = {}
        for leaf, parameter in walk.graph.parameters().items():
            sources = None if parameter is None else _sources(walk.graph, leaf, parameter.numel())
            if parameter is not None and sources:
                total = self._sums[id(parameter)] = _Sum(parameter)
                for source in sources:
                    wanted.setdefault(source.node, []).append((source, total))
        for node, sources in wanted.items():
            hook = _hook(walk.graph.names[node], sources)
            self._handles.append(walk.nodes[node].register_hook(hook))

    def zeros(self) -> dict[int, Tensor]:
        """By `id(parameter)`, which elements of its gradient are zero up to rounding."""
        found = {key: total.negligible() for key, total in self._sums.items()}
        return {key: zeros for key, zeros in found.items() if zeros is not None}

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def mostly(zeros: Tensor) -> Tensor:
    """Whether `MOST` elements are zero up to rounding, as a 0-d tensor on the device.

    Example:
        >>> mostly(torch.tensor([True, True])), mostly(torch.tensor([True, False]))
        (tensor(True), tensor(False))
    """
    return zeros.to(torch.float32).mean() >= MOST


class _Source(NamedTuple):
    """An output of a node that becomes a part of a parameter's gradient, in its flat order."""

    node: int
    output: int
    start: int
    length: int


class _Sum:
    """What is known of one parameter's gradient: the sum, and the sizes of its terms."""

    def __init__(self, parameter: Tensor) -> None:
        self._shape = parameter.shape
        # A row each: the sum of the terms, of their sizes, of their squares.
        self._total = torch.zeros(
            3, parameter.numel(), dtype=torch.float32, device=parameter.device
        )
        self._roundoff = 0.0
        self._is_sum: Tensor | bool = True

    def add(self, terms: Tensor, produced: Tensor, start: int, channels_second: bool) -> None:
        """Another use of the parameter; `produced` is checked to be the sum of `terms`."""
        axes = _summed(terms.shape, produced.shape, channels_second)
        if axes is None or terms.numel() <= produced.numel() or not terms.is_floating_point():
            self._is_sum = False
            return
        wide = terms.detach().to(torch.promote_types(terms.dtype, torch.float32))
        sums = wide.sum(axes), wide.abs().sum(axes), wide.square().sum(axes)
        total, sizes, squares = (part.reshape(-1) for part in sums)
        if start + len(total) > self._total.shape[1]:
            self._is_sum = False  # FSDP holds a shard of it until the pass needs the whole
            return
        # Rounding to nearest errs by half a unit in the last place at most.
        self._roundoff = max(self._roundoff, torch.finfo(terms.dtype).eps / 2)
        # The node's own sum may have been taken in another order, and then rounded.
        found = produced.detach().reshape(-1).to(wide.dtype)
        apart = (found - total).abs() - total.abs() / 32 - ROUNDINGS * self._roundoff * sizes
        self._is_sum = self._is_sum & (apart <= torch.finfo(produced.dtype).tiny).all()
        self._total = self._total.to(torch.promote_types(self._total.dtype, wide.dtype))
        self._total[:, start : start + len(total)] += torch.stack([total, sizes, squares])

    def negligible(self) -> Tensor | None:
        """Which elements are; None if the gradient was not seen to be a sum."""
        if self._is_sum is False or self._roundoff == 0:
            return None
        total, sizes, squares = self._total
        bound = torch.minimum(ROUNDINGS * self._roundoff * sizes, CHANCE * squares.sqrt())
        return ((total.abs() <= bound) & (sizes > 0) & self._is_sum).reshape(self._shape)


def _hook(
    name: str, sources: Sequence[tuple[_Source, _Sum]]
) -> Callable[[Sequence[Tensor | None], Sequence[Tensor | None]], None]:
    channels_second = any(kind in name for kind in _CHANNELS_SECOND)

    def add(produced: Sequence[Tensor | None], arrived: Sequence[Tensor | None]) -> None:
        terms = arrived[0]
        for source, total in sources:
            gradient = produced[source.output]
            if terms is not None and gradient is not None:
                with torch.no_grad():
                    total.add(terms, gradient, source.start, channels_second)

    return add


def _summed(terms: torch.Size, total: torch.Size, channels_second: bool) -> tuple[int, ...] | None:
    """The axes of the terms over which they were summed; None if the shapes do not tell."""
    if channels_second:
        fits = len(terms) > 1 and list(total) == [terms[1]]
        return tuple(axis for axis in range(len(terms)) if axis != 1) if fits else None
    lead = len(terms) - len(total)
    if lead < 0:
        return None
    pairs = list(enumerate(zip(terms[lead:], total, strict=True), lead))
    if any(of != to and to != 1 for _, (of, to) in pairs):
        return None
    return (*range(lead), *(axis for axis, (of, to) in pairs if of != to))


def _sources(graph: BackwardGraph, leaf: int, length: int) -> list[_Source] | None:
    """Who makes a leaf's gradient, behind casts, views and splits; None where nobody can tell."""
    found: list[_Source] = []
    ahead = [(number, 0, length) for number in graph.edges_into(leaf)]
    while ahead:
        number, start, length = ahead.pop()
        edge = graph.edges[number]
        name = graph.names[edge.source]
        above = graph.edges_into(edge.source)
        if edge.source in graph.roots:
            return None
        if name in _PASSING:
            ahead += [(each, start, length) for each in above]
        elif name in _SPLITTING:
            pieces = [arrival.shape for arrival in graph.arrives[edge.source]]
            if any(len(shape) != 1 for shape in pieces):
                return None  # not cut into runs of its flat order
            sizes = [shape[0] for shape in pieces]
            for each in above:
                piece = graph.edges[each].input
                ahead.append((each, start + sum(sizes[:piece]), sizes[piece]))
        else:
            found.append(_Source(edge.source, edge.output, start, length))
    return found
