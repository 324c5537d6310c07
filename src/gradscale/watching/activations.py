"""Counts the outputs of a model's modules in the forward passes of measuring steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradscale.backward.measure_counts import count_into
from gradscale.backward.measure_places import format_name
from gradscale.backward.measure_rows import empty_counts, reduce_rows_
from gradscale.backward.measurements import unscaled_counts
from gradscale.backward.names import WRAPPERS
from gradscale.backward.running_pass import current_pass
from gradscale.backward.structure import REENTRANT
from gradscale.emulation.passes import in_autograd_node
from gradscale.host_copies import HostCopies
from gradscale.nested_tensors import tensors_in
from gradscale.watching.sights import Order, Sight, StoredAs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Activations:
    """Hooks on a model's modules, silent except where they are asked to count.

    A module that only returns what its last part returned has no row of its own. What a checkpoint
    recomputes is not counted again; where a reentrant one runs its forward pass without gradients,
    it is the recomputation that counts. Passes without gradients, as for validation, do not count.
    Compiled blocks are seen from outside: their output has a row, what is inside has none.

    Args:
        model: whose modules.
        wanted: whether a forward pass that runs now is to be counted.
    """

    def __init__(self, model: nn.Module, wanted: Callable[[], bool]) -> None:
        self._wanted = wanted
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._taken = Taken()

    def start(self) -> None:
        """Puts the hooks on."""
        for name, module in _visible(self._model):
            plain = name or type(module).__name__
            self._handles.append(module.register_forward_hook(self._hook(plain)))

    def stop(self) -> None:
        """Takes them off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take(self) -> Taken:
        """What was counted since this was last asked; on the device."""
        taken, self._taken = self._taken, Taken()
        return taken

    def _hook(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            del module, args
            # While Dynamo traces, counting would become a part of the compiled code.
            if torch.compiler.is_compiling() or not self._wanted():
                return
            # A forward pass inside of a backward pass is checkpointing's.
            recomputed = current_pass() >= 0
            if not recomputed:
                # Without gradients, too: the first pass of a reentrant checkpoint knows the order.
                self._taken.pass_through(name)
            if torch.is_grad_enabled() and (not recomputed or _in_reentrant()):
                for tensor in tensors_in(output):
                    self._taken.count(name, tensor)

        return hook


class Taken:
    """Counted outputs, by module and format; rows on the device until asked for."""

    def __init__(self) -> None:
        self._order: dict[str, int] = {}
        self._rows: dict[tuple[str, str], Tensor] = {}
        self._last: tuple[weakref.ref[Tensor], int] | None = None
        self._copies = HostCopies[Tensor]([])

    def __bool__(self) -> bool:
        return bool(self._rows)

    def pass_through(self, name: str) -> None:
        """A module ran, in forward order."""
        self._order.setdefault(name, len(self._order))

    def count(self, name: str, tensor: Tensor) -> None:
        """A module returned a tensor."""
        if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
            return
        # A module that returns what its last part returned has counted there already; the version
        # tells whether something was done to it in place since.
        last, self._last = self._last, (weakref.ref(tensor), tensor._version)
        if last is not None and last[0]() is tensor and last[1] == tensor._version:
            return
        key = name, format_name(tensor.dtype)
        with torch.no_grad():
            if key not in self._rows:
                self._rows[key] = empty_counts(1, tensor.device)[0]
            # The tie at half the smallest subnormal, a power of two, goes to zero: where a format
            # still holds what narrower ones flush, an octave therefore includes its upper end.
            count_into(self._rows[key], tensor, ceil=key[1] in ("fp32", "bf16"))

    @property
    def signature(self) -> tuple[tuple[str, str], ...]:
        """What must be equal on ranks that add up their counts."""
        return tuple(self._rows)

    def reduce(self, groups: Sequence[ProcessGroup]) -> None:
        """Adds up the counts of all ranks, in place on the device."""
        for row in self._rows.values():
            reduce_rows_(row[None], groups)

    def fetch(self) -> None:
        """Begins to copy the counts to the host."""
        self._copies = HostCopies(list(self._rows.values()))

    @property
    def arrived(self) -> bool:
        """Whether `sights` need not wait."""
        return self._copies.arrived

    def sights(self) -> Iterator[Sight]:
        """What was seen by `fetch`, in forward order; waits for the counts to arrive."""
        self._copies.wait()
        for (name, format), row in zip(self._rows, self._copies.tensors, strict=True):
            (counts,) = unscaled_counts(row[None], [(1.0, 0)])
            order: Order = (self._order.get(name, len(self._order)),)
            part = StoredAs(format, None, 0)
            broken = order if counts.nonfinite else None
            yield Sight(f"{name} (output)", "activation", order, {part: counts}, broken)


def _visible(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that run as Python calls: a compiled one hides what is inside."""
    # Not `named_modules()`, which goes on into compiled ones.
    ahead: list[tuple[str, nn.Module]] = [("", model)]
    seen: set[int] = set()
    while ahead:
        name, module = ahead.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        compiled = hasattr(module, "_orig_mod")
        if getattr(module, "_compiled_call_impl", None) is not None and not compiled:
            continue  # `module.compile()`: a hook would be a part of the compiled code
        yield name, module
        if not compiled:
            children = [(_joined(name, own), child) for own, child in module.named_children()]
            ahead += reversed(children)


def _joined(name: str, own: str) -> str:
    return name if own in WRAPPERS else f"{name}.{own}".lstrip(".")


def _in_reentrant() -> bool:
    return in_autograd_node() and torch._C._current_autograd_node().name() == REENTRANT
