"""What was written to a master reaches the model before it computes.

A model is written through its optimizer now and then: weights clamped by way of `param_groups`, an
average swapped into `half.parameters()`, a step that was interrupted before its end. In-place
changes are counted by torch, so that to notice them costs a comparison of integers a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradscale.half.link import link_of, settle_ahead
from gradscale.half.masters import Masters
from gradscale.half.rounding import HALVES
from gradscale.half.under_ddp import check_under_ddp


class Settles:
    """A forward pre-hook of the whole model: masters that were written are copied to it.

    Holds the masters weakly, or a model would keep those of an optimizer that is gone. A copy of a
    model is another one: it looks for the masters of its own parameters, and mostly has none.

    Args:
        masters: those of the model; None to look for them.
        wide: parameters and buffers that stay in float32.
    """

    def __init__(
        self, masters: Iterable[Masters] | None = None, wide: Iterable[Tensor] = ()
    ) -> None:
        self._masters = None if masters is None else [ref(m) for m in masters]
        self._wide = list(wide)
        self._ddp: ref[DistributedDataParallel] | None = None

    def __call__(self, module: nn.Module, args: object) -> None:
        """Before each forward pass; one that is compiled sees the weights of the last step."""
        if torch.compiler.is_compiling():
            return
        if self._masters is None:
            self._masters = _look_up(module)
        alive = [masters for r in self._masters if (masters := r()) is not None]
        ddp = DistributedDataParallel._active_ddp_module
        # Once a wrapper: its ranks meet in this pass, and what it was built for does not change.
        if ddp is not None and (self._ddp is None or self._ddp() is not ddp):
            check_under_ddp(ddp, module, alive)
            self._ddp = ref(ddp)
        for masters in alive:
            for link in masters.links:
                if link.parameter.dtype is not link.format:
                    _refuse(module, link.parameter, link.format)
            settle_ahead(masters.links)
        for tensor in self._wide:
            if tensor.dtype in HALVES:
                _refuse(module, tensor, torch.float32)

    def __deepcopy__(self, memo: object) -> Settles:
        return Settles()

    def __reduce__(self) -> tuple[object, ...]:
        return Settles, ()


def _look_up(model: nn.Module) -> list[ref[Masters]]:
    """The masters of a copy: its optimizer may have been copied with it."""
    links = [link for p in model.parameters() if (link := link_of(p)) is not None]
    owners = {id(owner): owner for link in links if isinstance(owner := link.owner, Masters)}
    for masters in owners.values():
        masters.attach(model)
    return [ref(masters) for masters in owners.values()]


def _refuse(model: nn.Module, tensor: Tensor, dtype: torch.dtype) -> None:
    named = (*model.named_parameters(), *model.named_buffers())
    name = next((name for name, other in named if other is tensor), "a parameter")
    raise RuntimeError(
        f"{name} is {tensor.dtype} and was made {dtype} by `half_precision(model, optimizer)`: "
        "something changed it since, such as `model.float()`, `model.half()` or an assignment to "
        "`.data`. For a float32 model call `half.restore()`, or `half.float_model()` for a copy."
    )
