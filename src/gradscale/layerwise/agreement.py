"""Whether all ranks measured the same graphs in the same order."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from gradscale.backward.measurements import PassCounts
from gradscale.host_copies import HostCopies
from gradscale.ranks import Ranks, all_ranks, distributed, mesh_groups, reduce_max_

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def rank_groups(process_group: Ranks | None) -> list[ProcessGroup]:
    """The process groups whose ranks need the same plan: the given one, or all ranks; else none."""
    return mesh_groups(process_group or all_ranks()) if distributed() else []


def ranks_of(groups: Iterable[ProcessGroup]) -> int:
    """How many ranks decide together, one dimension of a mesh a group; 1 without groups."""
    return math.prod(group.size() for group in groups)


def merged_over_ranks(
    measurings: Sequence[PassCounts],
    situations: Sequence[object],
    groups: Sequence[ProcessGroup],
    device: torch.device,
) -> bool:
    """Merges the counts of all ranks in place; False, and nothing done, if they differ.

    Args:
        measurings: one for each backward pass of this step.
        situations: for each of them what else its next plan depends on, such as the plan in force;
            anything whose `repr` tells.
        groups: the process groups; a rank without a pass takes part as well.
        device: on which they communicate.
    """
    if not groups:
        return True
    pairs = zip(measurings, situations, strict=True)
    signatures = [f"{measuring.signature} {situation!r}" for measuring, situation in pairs]
    same = same_on_all_ranks(signatures, groups, device)
    if same:
        for measuring in measurings:
            measuring.reduce(groups)
    return same


def on_any_rank(flag: bool, groups: Sequence[ProcessGroup], device: torch.device) -> bool:
    """Whether some rank of `groups` passes True. A collective, and a host read, if there are any.

    Args:
        flag: this rank's.
        groups: the process groups; none if this rank decides alone.
        device: on which they communicate.
    """
    if not groups:
        return flag
    flags = torch.tensor([int(flag)], device=device)
    reduce_max_([flags], groups)
    return bool(flags.item())


Step = TypeVar("Step")


class Wishes(Generic[Step]):
    """Asks at the end of every step whether some rank wants to measure again.

    All ranks must measure the same steps, or they would wait for each other. On an accelerator the
    answer is that of the step before, so that no rank waits for the step it has just launched.
    """

    def __init__(self) -> None:
        self._under_way: deque[tuple[HostCopies[Tensor], Step]] = deque()

    def ask(
        self, wish: bool, flags: Sequence[Tensor], groups: Sequence[ProcessGroup], step: Step
    ) -> tuple[bool, Step | None]:
        """A collective.

        Args:
            wish: whether this rank wants to, for what the host knows.
            flags: float32, above 0 if an optimizer of this rank met a non-finite gradient.
            groups: the process groups.
            step: what this rank knows of the step that ends.

        Returns:
            Whether all ranks measure; and what was passed for the step that is answered for, if
            some rank met a non-finite gradient in it.
        """
        device = flags[0].device if flags else torch.device("cpu")
        wishes = torch.full((), float(wish), device=device)
        for flag in flags:
            met = flag.to(device, torch.float32).reshape(()) > 0
            wishes = torch.maximum(wishes, _MET_NONFINITE * met)
        reduce_max_([wishes], groups)
        if device.type != "cpu":
            self._under_way.append((HostCopies([wishes]), step))
            if len(self._under_way) < 2:
                return False, None
            copies, step = self._under_way.popleft()
            copies.wait()
            (wishes,) = copies.tensors
        answer = wishes.item()
        return answer > 0, step if answer == _MET_NONFINITE else None


_MET_NONFINITE = 2.0
"""More than a wish, so that the largest of all ranks tells it."""


def same_on_all_ranks(
    signatures: Sequence[str], groups: Iterable[ProcessGroup], device: torch.device
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
