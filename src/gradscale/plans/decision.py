"""What a planner decided: a plan, the loss scale that it was made for, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from gradscale.backward.plan import ScalePlan
from gradscale.plans.tail import Tail


@dataclass(frozen=True)
class Group:
    """Neighbouring nodes with one exponent.

    Attributes:
        exponent: absolute: gradients are stored as ``2**exponent`` times the true ones.
        nodes: ascending.
        needs: the node that needs the largest exponent, and how large; None if none needs any.
        allows: the node that allows the smallest exponent, and how small; None if all allow any.
    """

    exponent: int
    nodes: tuple[int, ...]
    needs: tuple[int, int] | None = None
    allows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Loss:
    """A node whose window is empty: what it flushes where it just does not overflow.

    Attributes:
        node: the node.
        exponent: at which it is stored.
        share: of its non-zero elements, flushed there.
        extrapolated: whether the share rests on gradients that were flushed when measured.
    """

    node: int
    exponent: int
    share: float
    extrapolated: bool


@dataclass(frozen=True)
class Decision:
    """What a planner decided.

    Attributes:
        plan: exponents relative to the loss scale.
        log2_scale: the exponent of the loss scale that the plan was made for.
        groups: connected groups of nodes, the largest first. Leaves and pinned nodes, which are
            at the loss scale, belong to none.
        losses: nodes that lose more than the target whatever the exponent.
        overflowed: the nodes at which an overflow began, if one made this decision.
        tail: what overflows have taught, with the last of them; None if the planner does not ask.
        changed: whether plan or loss scale differ from those before.
        notes: what else the reader should know, one sentence each.
    """

    plan: ScalePlan
    log2_scale: int
    groups: tuple[Group, ...] = ()
    losses: tuple[Loss, ...] = ()
    overflowed: tuple[int, ...] = ()
    tail: Tail | None = None
    changed: bool = True
    notes: tuple[str, ...] = field(default=())

    @property
    def scales(self) -> tuple[int, ...]:
        """The exponents in use, each once, ascending: how many loss scales the model needs."""
        return tuple(sorted({group.exponent for group in self.groups}))
