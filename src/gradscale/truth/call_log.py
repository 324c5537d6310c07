"""Who ran when: modules by the autograd nodes that they made, and the first bad value of each pass.

Autograd numbers its nodes as they are made. What a module's call made lies between the numbers at
its beginning and at its end, so that every operation of the backward pass, also one between two
modules, leads back to the innermost module it belongs to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradscale.backward.graph import walk
from gradscale.backward.names import plain_modules
from gradscale.emulation.later_passes import next_number
from gradscale.emulation.passes import in_autograd_node
from gradscale.live_nodes import LiveNode
from gradscale.nested_tensors import tensors_in
from gradscale.truth.gradients import as_dense


@dataclass(frozen=True)
class Spot:
    """Where something was first not finite.

    Attributes:
        module: the innermost module that made it, as in `named_modules()`.
        operation: what torch calls the operation: ``"SqrtBackward0"``; in the forward pass the
            module's class.
        nonfinite: how many elements were infinite or NaN.
        elements: of how many.
        before: in the forward pass, the module that received it, if the module that made it did so
            between two of its children; else empty.
    """

    module: str
    operation: str
    nonfinite: int
    elements: int
    before: str = ""

    def __str__(self) -> str:
        where = self.module if self.module.startswith("after ") else f"in {self.module}"
        before = f", before {self.before}" if self.before else ""
        count = f"{self.nonfinite:,} of {self.elements:,} elements"
        return f"{where} ({self.operation}){before}: {count}"


class _Call(NamedTuple):
    name: str
    kind: str
    first: int


class CallLog:
    """Watches one forward and one backward pass; a context manager.

    Attributes:
        forward: the first value that was not finite, in forward order.
        backward: the first gradient that was not, in backward order.
        bad_inputs: whether the outermost module already received one.
    """

    def __init__(self, model: nn.Module) -> None:
        self.forward: Spot | None = None
        self.backward: Spot | None = None
        self.bad_inputs = False
        self._model = model
        self._root = type(model).__name__
        self._open: list[_Call] = []
        self._spans: list[tuple[int, int, str]] = []
        self._handles: list[RemovableHandle] = []
        # torch runs a backward pass in one thread a device.
        self._lock = threading.Lock()

    def __enter__(self) -> CallLog:
        for name, module in plain_modules(self._model):
            self._handles.append(
                module.register_forward_pre_hook(self._opened(name), with_kwargs=True)
            )
            # Also called where the module raises, or it would count as open from then on.
            self._handles.append(module.register_forward_hook(self._closed, always_call=True))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def follow(self, node: LiveNode) -> None:
        """Looks at what a node makes of its gradients, as it runs."""
        number, name = node._sequence_nr(), node.name()

        def look(produced: Sequence[Tensor | None], arrived: Sequence[Tensor | None]) -> None:
            if self.backward is not None:
                return
            # What arrived first: the sum of two finite gradients may overflow between their nodes.
            for source in (arrived, produced):
                for tensor in source:
                    bad = 0 if tensor is None else nonfinite(tensor)
                    if tensor is not None and bad:
                        with self._lock:
                            found = Spot(self._module_of(number), name, bad, tensor.numel())
                            self.backward = self.backward or found
                        return

        node.register_hook(look)

    def _opened(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, kwargs: object) -> None:
            if self.forward is None and not self.bad_inputs and not in_autograd_node():
                self._look_at_inputs(name, (args, kwargs))
            first = next_number()
            self._open.append(_Call(name, type(module).__name__, first))

        return hook

    def _look_at_inputs(self, name: str, inputs: object) -> None:
        for tensor in tensors_in(inputs):
            # A mask of -inf is meant; what is made of it shows in outputs.
            bad = nonfinite(tensor.detach().clamp(min=0)) if tensor.is_floating_point() else 0
            if not bad:
                continue
            if not self._open:
                self.bad_inputs = True
            else:
                around = self._open[-1]
                self.forward = Spot(around.name, around.kind, bad, tensor.numel(), name)
            return

    def _closed(self, module: nn.Module, args: object, output: object) -> None:
        del module, args
        # Calls nest, also under recomputation: the last opened is the first to close.
        call = self._open.pop()
        end = next_number()
        self._spans.append((call.first, end, call.name))
        if in_autograd_node():
            self._follow_recomputed(output, call.first)
        elif self.forward is None and not self.bad_inputs:
            for tensor in tensors_in(output):
                bad = nonfinite(tensor)
                if bad:
                    self.forward = Spot(call.name, call.kind, bad, tensor.numel())
                    return

    def _follow_recomputed(self, output: object, first: int) -> None:
        """Reentrant checkpointing runs its backward pass through nodes that are made only now."""
        for tensor in tensors_in(output):
            if tensor.grad_fn is not None:
                for node in walk(tensor).nodes:
                    # Nodes that accumulate into leaves, which outlive the call, count from the top.
                    if first <= node._sequence_nr() < 2**63:
                        self.follow(node)

    def _module_of(self, number: int) -> str:
        # The innermost: its call made the fewest nodes.
        around = [(end - first, name) for first, end, name in self._spans if first <= number < end]
        return min(around)[1] if around else f"after {self._root}"


def nonfinite(tensor: Tensor) -> int:
    """How many elements are infinite or NaN. Reads the host."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    return int((~torch.isfinite(as_dense(tensor))).sum())
