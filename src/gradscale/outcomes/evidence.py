"""What triage may look at: losses, inputs and left-over gradients of one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

from gradscale.gradients.left_over import LeftOver
from gradscale.outcomes.reach import leaves_of
from gradscale.outcomes.triage import Reason
from gradscale.ranks import Ranks, distributed, mesh_groups, reduce_max_

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Blame(NamedTuple):
    """What a flag comes from, as flags of its shape, alike on all ranks.

    Attributes:
        scaling: the flag as far as the scale is to blame.
        loss: above 0 where a loss was not finite; None if nobody needed to know.
        stale: above 0 where gradients were not finite before the backward pass; None if none were
            there.
    """

    scaling: Tensor
    loss: Tensor | None = None
    stale: Tensor | None = None

    @property
    def reason(self) -> Reason:
        """In a word. Reads the host."""
        if self.scaling.item():
            return "overflow"
        loss, stale = (flag is not None and flag.item() > 0 for flag in (self.loss, self.stale))
        return "nonfinite_gradient" if stale and not loss else "nonfinite_loss"


class Evidence:
    """What triage may look at, and which of it does not depend on the scale.

    A non-finite loss speaks of bad data only if it would be so at any scale. A loss that follows a
    scaled tensor which was differentiated with `create_graph` may hold scaled gradients itself:
    torch's recipe for gradient penalties makes such ones. The tensor that was differentiated was
    there before the scale was, and bears witness.

    Args:
        names: of parameters, by id.
        depends: see below.
        learn: adds to `names` those of parameters that nobody has named, as far as they have any.

    Attributes:
        depends: whether losses are known to depend on the scale: 1, 0, or -1 to go by what is seen;
            a tensor where only the device knows.
        losses: as they were given to `scale`.
        inputs: what was given beside them.
        graphs: of each loss, where its backward pass begins.
        left_over: of gradients that outlived a skipped step, by `id(optimizer)`.
    """

    # What few steps have is of the class: one of these is made in every step.
    left_over: Mapping[int, LeftOver] = MappingProxyType({})
    _first_inner: int | None = None
    _inner: frozenset[int] = frozenset()

    def __init__(
        self,
        names: Mapping[int, str],
        depends: Tensor | int = -1,
        learn: Callable[[Sequence[Tensor]], object] = len,
    ) -> None:
        self.names = names
        self.learn = learn
        self.losses: list[Tensor] = []
        self.inputs: list[object] = []
        self.graphs: list[Node | None] = []
        self.depends = depends
        self._below: list[frozenset[int] | None] = []

    def note_loss(self, output: Tensor) -> int:
        """Keeps a loss as it was; of a large one, only a NaN if it was not finite.

        Returns:
            Its number.
        """
        loss = output.detach()
        # 0 times infinity is NaN, as 0 times NaN is; everything else adds a zero.
        self.losses.append(loss if loss.numel() == 1 else (loss * 0).sum())
        self.graphs.append(output.grad_fn)
        return len(self.losses) - 1

    def note_inner(self, number: int) -> None:
        """A loss was differentiated in a way that lets the gradient be differentiated again."""
        self._inner |= {number}
        if self._first_inner is None:
            self._first_inner = len(self.losses)

    def forget(self, losses: int, inputs: int) -> None:
        """Forgets the first ones, which belong to a step that was given up."""
        del self.losses[:losses], self.graphs[:losses], self.inputs[:inputs]
        del self._below[:losses]
        self._inner = frozenset(n - losses for n in self._inner if n >= losses)
        if self._first_inner is not None:
            self._first_inner = max(0, self._first_inner - losses)

    def bears_witness(self, number: int) -> bool:
        """Whether this loss says something that does not depend on the scale."""
        depends = int(self.depends)
        return not depends if depends >= 0 else self._seems_a_witness(number)

    def _seems_a_witness(self, number: int) -> bool:
        first = self._first_inner
        return first is None or number < first or number in self._inner

    def of(self, parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The losses that these parameters' gradients come from, as far as that can be known.

        Args:
            parameters: those of one optimizer.

        Returns:
            Those that bear witness, and those that may depend on the scale.
        """
        numbers = self.reaching(parameters)
        witnesses = [self.losses[n] for n in numbers if self.bears_witness(n)]
        return witnesses, [self.losses[n] for n in numbers if not self.bears_witness(n)]

    def reaching(self, parameters: Sequence[Tensor]) -> Sequence[int]:
        """The numbers of the losses whose graphs lead to a parameter; all where that is hidden."""
        everyone = range(len(self.losses))
        if len(everyone) < 2:
            return everyone
        wanted, below = {id(p) for p in parameters}, self._leaves_below()
        if any(leaves is None for leaves in below):
            return everyone
        found = [n for n in everyone if not wanted.isdisjoint(below[n] or ())]
        # None leads there: the gradient came another way, by hand or from a graph that is gone.
        return found or everyone

    def _leaves_below(self) -> list[frozenset[int] | None]:
        """The ids of the leaves of each loss; None where some are hidden. Every graph is walked.

        Nothing less tells that a loss leads where the one before it did. Only steps of several
        losses ask, once for all optimizers.
        """
        for graph in self.graphs[len(self._below) :]:
            leaves = leaves_of(graph)
            self._below.append(None if leaves is None else frozenset(map(id, leaves)))
        return self._below

    def blame(
        self,
        found_inf: Tensor,
        process_group: Ranks | None,
        numbers: Sequence[int] | None = None,
        stale: Tensor | None = None,
    ) -> Blame | None:
        """What is to blame for a flag; nothing is read on the host.

        Agreed on over `process_group`, because all ranks must blame the same thing; with several
        ranks and no group nobody can tell.

        Args:
            found_inf: the flag, float32 0-d, 0 or 1.
            process_group: the ranks that must agree, or None.
            numbers: of the losses that count; None for all of them.
            stale: above 0 if gradients were not finite before the backward pass; None if there
                were none.

        Returns:
            None if nobody can tell.
        """
        numbers = range(len(self.losses)) if numbers is None else numbers
        groups = mesh_groups(process_group) if distributed() else []
        # A stage of a pipeline has no loss, and takes part: another rank has one.
        if not (groups or ((numbers or stale is not None) and not distributed())):
            return None
        witnesses = [n for n in numbers if self._seems_a_witness(n)]
        if not isinstance(self.depends, Tensor):
            witnesses = [n for n in numbers if self.bears_witness(n)]
        scaling = self._spared(found_inf, witnesses)
        every = scaling if len(witnesses) == len(numbers) else None
        loss: Tensor | None = None
        if isinstance(self.depends, Tensor):
            if every is None:
                every = self._spared(found_inf, numbers)
                scaling = torch.where(self.depends == 0, every, scaling)
            scaling = torch.where(self.depends > 0, found_inf, scaling)
            loss = found_inf - every
        if stale is not None:
            scaling = torch.where(stale > 0, 0.0, scaling)
        blame = Blame(scaling, loss, stale)
        return _agreed(found_inf, blame, groups) if groups else blame

    def _spared(self, found_inf: Tensor, numbers: Sequence[int]) -> Tensor:
        """The flag, or 0 if one of these losses was not finite; in as few launches as there are."""
        if not numbers:
            return found_inf
        flag = found_inf
        for number in numbers:
            loss = self.losses[number].reshape(()).to(found_inf.device, non_blocking=True)
            flag = flag + (loss - loss)  # a loss less itself is 0, or NaN
        return flag.to(torch.float32).nan_to_num(nan=0.0)


def _agreed(found_inf: Tensor, blame: Blame, groups: Sequence[ProcessGroup]) -> Blame:
    """What some rank blames all ranks blame: one collective for each group."""
    none = torch.zeros_like(found_inf)
    other = found_inf - blame.scaling, blame.loss, blame.stale
    # One tensor of three, so that a group makes one collective.
    bad = torch.stack([none if flag is None else flag.to(found_inf) for flag in other])
    reduce_max_([bad], groups)
    not_scaling, loss, stale = bad.unbind()
    return Blame((found_inf - not_scaling).clamp(min=0.0), loss, stale)
