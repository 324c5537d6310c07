"""Kernels that are replaced while somebody emulates, and put back when nobody does."""

from __future__ import annotations

import threading
import warnings

import torch

from gradscale.emulation.attention_kernel import attention_kernels
from gradscale.emulation.cuda_autocast import autocast_kernels
from gradscale.emulation.recurrent import recurrent_kernels


class Overrides:
    """A counted registration: made by the first `acquire`, undone by the last `release`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._library: torch.library.Library | None = None
        self._fused_attention_layers = True

    def acquire(self) -> None:
        """Register the kernels, if nobody has."""
        with self._lock:
            if self._holders == 0:
                # They are the whole process's: in other threads they behave as those before.
                self._library = _register()
                self._fused_attention_layers = torch.backends.mha.get_fastpath_enabled()
                # nn.TransformerEncoderLayer in one call, whose products no mode would see.
                torch.backends.mha.set_fastpath_enabled(False)
            self._holders += 1

    def release(self) -> None:
        """Put everything back, if nobody else needs it."""
        with self._lock:
            self._holders -= 1
            if self._holders == 0 and self._library is not None:
                self._library._destroy()
                self._library = None
                torch.backends.mha.set_fastpath_enabled(self._fused_attention_layers)


def _register() -> torch.library.Library:
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # torch warns once of any replaced kernel; here that is the intention.
        warnings.simplefilter("ignore")
        for kernel in (*autocast_kernels(), *attention_kernels(), *recurrent_kernels()):
            library.impl(kernel.name, kernel.function, kernel.key, with_keyset=True)
    return library


overrides = Overrides()
