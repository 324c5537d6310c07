"""What triage may look at: losses, inputs and left-over gradients of one step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor
from torch.autograd.graph import Node

from gradscale.gradients.left_over import LeftOver
from gradscale.ranks import Ranks, distributed, mesh_groups, reduce_max_


class Evidence:
    """What triage may look at, and which of it does not depend on the scale.

    A non-finite loss speaks of bad data only if it would be so at any scale. A loss that follows a
    scaled tensor which was differentiated with `create_graph` may hold scaled gradients itself:
    torch's recipe for gradient penalties makes such ones. The tensor that was differentiated was
    there before the scale was, and bears witness.

    Args:
        names: of parameters, by id.
        depends: whether losses are known to depend on the scale; None to go by what is seen.
        learn: adds to `names` those of parameters that nobody has named, as far as they have any.

    Attributes:
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
        depends: bool | None = None,
        learn: Callable[[Sequence[Tensor]], object] = len,
    ) -> None:
        self.names = names
        self.learn = learn
        self.losses: list[Tensor] = []
        self.inputs: list[object] = []
        self.graphs: list[Node | None] = []
        self._depends = depends

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
        self._inner = frozenset(n - losses for n in self._inner if n >= losses)
        if self._first_inner is not None:
            self._first_inner = max(0, self._first_inner - losses)

    def release(self) -> None:
        """Lets go of losses and inputs: nobody will ask for them any more."""
        self.losses.clear()
        self.graphs.clear()
        if self.inputs:
            self.inputs.clear()
        if self.left_over:
            self.left_over = {}

    def bears_witness(self, number: int) -> bool:
        """Whether this loss says something that does not depend on the scale."""
        if self._depends is not None:
            return not self._depends
        first = self._first_inner
        return first is None or number < first or number in self._inner

    def of(self, parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The losses that these parameters' gradients come from, as far as that can be known.

        Args:
            parameters: those of one optimizer.

        Returns:
            Those that bear witness, and those that may depend on the scale.
        """
        numbers: Iterable[int] = range(len(self.losses))
        if len(self.losses) > 1:
            numbers = self._reaching({id(p) for p in parameters})
        witnesses = [self.losses[n] for n in numbers if self.bears_witness(n)]
        return witnesses, [self.losses[n] for n in numbers if not self.bears_witness(n)]

    def blamed(
        self, found_inf: Tensor, process_group: Ranks | None, since: int = 0
    ) -> Tensor | None:
        """The flag as far as the scale is to blame: 0 if a loss was not finite.

        Agreed on over `process_group`, because all ranks must blame the same thing; with several
        ranks and no group nobody can tell.

        Args:
            found_inf: the flag, float32 0-d, 0 or 1.
            process_group: the ranks that must agree, or None.
            since: the number of the first loss that counts.

        Returns:
            Float32 0-d, 0 or 1; None if nobody can tell.
        """
        numbers = range(since, len(self.losses))
        losses = [self.losses[n] for n in numbers if self.bears_witness(n)]
        groups = mesh_groups(process_group) if distributed() else []
        # A stage of a pipeline has no loss, and takes part: another rank has one.
        if not (losses or groups) or (distributed() and not groups):
            return None
        # In as few launches as there are: a loss less itself is 0, or NaN.
        flag = found_inf
        for loss in losses:
            loss = loss.reshape(()).to(found_inf.device, non_blocking=True)
            flag = flag + (loss - loss)
        flag = flag.to(torch.float32).nan_to_num(nan=0.0)
        if groups:
            bad = found_inf - flag
            reduce_max_([bad], groups)
            flag = (found_inf - bad).clamp(min=0.0)
        return flag

    def _reaching(self, parameters: set[int]) -> list[int]:
        """The numbers of the losses whose graph leads to a parameter; all where that is hidden."""
        everyone = list(range(len(self.losses)))
        reached = [leaves_of(graph) for graph in self.graphs]
        if any(leaves is None for leaves in reached):
            return everyone
        found = [n for n in everyone if any(id(p) in parameters for p in reached[n] or ())]
        return found or everyone


def leaves_of(graph: Node | None) -> list[Tensor] | None:
    """The tensors that a backward pass would fill; None if some are hidden from it."""
    if graph is None:
        return []
    seen, stack = {graph}, [graph]
    leaves: list[Tensor] = []
    while stack:
        node = stack.pop()
        if node.name() == "CheckpointFunctionBackward":  # reentrant: it runs a graph of its own
            return None
        variable: Tensor | None = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(variable)
        fresh = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= fresh
        stack += fresh
    return leaves
