"""Backward passes that run after the block: they round as the block did that built their graph.

torch teaches to call `backward()` outside of autocast, and so people call it outside of `emulate`.
Which nodes were built inside is told by their sequence numbers, which a thread deals out in order:

    a block of this thread ends:  remember the numbers dealt out since it began, and its mode
    a backward pass begins:       is a node of one of them in its graph?
                                  then the mode is on in these nodes, and off in all others
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from gradscale.emulation.direction_formats import DirectionFormats
from gradscale.emulation.mode import EmulationMode, current_mode
from gradscale.emulation.overrides import overrides

MOST_BLOCKS = 64
"""Blocks whose graphs may still be run, a thread; one that accumulates gradients has a few."""

PASSES_WITHOUT = 256
"""After so many passes that met no node of a block its graphs are taken to be gone: looking for
them costs a walk through the graph of every pass."""

Roots: TypeAlias = Tensor | GradientEdge | Iterable[Tensor | GradientEdge | Node]
"""What `backward` is called with, a tensor, an edge or several; or nodes."""

Engine = Callable[..., object]

ENGINE = "_engine_run_backward"
"""Where `backward` and `grad` look up torch's engine: a name in `torch.autograd`."""

_MARK = "_looks_for_blocks"  # on our stand-in, so that there is one
_LEAF = 2**64 - 1
"""The number of every node that accumulates into a leaf."""


@dataclass
class Block:
    """An `emulate` block that has ended, and what was built in it.

    Attributes:
        first: the first sequence number of its nodes.
        end: the first one after it.
        mode: its mode, which knows the operands of its products.
        passes_without: how many backward passes came since that met none of its nodes.
    """

    first: int
    end: int
    mode: EmulationMode
    passes_without: int = 0

    def built(self, node: Node) -> bool:
        """Whether a node was recorded inside."""
        return self.first <= node._sequence_nr() < self.end


class _Blocks(threading.local):
    def __init__(self) -> None:
        self.ended: deque[Block] = deque(maxlen=MOST_BLOCKS)


_HERE = _Blocks()


def next_number() -> int:
    """The sequence number that the next node of this thread gets."""
    return torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]


def remember(mode: EmulationMode, first: int) -> None:
    """A block has ended, in which `first` was the first number."""
    end = next_number()
    if end > first:
        _HERE.ended.append(Block(first, end, mode))
        _install()


def formats_built_in(roots: Roots) -> DirectionFormats | None:
    """The formats of the block in which a part of this graph was built; None if it was in none.

    Args:
        roots: where a backward pass begins.

    Example:
        >>> from gradscale.emulation import emulate
        >>> x = torch.ones(2, requires_grad=True)
        >>> with emulate(backward="e5m2"):
        ...     loss = (x * x).sum()
        >>> formats_built_in(loss * 8).backward.name, formats_built_in(x.sum())
        ('e5m2', None)
    """
    found = _met(roots) if _HERE.ended else []
    return found[0][0].mode.rounding.precision if found else None


def _met(roots: Roots) -> list[tuple[Block, list[Node]]]:
    """The blocks that built nodes of this graph, the latest first, each with its nodes."""
    nodes = list(_nodes(roots))
    found = [(block, list(filter(block.built, nodes))) for block in reversed(_HERE.ended)]
    return [(block, built) for block, built in found if built]


def _nodes(roots: Roots) -> Iterator[Node]:
    # An edge is a named tuple, and iterable, too.
    several = (roots,) if isinstance(roots, Tensor | GradientEdge) else roots
    ahead = [_node_of(root) for root in several]
    seen: set[Node] = set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen or node._sequence_nr() == _LEAF:
            continue
        seen.add(node)
        yield node
        ahead += [target for target, _ in node.next_functions]


def _node_of(root: Tensor | GradientEdge | Node) -> Node | None:
    if isinstance(root, Tensor):
        return root.grad_fn
    return root.node if isinstance(root, GradientEdge) else root


def _run(original: Engine, roots: Roots, *args: object, **kwargs: object) -> object:
    """One backward pass, with the mode of the block on where the block built."""
    if not _HERE.ended or current_mode() is not None:
        return original(roots, *args, **kwargs)
    found = _met(roots)
    _forget_old([block for block, _ in found])
    if not found:
        return original(roots, *args, **kwargs)
    with ExitStack() as stack:
        # Once each: a graph of gradients is a block of its own, under the mode of the first.
        for mode in {id(block.mode): block.mode for block, _ in found}.values():
            stack.enter_context(_standing_by(mode))
        for block, built in found:
            for node in built:
                stack.enter_context(_on_within(node, block.mode))
        return original(roots, *args, **kwargs)


@contextmanager
def _standing_by(mode: EmulationMode) -> Generator[None]:
    """The mode is there, and does nothing yet."""
    first = next_number()
    overrides.acquire()
    mode.rounding.silent = 1
    try:
        with mode:
            yield
    finally:
        mode.rounding.silent = 0
        overrides.release()
        remember(mode, first)  # a graph of the gradients, if one was asked for


@contextmanager
def _on_within(node: Node, mode: EmulationMode) -> Generator[None]:
    def begin(gradients: object) -> None:
        mode.rounding.silent = 0

    def end(produced: object, arrived: object) -> None:
        mode.rounding.silent = 1

    with node.register_prehook(begin), node.register_hook(end):
        yield


def _forget_old(met: list[Block]) -> None:
    for block in tuple(_HERE.ended):
        here = any(block is other for other in met)
        block.passes_without = 0 if here else block.passes_without + 1
        if block.passes_without > PASSES_WITHOUT:
            _HERE.ended.remove(block)


def _install() -> None:
    """Stands in for the engine where `backward` and `grad` look it up, from the first block on."""
    original: Engine = getattr(torch.autograd, ENGINE)
    if hasattr(original, _MARK):
        return

    @wraps(original)
    def engine(roots: Roots, *args: object, **kwargs: object) -> object:
        return _run(original, roots, *args, **kwargs)

    setattr(engine, _MARK, True)
    # It stays: where no block has ended it does nothing but call the original.
    setattr(torch.autograd, ENGINE, engine)
