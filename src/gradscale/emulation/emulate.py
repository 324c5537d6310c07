"""`emulate`: the context in which products round as half and 8-bit hardware does."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import ContextDecorator, contextmanager
from typing import TYPE_CHECKING

import torch

from gradscale.emulation.direction_formats import DirectionFormats
from gradscale.emulation.later_passes import formats_built_in, next_number, remember
from gradscale.emulation.mode import EmulationMode, current_rounding
from gradscale.emulation.overrides import overrides
from gradscale.emulation.rounding import Rounding
from gradscale.formats import FloatFormat

if TYPE_CHECKING:
    from gradscale.emulation.later_passes import Roots


class emulate(ContextDecorator):
    """Products inside round to a format as hardware of that format does, on any machine.

    Every matrix product, convolution and attention, forward and backward:

        result = round(sum over k of round(a[k]) * round(b[k]), accumulated in float32)

    In a forward product both operands are rounded to `forward`. In a backward product the gradient
    is rounded to `backward`, exactly as it stands, at whatever scale it carries, and the saved
    operand to `forward`. Tensors keep their dtype. Under CPU autocast the other operations follow
    CUDA's lists (softmax, norms, sums and losses in float32), so that unmodified
    `torch.autocast("cpu", torch.float16)` code computes what it would on a GPU. Float32 products
    in a disabled autocast region of a model that runs under autocast were asked for and stay as
    they are; without autocast float32 products are rounded like all others.
    Float64, complex and sparse tensors are left alone.

    A backward pass may also run after the block, in the same thread: it rounds in the nodes that
    were built inside, and nowhere else. Keep the optimizer step outside: its products, where it has
    any, would be rounded too.

    It is a dispatch mode, thus local to the thread that enters it (and to the backward passes
    started there); the innermost one counts. While any thread is inside, a few CPU kernels are
    replaced for the whole process by ones that behave as before in all other threads.

    Args:
        forward: the format of forward operands: a dtype, a name such as `"e4m3"`, a `FloatFormat`.
        backward: the format of gradient operands.
        between: the format of results. Default: the direction's own, or float16 if that is
            narrower than 16 bits.

    Raises:
        ValueError: if a format is not known.
        RuntimeError: in a backward product whose gradient operand cannot be told from the saved one
            (only if `forward` and `backward` differ).

    Example:
        >>> a, b = torch.full((1, 2), 300.0), torch.full((2, 1), 300.0)
        >>> with emulate(forward=torch.float16, backward=torch.float16):
        ...     a @ b
        tensor([[inf]])
        >>> a @ b
        tensor([[180000.]])
    """

    def __init__(
        self,
        forward: FloatFormat | torch.dtype | str = torch.float16,
        backward: FloatFormat | torch.dtype | str = torch.float16,
        *,
        between: FloatFormat | torch.dtype | str | None = None,
    ) -> None:
        self.precision = DirectionFormats.of(forward, backward, between)
        self._entered: list[tuple[EmulationMode, Rounding | None, int]] = []

    def _recreate_cm(self) -> emulate:
        again = emulate()
        again.precision = self.precision
        return again

    def __enter__(self) -> DirectionFormats:
        outer = current_rounding()
        mode = EmulationMode(self.precision)
        mode.rounding.silent = getattr(_HERE, "suspended", 0)
        overrides.acquire()
        mode.__enter__()
        if outer is not None:
            outer.silent += 1  # which would else see the products that the inner one runs
        self._entered.append((mode, outer, next_number()))
        return self.precision

    def __exit__(self, *exception: object) -> None:
        mode, outer, first = self._entered.pop()
        if outer is not None:
            outer.silent -= 1
        mode.__exit__(*exception)
        overrides.release()
        if outer is None and not mode.rounding.silent:
            remember(mode, first)


_HERE = threading.local()


@contextmanager
def suspended() -> Generator[None]:
    """Products inside run as they are, in this thread: under an `emulate` outside or inside.

    Example:
        >>> a, b = torch.full((1, 2), 300.0), torch.full((2, 1), 300.0)
        >>> with suspended(), emulate():
        ...     a @ b
        tensor([[180000.]])
    """
    outer = current_rounding()
    _HERE.suspended = getattr(_HERE, "suspended", 0) + 1
    if outer is not None:
        outer.silent += 1
    try:
        yield
    finally:
        _HERE.suspended -= 1
        if outer is not None:
            outer.silent -= 1


def emulating(loss: Roots | None = None) -> DirectionFormats | None:
    """The formats that products round to here and now, or None outside `emulate`.

    Args:
        loss: what a backward pass is about to begin at, a tensor or several: outside `emulate` the
            formats of the block in which its graph was built.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> with emulate(backward="e5m2"):
        ...     loss = (x * x).sum()
        ...     emulating().backward.name
        'e5m2'
        >>> emulating() is None, emulating(loss).backward.name
        (True, 'e5m2')
    """
    rounding = current_rounding()
    if getattr(_HERE, "suspended", 0):
        return None
    if rounding is None:
        return None if loss is None else formats_built_in(loss)
    return rounding.precision
