"""Every random number generator that a model may draw from, as it stands."""

from __future__ import annotations

import random
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType

import torch


class RandomState:
    """The state of torch's generators on all devices, of Python's, and of NumPy's if it is loaded.

    Example:
        >>> state = RandomState()
        >>> first = torch.rand(3)
        >>> state.restore()
        >>> torch.equal(torch.rand(3), first)
        True
    """

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._devices = [
            (device, index, device.get_rng_state(index)) for device, index in _device_generators()
        ]
        self._python = random.getstate()
        # Never imported for this: who has not loaded it draws nothing from it.
        numpy = sys.modules.get("numpy")
        self._numpy: object = None if numpy is None else numpy.random.get_state()

    def restore(self) -> None:
        """Brings all generators back to where they were."""
        torch.set_rng_state(self._cpu)
        for device, index, state in self._devices:
            device.set_rng_state(state, index)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def _device_generators() -> list[tuple[ModuleType, int]]:
    """The module of the accelerator and the index of each of its devices, once it is in use."""
    if not torch.accelerator.is_available():
        return []
    module = torch.get_device_module(torch.accelerator.current_accelerator())
    started = getattr(module, "is_initialized", lambda: True)()
    return [(module, index) for index in range(module.device_count())] if started else []


@contextmanager
def same_random_numbers() -> Generator[RandomState]:
    """What is drawn inside is drawn again afterwards."""
    state = RandomState()
    try:
        yield state
    finally:
        state.restore()
