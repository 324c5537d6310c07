"""A few yes-or-no answers about places, on the device until they are fetched together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradscale.host_copies import HostCopies
from gradscale.ranks import reduce_max_

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Flags:
    """0-d tensors by the index of a place, brought to the host with one copy a device.

    Example:
        >>> flags = Flags()
        >>> flags.add(3, torch.tensor(True))
        >>> flags.add(5, torch.tensor(False))
        >>> flags.fetch()
        >>> flags.raised()
        {3}
    """

    def __init__(self) -> None:
        self._flags: dict[int, Tensor] = {}
        self._indices: list[tuple[int, ...]] = []
        self._copies = HostCopies[Tensor]([])

    def add(self, index: int, flag: Tensor) -> None:
        """Of a place; a second one must be up as well."""
        known = self._flags.get(index)
        self._flags[index] = flag if known is None else known & flag

    @property
    def signature(self) -> tuple[int, ...]:
        """What must be equal on ranks that agree on them."""
        return tuple(sorted(self._flags))

    def reduce(self, groups: Sequence[ProcessGroup]) -> None:
        """Leaves those up that are up on all ranks. A collective."""
        for indices, flags in self._stacked():
            # Up on all ranks is down on none: a maximum, in a dtype that every backend reduces.
            down = (~flags).to(torch.int32)
            reduce_max_([down], groups)
            self._flags.update(zip(indices, (down == 0).unbind(), strict=True))

    def fetch(self) -> None:
        """They start on their way to the host."""
        stacked = self._stacked()
        self._indices = [indices for indices, _ in stacked]
        # One copy a device: each on its own would be a transfer for every parameter.
        self._copies = HostCopies([flags for _, flags in stacked])

    @property
    def arrived(self) -> bool:
        """Whether `raised` need not wait."""
        return self._copies.arrived

    def raised(self) -> set[int]:
        """Those that are up; waits for them."""
        self._copies.wait()
        return {
            index
            for indices, flags in zip(self._indices, self._copies.tensors, strict=True)
            for index, flag in zip(indices, flags.tolist(), strict=True)
            if flag
        }

    def _stacked(self) -> list[tuple[tuple[int, ...], Tensor]]:
        # In the order of the places, so that all ranks reduce them alike.
        by_device: dict[torch.device, list[int]] = {}
        for index in sorted(self._flags):
            by_device.setdefault(self._flags[index].device, []).append(index)
        return [
            (tuple(indices), torch.stack([self._flags[index] for index in indices]))
            for indices in by_device.values()
        ]
