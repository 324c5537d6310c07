"""The largest activation of the float32 pass: what a narrower format must be able to hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from gradscale.backward.names import plain_modules
from gradscale.formats import FloatFormat
from gradscale.nested_tensors import tensors_in


@dataclass
class Largest:
    """The largest finite magnitude among all modules' outputs, and whose it is."""

    amax: float = 0.0
    module: str = ""

    def headroom(self, format: FloatFormat) -> float:
        """Octaves between it and the format's largest number; negative if it does not fit."""
        return math.inf if self.amax == 0 else math.log2(format.max) - math.log2(self.amax)


@contextmanager
def largest_activation(model: nn.Module, largest: Largest) -> Generator[None]:
    """Keeps the largest activation of the forward passes inside in `largest`.

    Example:
        >>> model, largest = nn.Sequential(nn.Identity()), Largest()
        >>> with largest_activation(model, largest):
        ...     _ = model(torch.tensor([3.0, -8.0]))
        >>> largest
        Largest(amax=8.0, module='0')
    """

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            del module, args
            for tensor in tensors_in(output):
                if tensor.is_floating_point() and tensor.numel():
                    size = float(tensor.detach().abs().nan_to_num(0.0, 0.0, 0.0).max())
                    if size > largest.amax:
                        largest.amax, largest.module = size, name

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in plain_modules(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
