"""Whether all ranks measured the same graphs in the same order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from gradscale.backward.measure import Measuring
from gradscale.ranks import distributed, mesh_groups, reduce_max_


def rank_groups(process_group: Any) -> list[Any]:
    """The process groups whose ranks need the same plan: the given one, or all ranks; else none."""
    if not distributed():
        return []
    return mesh_groups(process_group) or [torch.distributed.group.WORLD]


def reduced(measurings: Sequence[Measuring], groups: Sequence[Any], device: torch.device) -> bool:
    """Merges the counts of all ranks in place; False, and nothing done, if their graphs differ."""
    if not groups:
        return True
    signatures = [measuring.signature for measuring in measurings]
    same = same_on_all_ranks(signatures, groups, device)
    if same:
        for measuring in measurings:
            measuring.reduce(groups)
    return same


def same_on_all_ranks(
    signatures: Sequence[str], groups: Iterable[Any], device: torch.device
) -> bool:
    """Whether every rank of `groups` passes the same signatures. A collective; reads the host.

    Args:
        signatures: of the graphs measured in this step, in order.
        groups: the process groups.
        device: on which they communicate.
    """
    digest = hashlib.blake2b("\n".join(signatures).encode(), digest_size=6).digest()
    number = int.from_bytes(digest, "big")
    # The largest of x and of -x over all ranks agree with x only if all x are equal.
    both = torch.tensor([number, -number], dtype=torch.int64, device=device)
    reduce_max_([both], groups)
    largest, negated = both.tolist()
    return largest == -negated
