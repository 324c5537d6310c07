"""A step that the device takes or leaves by itself: computed always, kept only if it was good.

    copy parameters and state;  optimizer.step();  x = where(found_inf, copy, x)

Exact: after a step that is left, parameters, moments and step counters are the same bits as before.
It costs one more copy of parameters and state, and a pass to read and write each of them; fused
optimizers do it for nothing. What an optimizer keeps on the host cannot be taken back this way.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gradscale.gradients.unscale import tensor_values

_TAKEN = "_gradscale_taken"


@contextmanager
def selected(optimizer: torch.optim.Optimizer, found_inf: Tensor) -> Generator[None, None, None]:
    """For one step: what it changed is taken back on the device if `found_inf` is set.

    The first step, in which an optimizer makes its state, is the exception: what there was before
    is no tensor, so the host decides, with one read.

    Args:
        optimizer: whose `step` is called within.
        found_inf: float32 0-d; nothing of it is read on the host.

    Raises:
        ValueError: if the optimizer keeps a number on the host, or a tensor on another device.
    """
    changing = [tensor_values(tensor.detach()) for tensor in _tensors(optimizer, found_inf)]
    before = [(tensor, tensor.clone()) for tensor in changing]
    numbers = _numbers(optimizer)
    with torch.no_grad():
        yield
        if _numbers(optimizer) != numbers:
            raise ValueError(
                f"`GradScaler(sync_free=True)`: {type(optimizer).__name__} counts on the host, "
                "where a step that the device skips cannot be taken back. Pass `sync_free=False`."
            )
        skipped = found_inf > 0
        for tensor, old in before:
            flag = skipped.to(device=tensor.device, non_blocking=True)
            torch.where(flag, old, tensor, out=tensor)


def prepared(optimizer: torch.optim.Optimizer) -> bool:
    """Whether what a step will change is there already, so that the device can skip it.

    It is if every parameter with a gradient has its state, or took part in a step that `mark_taken`
    was told of: an optimizer that made no state then needs none.
    """
    taken: set[int] = optimizer.__dict__.get(_TAKEN, set())
    return all(
        id(parameter) in taken or _complete(optimizer.state.get(parameter))
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    )


def mark_taken(optimizer: torch.optim.Optimizer) -> None:
    """Notes that the parameters that have a gradient now have been stepped."""
    taken: set[int] = optimizer.__dict__.setdefault(_TAKEN, set())
    taken.update(id(p) for g in optimizer.param_groups for p in g["params"] if p.grad is not None)


def _complete(state: Mapping[str, Any] | None) -> bool:
    return bool(state) and all(value is not None for value in state.values())


def _tensors(optimizer: torch.optim.Optimizer, found_inf: Tensor) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            yield parameter
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    if value.device != parameter.device and found_inf.device.type != "cpu":
                        raise ValueError(
                            f"`GradScaler(sync_free=True)`: {type(optimizer).__name__} keeps "
                            f"`{name}` on {value.device}, which would have to wait for "
                            f"{parameter.device}. Build it with `capturable=True` or `fused=True`."
                        )
                    yield value


def _numbers(optimizer: torch.optim.Optimizer) -> list[Any]:
    """What an optimizer keeps on the host: numbers in its state and in its groups."""
    kept: list[Any] = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, int | float)
    ]
    for group in optimizer.param_groups:
        kept += [value for value in group.values() if isinstance(value, int | float)]
    return kept
