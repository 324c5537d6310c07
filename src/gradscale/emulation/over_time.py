"""Recurrent layers one time step after another, so that each has gradients of its own.

torch projects the inputs of all times in one product. Its gradient is one tensor of all times, so a
plan gives them one exponent, and where they fade over a long sequence loses the earliest.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_WISHES: weakref.WeakSet[object] = weakref.WeakSet()

OneStep = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]]
"""Input ``(1, batch, features)``, states and parameters of one layer: output and states."""


def split_over_time(wisher: object) -> None:
    """From now on, emulated recurrent layers run step by step, as long as `wisher` lives."""
    _WISHES.add(wisher)


def is_split() -> bool:
    """Whether somebody wants every time to be a place of its own."""
    return bool(_WISHES)


def over_time(
    one_step: OneStep,
    input: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    *,
    layers: int,
    directions: int,
    dropout: float,
) -> tuple[Tensor, list[Tensor]]:
    """All layers of a recurrence, time by time.

    The weight gradients of a layer are summed over time in its own dtype, as they are for
    `nn.GRUCell` in a loop. Dropout draws what torch's own layers draw.

    Args:
        one_step: one layer, in one direction, over one time step.
        input: ``(time, batch, features)``.
        states: of all layers, each ``(layers * directions, batch, width)``.
        params: of all layers and directions, one after another.
        layers: how many.
        directions: 1 or 2.
        dropout: between layers; 0 where nothing is trained.

    Returns:
        The output ``(time, batch, directions * width)`` and the last states.
    """
    own = len(params) // (layers * directions)
    times = [each.unsqueeze(0) for each in input.unbind(0)]
    last: list[Sequence[Tensor]] = []
    for layer in range(layers):
        outputs: list[list[Tensor]] = []
        for direction in range(directions):
            number = layer * directions + direction
            # torch's order: layer by layer, in each forwards and then backwards.
            weights = params[number * own : (number + 1) * own]
            state: Sequence[Tensor] = [each[number : number + 1] for each in states]
            found: list[Tensor] = []
            for now in reversed(times) if direction else times:
                output, state = one_step(now, state, weights)
                found.append(output)
            # Back into the order of time, because both directions are joined time by time.
            outputs.append(found[::-1] if direction else found)
            last.append(state)
        both = zip(*outputs, strict=True)
        times = [torch.cat(parts, -1) if directions > 1 else parts[0] for parts in both]
        # As torch's: between layers, not behind the last.
        if dropout and layer < layers - 1:
            times = _dropped(times, dropout)
    ends = [torch.cat(each) for each in zip(*last, strict=True)]
    return torch.cat(times), ends


def _dropped(times: list[Tensor], dropout: float) -> list[Tensor]:
    """Each time masked; the mask is drawn for all of them at once, as torch's own layers do."""
    with torch.no_grad():
        ones = torch.ones_like(torch.cat([time.detach() for time in times]))
        mask = torch.dropout(ones, dropout, True)
    return [time * kept for time, kept in zip(times, mask.split(1), strict=True)]
