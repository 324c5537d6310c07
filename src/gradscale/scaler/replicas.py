"""Replicas that have parted: noticed and said, without a collective."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gradscale.callers import level_of_caller
from gradscale.host_copies import HostCopies
from gradscale.ranks import NoteStore, default_store, distributed

EVERY = 100
"""Updates between two digests, the first of which follows the first update. Half way between them
they are compared: by then every rank has sent its own, since replicas are never further apart than
the reduction of one step."""

ATTEMPTS = 2
"""Digests in which a rank may find its like; one that has not is no replica, and asks no more."""

_numbers = itertools.count()
_PLAIN = (Tensor, torch.nn.Parameter)


class Digest(NamedTuple):
    """What one rank has decided so far, small enough to be sent.

    Attributes:
        rank: whose.
        update: how many updates it speaks of.
        scale: the loss scale after them.
        tracker: its growth tracker.
        skipped: steps skipped; None where the host does not know yet.
        sample: extremes of one weight and of its gradient, by which replicas know each other.
    """

    rank: int
    update: int
    scale: float
    tracker: float
    skipped: int | None
    sample: tuple[float, ...]

    def parted_from(self, other: Digest) -> bool:
        """Whether the two decided differently."""
        known = self.skipped is not None and other.skipped is not None
        scales = (self.scale, self.tracker) != (other.scale, other.tracker)
        return scales or (known and self.skipped != other.skipped)


class Replicas:
    """Compares this rank's decisions with those of its like, by notes in the process group's store.

    A data-parallel rank that steps where another one skips trains a network of its own from then
    on. A scaler that was given no process group cannot ask the others, and must not: who knows
    whether they would answer? So each rank leaves a note where all ranks find it, and reads one
    note of another, a hundred updates at a time; nobody waits for anybody.

    Which ranks are replicas of each other nobody tells a scaler. Those are that hold the same
    weight and the same gradient, bit for bit, after the same update: ranks that train different
    networks, or the same one on data of their own, do not.
    """

    def __init__(self) -> None:
        # Scalers that are made in the same order on every rank have the same number there.
        self._number = next(_numbers)
        self._under_way: tuple[int, int | None, HostCopies[Tensor]] | None = None
        self._mine: Digest | None = None
        self._leader: int | None = None
        self._alike = 0
        self._attempts = 0
        self._warned = False

    def look(
        self,
        update: int,
        scale: Tensor,
        tracker: Tensor,
        skipped: int | None,
        parameters: Iterable[Tensor],
    ) -> None:
        """Leaves a note, or reads one.

        Args:
            update: how many updates there were.
            scale: the loss scale.
            tracker: its growth tracker.
            skipped: steps skipped so far, as far as the host knows.
            parameters: of the optimizers that stepped.
        """
        if self._warned or not distributed() or self._without_like:
            return
        store = default_store()
        if store is None:
            return
        try:
            self._send(store)
            if update % EVERY == 0 or update == 1:
                sample = sample_of(parameters)
                if sample is not None:
                    values = torch.stack([scale.float(), tracker.float(), *sample])
                    self._under_way = (update, skipped, HostCopies([values]))
                    self._send(store)
            else:
                self._compare(store)
        except (RuntimeError, ValueError):  # the store is gone: whoever ended it ends the run, too
            self._warned = True

    @property
    def _without_like(self) -> bool:
        return self._leader is None and self._attempts >= ATTEMPTS

    def _send(self, store: NoteStore) -> None:
        """Leaves the note whose numbers have arrived."""
        if self._under_way is None or not self._under_way[2].arrived:
            return
        update, skipped, copies = self._under_way
        scale, tracker, *sample = copies.tensors[0].tolist()
        rank = dist.get_rank()
        self._under_way = None
        self._mine = Digest(rank, update, scale, tracker, skipped, tuple(sample))
        if self._leader is None:
            self._attempts += 1
            self._find_like(store, self._mine)
        if self._leader == rank:
            store.set(self._key("digest", rank), json.dumps(self._mine))

    def _find_like(self, store: NoteStore, mine: Digest) -> None:
        """The first rank that arrives with this sample leads those with the same one."""
        name = "/".join(map(str, ("like", mine.update, *mine[2:4], *mine.sample)))
        first = store.compare_set(self._key(name, 0), "", str(mine.rank))
        self._leader = int(first)
        self._alike = mine.update

    def _compare(self, store: NoteStore) -> None:
        mine, leader = self._mine, self._leader
        if mine is None or leader is None:
            return
        told = self._key("parted", leader)
        if mine.rank == leader:
            if store.check([told]):
                self._warn(store.get(told).decode())
            return
        key = self._key("digest", leader)
        if not store.check([key]):
            return
        rank, update, scale, tracker, skipped, sample = json.loads(store.get(key))
        theirs = Digest(rank, update, scale, tracker, skipped, tuple(sample))
        if theirs.update != mine.update:  # it is ahead, or behind: another time
            return
        if mine.parted_from(theirs):
            message = _message(mine, theirs, self._alike)
            store.set(told, message)
            self._warn(message)
        else:
            self._alike = mine.update

    def _warn(self, message: str) -> None:
        self._warned = True
        warnings.warn(message, stacklevel=level_of_caller())

    def _key(self, kind: str, rank: int) -> str:
        return f"gradscale/{self._number}/{kind}/{rank}"

    def __reduce__(self) -> tuple[type[Replicas], tuple[()]]:
        return Replicas, ()  # a copy of a scaler is another one


def sample_of(parameters: Iterable[Tensor]) -> tuple[Tensor, ...] | None:
    """Extremes of the first weight that has a gradient, and of that gradient; None if none has.

    Extremes rather than sums, because they are the same bits in whatever order a device takes
    them.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None or not gradient.numel() or not gradient.is_floating_point():
            continue
        if type(parameter) not in _PLAIN or gradient.layout is not torch.strided:
            return None  # shards differ from rank to rank, and bring a group along
        pair = (parameter.detach(), gradient.detach())
        return tuple(it.float() for tensor in pair for it in tensor.aminmax())
    return None


def _message(mine: Digest, theirs: Digest, alike: int) -> str:
    def said(digest: Digest) -> str:
        skipped = "" if digest.skipped is None else f", {digest.skipped} skipped"
        return f"rank {digest.rank} is at scale {digest.scale:g}{skipped}"

    return (
        f"`update()`: replicas have parted. After {mine.update} updates {said(theirs)}, and "
        f"{said(mine)}, though they had the same weights and gradients before, and agreed after "
        f"update {alike}. One of them stepped where the other skipped: they train two networks. Go "
        "back to a checkpoint from then, and pass `GradScaler(process_group=dist.group.WORLD)`, "
        "with which all ranks decide alike."
    )
