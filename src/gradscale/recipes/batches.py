"""Which items make up a step: pure functions of a seed and a step number."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator whose numbers depend on `seed` and `step` only.

    Example:
        >>> torch.equal(
        ...     torch.rand(3, generator=generator(0, 5)), torch.rand(3, generator=generator(0, 5))
        ... )
        True
    """
    # A prime above the steps of any run keeps (seed, step) pairs apart; torch mixes the bits.
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


# A step may lie in two epochs, and a comparison takes turns between a few seeds.
@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, epoch))


def shuffled(count: int, *, seed: int, step: int, size: int) -> Tensor:
    """The items of step `step`, walking through a new permutation of all items every epoch.

    Args:
        count: how many items there are.
        seed: chooses the permutations.
        step: the step, from 0; steps follow each other without a gap, across epochs.
        size: items a step.

    Returns:
        int64 indices, shape `(size,)`.

    Example:
        >>> steps = [shuffled(6, seed=0, step=step, size=2) for step in range(3)]
        >>> sorted(torch.cat(steps).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    # Across epochs without a gap: a last batch that is smaller would have other gradients.
    first = step * size
    epochs = range(first // count, (first + size - 1) // count + 1)
    order = torch.cat([_order(count, seed, epoch) for epoch in epochs])
    start = first - epochs[0] * count
    return order[start : start + size]


def windows(length: int, *, seed: int, step: int, size: int, width: int) -> Tensor:
    """Positions of `size` random stretches of `width` successive items, shape `(size, width)`.

    Example:
        >>> windows(100, seed=0, step=0, size=2, width=3).diff(dim=1).tolist()
        [[1, 1], [1, 1]]
    """
    starts = torch.randint(0, length - width + 1, (size, 1), generator=generator(seed, step))
    return starts + torch.arange(width)
