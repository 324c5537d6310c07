"""Whether a user's backward functions are linear, seen by giving them zeros and multiples.

Plans rest on linearity: a node that receives `a * g` must return `a` times what it returns for `g`,
for each power of two. A clamp or a sign does not; nor does a function that *returns* a gradient of
its own, as the auxiliary losses of routers do. With c = f(0):

    linear      c = 0 and f(a g) = a f(g)
    injects     c /= 0 and f(a g) - c = a (f(g) - c)
    nonlinear   all others
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from gradscale.backward.graph import BackwardGraph, Walk
from gradscale.backward.multiply import multiply_gradient
from gradscale.backward.no_trace import Given, LeavesTrace, call_again, gradients_for
from gradscale.host_copies import HostCopies
from gradscale.policies.bits import MIN_SCALE, floor_log2, power_of_two
from gradscale.ranks import reduce_max_
from gradscale.untraced import untraced

Kind = Literal["linear", "injects", "nonlinear", "unknown"]

ROUNDINGS = 8
"""Two results may differ by so many rounding errors of the largest element: kernels that add in no
fixed order do not repeat themselves; a clamp or a sign differs by the elements themselves."""

MOST_OCTAVES = 40
"""The far multiples are so far at most. Float32 has more room, but the function may use it."""

# Octaves that a far multiple keeps away from the ends of its format.
_ROOM = 4
_UNKNOWN, _ALIVE, _NONFINITE, _NONLINEAR, _INJECTS = range(5)


@dataclass(frozen=True)
class Linearity:
    """What became of probing one function's node.

    Attributes:
        kind: ``"unknown"`` if it could not be probed, or nothing came of it.
        outputs: of the node, those with a gradient of the function's own.
        why: it is unknown.
        passing: whether another pass may tell: in this one all was zero, or not finite.
    """

    kind: Kind
    outputs: tuple[int, ...] = ()
    why: str = ""
    passing: bool = False


class Probing:
    """The user's functions of one backward pass, each called a few times more before its turn.

    Results stay on the device until asked for.

    Args:
        walk: the graph that the pass will run through.
        nodes: which functions to probe.

    Example:
        >>> from gradscale.backward.graph import walk
        >>> class Clamp(torch.autograd.Function):
        ...     __module__ = "mine"
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         return x.view_as(x)
        ...     @staticmethod
        ...     def backward(ctx, grad):
        ...         return grad.clamp(-1, 1)
        >>> loss = (Clamp.apply(torch.ones(2, requires_grad=True)) * 8).sum()
        >>> walked = walk(loss)
        >>> probing = Probing(walked, walked.graph.unproven)
        >>> loss.backward()
        >>> [found.kind for found in probing.result().values()]
        ['nonlinear']
    """

    def __init__(self, walk: Walk, nodes: Iterable[int]) -> None:
        self.graph: BackwardGraph = walk.graph
        self.nodes = sorted(nodes)
        self._rows: dict[int, Tensor] = {}
        self._reasons: dict[int, str] = {}
        self._copies: HostCopies[Tensor] | None = None
        self._handles = [walk.nodes[n].register_prehook(self._hook(n)) for n in self.nodes]

    def _width(self, number: int) -> int:
        edges = [self.graph.edges[edge] for edge in self.graph.edges_from(number)]
        return _INJECTS + 1 + max((edge.output for edge in edges), default=-1)

    def _hook(self, number: int) -> Callable[[Given], None]:
        width = self._width(number)

        @untraced
        def probe(arrived: Given) -> None:
            node = torch._C._current_autograd_node()  # a hook that held its node would leak it
            row = torch.zeros(width, dtype=torch.float32, device=_device(arrived))
            try:
                _probe(row, node, arrived)
            except LeavesTrace as reason:
                self._reasons[number] = str(reason)
                row[_UNKNOWN] = 1
            before = self._rows.get(number)
            self._rows[number] = row if before is None else torch.maximum(before, row)

        return probe

    def reduce(self, groups: Iterable[Any], device: torch.device) -> None:
        """Merges what all ranks saw in equal graphs. A collective.

        Args:
            groups: the process groups.
            device: on which they communicate.
        """
        widths = [self._width(number) for number in self.nodes]
        nothing = torch.zeros(sum(widths), dtype=torch.float32)
        unseen = dict(zip(self.nodes, nothing.split(widths), strict=True))
        rows = {**unseen, **self._rows}
        merged = torch.cat([rows[number].to(device) for number in self.nodes])
        reduce_max_([merged], list(groups))
        self._rows = dict(zip(self.nodes, merged.split(widths), strict=True))

    def fetch(self) -> None:
        """Begins to copy the results to the host; hooks are removed."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._copies = HostCopies(list(self._rows.values()))

    @property
    def arrived(self) -> bool:
        """Whether `result` need not wait."""
        return self._copies is not None and self._copies.arrived

    def result(self) -> dict[int, Linearity]:
        """For each node that ran what it is; waits for the copy if it is still under way."""
        if self._copies is None:
            self.fetch()
        copies = cast("HostCopies[Tensor]", self._copies)
        copies.wait()
        rows = zip(self._rows, copies.tensors, strict=True)
        return {node: _judged(row.tolist(), self._reasons.get(node)) for node, row in rows}


def _device(arrived: Given) -> torch.device:
    return next((g.device for g in arrived if g is not None), torch.device("cpu"))


def _probe(row: Tensor, node: Any, arrived: Given) -> None:
    factors = _factors(row, [gradient for gradient in arrived if gradient is not None])
    gradients = [gradients_for(node, arrived, torch.zeros_like)]
    multiples = (row.new_ones(()), *factors)
    gradients += [gradients_for(node, arrived, _by(factor)) for factor in multiples]
    zero, one, *others = call_again(node, gradients)
    if any(set(result) != set(one) for result in (zero, *others)):
        raise LeavesTrace("it returns a gradient for some gradients and none for others")
    _raise(row, _ALIVE, *((g != 0).any() for g in arrived if g is not None))
    coarsest = max((torch.finfo(g.dtype).eps for g in arrived if g is not None), default=0.0)
    for output, returned in one.items():
        own, base, format = _wide(zero[output]), _wide(returned), torch.finfo(returned.dtype)
        _raise(row, _INJECTS + output, (own != 0).any())
        _raise(row, _NONFINITE, ~torch.isfinite(base).all())
        _raise(row, _NONLINEAR, ~torch.isfinite(own).all())
        for factor, multiplied in zip(factors, others, strict=True):
            fits = _follows(factor, own, base, _wide(multiplied[output]), format, coarsest)
            _raise(row, _NONLINEAR, ~fits)


def _factors(row: Tensor, arrived: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Two, and the powers of two that bring what arrived near the top and bottom of its format.

    A linear function gives the same bits for them, or overflows; far ones show a clamp or a
    threshold that does not act as yet, and would under a plan.
    """
    sizes = [_octave(g.detach().abs().max().to(row.device, row.dtype)) for g in arrived]
    octave = torch.stack(sizes or [row.new_zeros(())]).max()
    formats = [torch.finfo(g.dtype) for g in arrived] or [torch.finfo(torch.float32)]
    most = min(math.log2(f.max) for f in formats) - _ROOM - octave
    least = max(math.log2(f.smallest_normal) for f in formats) + _ROOM - octave
    up = most.clamp(1, MOST_OCTAVES).to(torch.int32)
    down = least.clamp(-MOST_OCTAVES, -1).to(torch.int32)
    return row.new_full((), 2.0), power_of_two(up), power_of_two(down)


def _octave(amax: Tensor) -> Tensor:
    """The exponent of the octave of a magnitude, as a float; 0 where there is none."""
    finite = torch.isfinite(amax) & (amax > MIN_SCALE)
    return floor_log2(torch.where(finite, amax, 1.0)).to(amax.dtype)


def _follows(
    factor: Tensor, own: Tensor, base: Tensor, found: Tensor, format: torch.finfo, coarsest: float
) -> Tensor:
    """Whether ``found - own == factor * (base - own)``, up to rounding; true if it overflowed."""
    factor = factor.to(found.device)
    if not found.numel():
        return torch.ones((), dtype=torch.bool, device=found.device)
    apart = (found - own - factor * (base - own)).abs().max()
    # Rounding errors are of the size of the terms, however small their difference.
    size = factor * base.abs().max() + found.abs().max() + (1 + factor) * own.abs().max()
    # What is stored below the normal range is off by up to half the smallest subnormal.
    least = (1 + factor) * format.smallest_normal * format.eps
    bound = ROUNDINGS * (max(coarsest, format.eps) * size + least)
    return (apart <= bound) | ~torch.isfinite(found).all()


def _by(factor: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: multiply_gradient(gradient, factor.to(gradient.device))


def _raise(row: Tensor, column: int, *conditions: Tensor) -> None:
    for condition in conditions:
        row[column].copy_(torch.maximum(row[column], condition.to(row.device, row.dtype)))


def _wide(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _judged(row: list[float], reason: str | None) -> Linearity:
    outputs = tuple(output for output, injects in enumerate(row[_INJECTS:]) if injects)
    if row[_UNKNOWN]:
        return Linearity("unknown", why=reason or "it could not be probed on another rank")
    if row[_NONFINITE]:
        return Linearity("unknown", why="its gradient was not finite", passing=True)
    if row[_NONLINEAR]:
        return Linearity("nonlinear")
    if outputs:
        return Linearity("injects", outputs)
    if not row[_ALIVE]:
        return Linearity("unknown", why="it received nothing but zeros", passing=True)
    return Linearity("linear")
