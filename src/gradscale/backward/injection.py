"""Gradients that a user's function makes itself, multiplied by the loss scale like all others.

A loss scaler multiplies what comes from the loss, and divides everything at the end. What a
backward function *adds* on the way was never multiplied: after the division it is `S` times too
small. With ``f(g) = L g + c`` the node, which sits at the loss scale, must return ``S (L g + c)``
where it returns ``S L g + c``:

    c = 0                  it returns that already
    f(S g) = c             S c: multiplied by a power of two, so exact
    else, in float32       S f(g): the function sees the true gradient, as without a scaler
    else, in half          f(S g) + (S - 1) c, taken in float32: g itself might be flushed
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradscale.backward.graph import Walk
from gradscale.backward.no_trace import Given, LeavesTrace, Returned, call_again, gradients_for
from gradscale.backward.user_functions import function_name
from gradscale.untraced import untraced

_FOUR_BYTES = 4
Refused = Callable[[int, str, str], None]
Produced = Sequence[Tensor | None]


def scale_injected(
    walk: Walk, nodes: Iterable[int], scale: Tensor, refused: Refused
) -> Callable[[], None]:
    """Multiplies by `scale` what these nodes add to the gradient of the loss.

    Call it before `measure` and `rescale`: all hook what a node produces, in the order of the
    calls. Nothing is read by the host.

    Args:
        walk: the graph and its live nodes, which sit at the loss scale.
        nodes: of users' functions.
        scale: the loss scale, one element; read as the pass runs.
        refused: told the node, the function's name, and why it cannot be called once more.

    Returns:
        What takes the hooks away.
    """
    handles: list[Any] = []
    for number in nodes:
        correction = _Correction(scale, number, refused)
        handles.append(walk.nodes[number].register_prehook(correction.before))
        handles.append(walk.nodes[number].register_hook(correction.after))

    @untraced
    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


class _Correction:
    """One node: called with zeros and with the true gradient before it runs, corrected after."""

    def __init__(self, scale: Tensor, number: int, refused: Refused) -> None:
        self._scale = scale
        self._number = number
        self._refused = refused
        self._owed = scale
        self._own: Returned = {}
        self._true: Returned = {}

    @untraced
    def before(self, arrived: Given) -> None:
        self._own, self._true = {}, {}
        node: Any = torch._C._current_autograd_node()  # a hook that held its node would leak it
        self._owed = owed(getattr(node, "_forward_cls", None), self._scale)
        try:
            gradients = [gradients_for(node, arrived, torch.zeros_like)]
            if all(g is None or g.dtype.itemsize >= _FOUR_BYTES for g in arrived):
                gradients.append(gradients_for(node, arrived, self._unscaled))
            self._own, *rest = call_again(node, gradients)
            self._true = rest[0] if rest else {}
        except LeavesTrace as reason:
            self._refused(self._number, function_name(node), str(reason))

    def _unscaled(self, gradient: Tensor) -> Tensor:
        return gradient / self._scale.to(gradient.device, gradient.dtype)

    @untraced
    def after(self, produced: Produced, arrived: Produced) -> Produced | None:
        del arrived
        own, true, self._own, self._true = self._own, self._true, {}, {}
        if not own:
            return None
        corrected = list(produced)
        for output, added in own.items():
            returned = corrected[output]
            if returned is not None:
                corrected[output] = self._corrected(returned, added, true.get(output))
        return tuple(corrected)

    def _corrected(self, returned: Tensor, added: Tensor, true: Tensor | None) -> Tensor:
        wide = torch.promote_types(returned.dtype, torch.float32)
        by = self._owed.to(returned.device, wide)
        alone = added.to(wide) * by
        sum_ = returned.to(wide) + (alone - added.to(wide)) if true is None else true.to(wide) * by
        # Where all of it is its own the product is with a power of two, and exact.
        scaled = torch.where(returned == added, alone, sum_).to(returned.dtype)
        return torch.where((added == 0) | (by == 1), returned, scaled)


def owed(function: Any, scale: Tensor) -> Tensor:
    """By how much a function's own gradient has to be multiplied: the scale, or 1 if it knows it.

    Megatron's functions are told the scale by `set_loss_scale` and multiply by it themselves. What
    they were told is the scale over the number of micro-batches, or one over that number: it lies
    on one or the other side of the scale's square root.

    Args:
        function: the `autograd.Function`, or None.
        scale: the loss scale, one element.

    Returns:
        Shape `()`, float32, on the scale's device.

    Example:
        >>> class Told:
        ...     told = torch.tensor(1024.0)
        ...     set_loss_scale = staticmethod(print)
        >>> owed(Told, torch.tensor(1024.0)), owed(None, torch.tensor(1024.0))
        (tensor(1.), tensor(1024.))
    """
    due = scale = scale.detach().reshape(()).to(torch.float32)
    if callable(getattr(function, "set_loss_scale", None)):
        numbers_ = map(_number, vars(function).values())
        for told in (n for n in numbers_ if n is not None):
            square = told.to(scale.device).square()
            knows = torch.where(scale >= 1, square >= scale, square <= scale)
            due = torch.where(knows, 1.0, due)
    return due


def _number(value: Any) -> Tensor | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().reshape(()).to(torch.float32)
    if isinstance(value, int | float):
        return torch.tensor(float(value), dtype=torch.float32, device="cpu")
    return None
