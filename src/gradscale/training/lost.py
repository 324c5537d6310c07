"""The lost share: which gradients a half-precision backward pass rounded to zero.

After such a pass the lost values are already zeros, so they are found by comparison: the same
batch, weights and random numbers once more in float32, on a copy of the model. An element is
*flushed* if it is non-zero there and zero here. For an 8-bit backward pass the float16 gradients
between products are rounded to the format first, as every product does with its gradient operand.

The comparison also counts the few elements that a rounded activation moved across a kink (ReLU):
its floor is what float16 shows at a scale that flushes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscale.formats import FloatFormat

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Lost:
    """How many gradient elements were compared, and how many of them were flushed."""

    nonzero: int = 0
    flushed: int = 0

    def __add__(self, other: Lost) -> Lost:
        return Lost(self.nonzero + other.nonzero, self.flushed + other.flushed)

    @property
    def share(self) -> float | None:
        """`flushed / nonzero`; None if nothing could be compared."""
        return self.flushed / self.nonzero if self.nonzero else None


@contextmanager
def capturing(model: nn.Module) -> Generator[Gradients]:
    """Collect the gradients of all leaf modules' outputs from the backward passes inside."""
    found: Gradients = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for index, tensor in enumerate(_tensors(output)):
                if tensor.requires_grad:
                    tensor.register_hook(_keep(found, f"{name}.{index}"))

        return hook

    leaves = {
        name: module
        for name, module in model.named_modules()
        if not any(True for _ in module.children()) and not isinstance(module, nn.Identity)
    }
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _keep(found: Gradients, name: str) -> Callable[[Tensor], None]:
    def hook(grad: Tensor) -> None:
        found[name] = grad

    return hook


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


def parameter_gradients(model: nn.Module) -> Gradients:
    """The gradients of all parameters that have one."""
    grads = ((f"{name}:grad", parameter.grad) for name, parameter in model.named_parameters())
    return {name: grad for name, grad in grads if grad is not None}


def reference(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Gradients:
    """The float32 gradients of `loss`, on a copy: `model` and its buffers stay as they are."""
    twin = copy.deepcopy(model)
    twin.zero_grad(set_to_none=True)
    with capturing(twin) as found:
        loss(twin).backward()
    return found | parameter_gradients(twin)


def compare(true: Gradients, stored: Gradients, format: FloatFormat) -> Lost:
    """Count what is non-zero in `true` and zero in `stored`.

    Args:
        true: float32 gradients, from `reference`.
        stored: the half-precision pass's, at whatever scale, under the same names.
        format: what the backward products round their gradients to.

    Returns:
        The counts over all names; a tensor with a non-finite element on either side is left out.

    Example:
        >>> true, stored = torch.tensor([1.0, 1e-9, 0.0]), torch.tensor([1.0, 0.0, 0.0])
        >>> compare({"x": true}, {"x": stored}, FloatFormat.of("fp16")).share
        0.5
    """
    total = Lost()
    for name in true.keys() & stored.keys():
        reference, half = true[name], stored[name]
        if not (torch.isfinite(reference).all() and torch.isfinite(half).all()):
            continue
        if half.dtype == torch.float16:
            half = format.round(half)
        nonzero = reference != 0
        flushed = nonzero & (half == 0)
        total += Lost(int(nonzero.sum()), int(flushed.sum()))
    return total
