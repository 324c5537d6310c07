"""A live compiled node seen as the autograd nodes inside it."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch.utils.hooks import RemovableHandle

from gradscale.compiled.part import OUTSIDE, Arriving, Closed, CompiledPart
from gradscale.compiled.preparing import PART
from gradscale.compiled.under_way import Hook, under_way
from gradscale.live_nodes import Gradients, LiveNode

COMPILED = "CompiledFunctionBackward"
_PARTS: weakref.WeakKeyDictionary[object, CompiledPart | Closed] = weakref.WeakKeyDictionary()
_UNPREPARED = Closed(
    "it was compiled before {this} was built, or by a backend that does not go through "
    "`torch._dynamo.backends.common.aot_autograd`. Build {the} before the first step, or call "
    "`torch.compiler.reset()` after you have built it"
)


def part_of(node: Any) -> CompiledPart | Closed | None:
    """What is known of a live node of a compiled graph; None if the node is none."""
    compiled = getattr(node, "_forward_cls", None)
    if compiled is None or not hasattr(compiled, "_lazy_backward_info"):
        return None
    if compiled not in _PARTS:
        info = compiled._lazy_backward_info
        module: Any = getattr(info, "bw_module", None)
        part = getattr(module, "meta", {}).get(PART, _UNPREPARED)
        if getattr(compiled, "maybe_subclass_metadata", None) is not None:
            part = Closed("it works on tensors of a class of their own")
        elif isinstance(part, CompiledPart) and part.arguments != len(node.next_functions):
            part = Closed("torch counts its arguments otherwise")
        _PARTS[compiled] = part
    return _PARTS[compiled]


class InnerNode:
    """One autograd node inside a compiled one, with the methods of a live node.

    Its hooks are called while the compiled node runs; from then on until they are removed, torch
    runs that backward pass operator by operator.
    """

    def __init__(self, opened: Opened, number: int) -> None:
        self._opened = opened
        self.number = number

    @property
    def live(self) -> LiveNode:
        """The compiled node that it is part of."""
        return self._opened.live

    @property
    def part(self) -> CompiledPart:
        """The plain data of the compiled node."""
        return self._opened.part

    @property
    def pinned(self) -> bool:
        """Whether it stays at the loss scale."""
        return self.part.nodes[self.number].pinned

    def name(self) -> str:
        """What autograd calls it in the eager run."""
        return self.part.nodes[self.number].name

    @property
    def next_functions(self) -> tuple[tuple[LiveNode | None, int], ...]:
        """Where its gradients go, within the compiled node or out of it."""
        crossings = (self.part.crossings[place] for place in self.part.leaving[self.number])
        return tuple(
            self._opened.next_functions[crossing.input]
            if crossing.target == OUTSIDE
            else (self._opened[crossing.target], crossing.input)
            for crossing in crossings
        )

    @property
    def _input_metadata(self) -> tuple[Arriving, ...]:
        return self.part.nodes[self.number].arrives

    @property
    def metadata(self) -> dict[str, object]:
        """A place for notes, which lasts as long as the compiled node."""
        notes = self.live.metadata.setdefault(f"gradscale.inner.{self.number}", {})
        return cast("dict[str, object]", notes)

    def _sequence_nr(self) -> int:
        """That of the compiled node where a gradient enters it, which a user may watch there."""
        entered = any(entry.inner == self.number for entry in self.part.entries.values())
        return self.live._sequence_nr() if entered else -1

    def register_hook(self, hook: Hook) -> RemovableHandle:
        """Calls `hook(produced, arrived)` whenever the compiled node runs; it changes nothing."""
        hooks = under_way(self.live).hooks.setdefault(self.number, OrderedDict())
        handle = RemovableHandle(hooks)
        hooks[handle.id] = hook
        return handle

    def register_prehook(self, hook: Callable[[Gradients], Gradients | None]) -> RemovableHandle:
        """Calls `hook(entering)` before the compiled node runs, and takes what it returns instead.

        Raises:
            RuntimeError: if nothing enters the compiled node here.
        """
        slots = [slot for slot, entry in self.part.entries.items() if entry.inner == self.number]
        if not slots:
            raise RuntimeError(
                f"{self.name()} within {COMPILED} is no place where gradients enter."
            )

        def before(gradients: Gradients) -> Gradients | None:
            changed = hook(tuple(gradients[slot] for slot in slots))
            if changed is None:
                return None
            given = dict(zip(slots, changed, strict=True))
            return tuple(given.get(slot, gradient) for slot, gradient in enumerate(gradients))

        return self.live.register_prehook(before)


class Opened:
    """The inner nodes of one live compiled node; keeps it alive."""

    def __init__(self, live: LiveNode, part: CompiledPart) -> None:
        self.live = live
        self.part = part
        self.next_functions = live.next_functions
        self._inner: dict[int, InnerNode] = {}

    def __getitem__(self, number: int) -> InnerNode:
        if number not in self._inner:
            self._inner[number] = InnerNode(self, number)
        return self._inner[number]


class Opening:
    """Looks into the compiled nodes that one walk meets."""

    def __init__(self) -> None:
        self._opened: dict[LiveNode, Opened | None] = {}

    def at(self, node: Any, slot: int) -> tuple[Any, int]:
        """Where a gradient that goes to input `slot` of a live node really arrives first.

        Returns:
            A node and which of its inputs; None and 0 if the compiled node takes no gradient there.
        """
        if node not in self._opened:
            part = part_of(node)
            self._opened[node] = Opened(node, part) if isinstance(part, CompiledPart) else None
        opened = self._opened[node]
        if opened is None:
            return node, slot
        entry = opened.part.entries.get(slot)
        return (None, 0) if entry is None else (opened[entry.inner], entry.input)

    def layout(self, nodes: Sequence[object]) -> tuple[tuple[int, int], ...]:
        """Which of these nodes lie in which compiled node; empty if none does."""
        if not any(self._opened.values()):
            return ()
        order = {live: place for place, live in enumerate(self._opened)}
        return tuple(
            (order[node.live], node.number) if isinstance(node, InnerNode) else (-1, -1)
            for node in nodes
        )
