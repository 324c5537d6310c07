"""Things that wait for the device, handed on in order as soon as they have arrived."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

LONGEST_LINE = 64
"""Things that may wait. A device that is further behind is waited for: so memory stays bounded."""


class Arrives(Protocol):
    """What stands in a line, usually around a `HostCopies`."""

    @property
    def arrived(self) -> bool:
        """Whether it can be handed on; never waits."""
        ...

    def wait(self) -> None:
        """Waits for the device. If it has not `arrived` then, it stays at the head of the line."""
        ...


Thing = TypeVar("Thing", bound=Arrives)


class WaitingLine(Generic[Thing]):
    """Hands each thing on once it, and every one before it, has arrived.

        line = WaitingLine(hand_on)
        line.add(step)        at the end of a step; `poll` follows by itself
        line.poll()           hands on what has arrived; never waits, unless the line is too long
        line.poll(wait=True)  hands on everything

    What `hand_on` raises comes out of `add` or `poll`; that thing is then out of the line.

    Args:
        hand_on: called with one thing at a time, in the order in which they were added.

    Attributes:
        things: those that wait.

    Example:
        >>> import torch
        >>> from gradscale.host_copies import HostCopies
        >>> line = WaitingLine(lambda copies: print(copies.tensors))
        >>> line.add(HostCopies([torch.tensor(2.0)]))
        [tensor(2.)]
        >>> len(line)
        0
    """

    def __init__(self, hand_on: Callable[[Thing], object]) -> None:
        self._hand_on = hand_on
        self.things: deque[Thing] = deque()

    def add(self, thing: Thing) -> None:
        """Puts one at the end, and hands on what has arrived."""
        self.things.append(thing)
        self.poll()

    def poll(self, *, wait: bool = False) -> None:
        """Hands on what has arrived; with `wait`, everything."""
        while self.things:
            first = self.things[0]
            if not first.arrived and (wait or len(self.things) > LONGEST_LINE):
                first.wait()
            if not first.arrived:
                return
            self.things.popleft()
            self._hand_on(first)

    def clear(self) -> None:
        """Forgets those that wait."""
        self.things.clear()

    def __iter__(self) -> Iterator[Thing]:
        return iter(self.things)

    def __len__(self) -> int:
        return len(self.things)
