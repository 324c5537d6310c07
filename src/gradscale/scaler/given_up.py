"""A step that was begun and given up, noticed when a new backward pass fills the gradients again.

`unscale_`, clipping or `step` divides gradients, then an exception, Ctrl-C or ``continue`` leaves
the loop before `update()`. To take the gradients of the next pass for divided ones would step with
gradients S times too large. What a backward pass changes is seen exactly: each optimizer whose
gradients are divided already is looked at when the pass begins and when it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from gradscale.gradients.master_weights import trained_by

MIXED = "mixed"
"""The entry of a record whose divided gradients a backward pass has added to."""

Record = dict[str, Any]


class Divided(NamedTuple):
    """An optimizer's gradients before a backward pass, of which it expects none any more."""

    key: int
    record: Record
    optimizer: torch.optim.Optimizer
    seen: list[tuple[Tensor, Tensor | None, int]]

    @property
    def touched(self) -> bool:
        """Whether a gradient was made, replaced or added to."""
        return any(p.grad is not g or _version(g) != number for p, g, number in self.seen)

    @property
    def empty(self) -> bool:
        """Whether there was no gradient: `zero_grad()` had begun a new step."""
        return all(gradient is None for _, gradient, _ in self.seen)


def divided(record: Mapping[str, Any]) -> bool:
    """Whether a record's gradients are complete, and a backward pass must leave them alone."""
    return record["stage"] is OptState.UNSCALED and "evaluating" not in record


def before_backward(
    records: Mapping[int, Record],
    optimizer_of: Callable[[int], torch.optim.Optimizer | None],
    after: Callable[[list[Divided]], None],
) -> None:
    """Called as a backward pass begins; calls `after` when it has ended.

    Args:
        records: of the step under way, by `id(optimizer)`.
        optimizer_of: the optimizer of such an id.
        after: is given those whose gradients the pass has touched, if any.
    """
    found: list[Divided] = []
    for key, record in records.items():
        optimizer = optimizer_of(key) if divided(record) else None
        if optimizer is not None:
            seen = [(p, p.grad, _version(p.grad)) for p in trained_by(optimizer)]
            found.append(Divided(key, record, optimizer, seen))

    def ended() -> None:
        touched = [each for each in found if divided(each.record) and each.touched]
        if touched:
            after(touched)

    if found:
        torch.autograd.Variable._execution_engine.queue_callback(ended)


def refuse_mixed(record: Mapping[str, Any], call: str) -> None:
    """Raises if the gradients of an optimizer are partly divided and partly not."""
    if MIXED in record:
        raise RuntimeError(
            f"`{call}(optimizer)`: backward() has added to gradients that `unscale_` or clipping "
            "had divided already, so they are at no scale. Call them after the last backward() of "
            "a step; to give up the step that was begun, call `scaler.abandon()`."
        )


def _version(gradient: Tensor | None) -> int:
    return -1 if gradient is None or gradient.is_inference() else gradient._version
