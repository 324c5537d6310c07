"""What was decided for one structure of the graph, by modules: as values, and as sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

FEW = 3
"""Modules that are all named; of more the first and the last are."""


@dataclass(frozen=True)
class Bound:
    """What a place asks of the exponent of its group.

    Attributes:
        where: the module, and in brackets the operation.
        exponent: the least that it needs, or the most that it allows.
    """

    where: str
    exponent: int


@dataclass(frozen=True)
class GroupReport:
    """Neighbouring parts of the network that share a loss scale.

    Attributes:
        exponent: gradients are stored as ``2**exponent`` times the true ones.
        modules: whose gradients, in the order of the backward pass; empty if no model is known.
        nodes: how many operations of the backward pass.
        first: the first of them, by module and operation.
        needs: the place that needs the largest exponent; None if none needs any.
        allows: the place that allows the smallest; None if all allow any.

    Example:
        >>> print(GroupReport(13, ("2", "1", "0"), 9, "2 (MulBackward0)", Bound("0 (Relu)", 11)))
        2^13 for 2, 1, 0 (9 nodes): 0 (Relu) needs at least 2^11
    """

    exponent: int
    modules: tuple[str, ...]
    nodes: int
    first: str
    needs: Bound | None = None
    allows: Bound | None = None

    def __str__(self) -> str:
        reasons: list[str] = []
        if self.needs is not None:
            reasons.append(f"{self.needs.where} needs at least 2^{self.needs.exponent}")
        if self.allows is not None:
            reasons.append(f"{self.allows.where} allows at most 2^{self.allows.exponent}")
        why = f": {', '.join(reasons)}" if reasons else ""
        return f"2^{self.exponent} for {self._what()}{why}"

    def _what(self) -> str:
        nodes = f"{self.nodes} node{'' if self.nodes == 1 else 's'}"
        names = self.modules
        if not names:
            return f"{nodes} from {self.first}"
        if len(names) <= FEW:
            return f"{', '.join(names)} ({nodes})"
        return f"{names[0]} … {names[-1]} ({len(names)} modules, {nodes})"


@dataclass(frozen=True)
class LossReport:
    """A place that no exponent suits.

    Attributes:
        where: the module, and in brackets the operation.
        exponent: the highest at which it does not overflow.
        share: of its non-zero gradient elements, flushed there.
        extrapolated: whether that rests on gradients that were flushed when measured.
    """

    where: str
    exponent: int
    share: float
    extrapolated: bool

    def __str__(self) -> str:
        guess = ", extrapolated" if self.extrapolated else ""
        return (
            f"no scale suits {self.where}: at 2^{self.exponent}, the highest without overflow, "
            f"{self.share:.1%} of its gradient is flushed{guess}"
        )


@dataclass(frozen=True)
class StructureReport:
    """One structure of the backward graph: how many loss scales it needs, where and why.

    Attributes:
        scales: their exponents, ascending; one if that is enough.
        log2_scale: the exponent of the loss scale, at which the scaler divides.
        groups: the largest first.
        parameters: a sentence each on what the parameters are stored at.
        hidden: parameters whose gradients are made inside compiled graphs and not looked into.
        overflowed: where an overflow began, if one made this decision.
        losses: places that no scale suits.
        notes: what else there is to know, a sentence each.
        frozen: why it stays at one scale whatever is measured; None if it does not.
    """

    scales: tuple[int, ...]
    log2_scale: int
    groups: tuple[GroupReport, ...] = ()
    parameters: tuple[str, ...] = ()
    hidden: int = 0
    overflowed: tuple[str, ...] = ()
    losses: tuple[LossReport, ...] = ()
    notes: tuple[str, ...] = ()
    frozen: str | None = None

    @property
    def one_is_enough(self) -> bool:
        """Whether one loss scale suits everything that was seen, and nothing was hidden."""
        return len(self.scales) == 1 and not self.hidden and self.frozen is None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        return {**asdict(self), "one_is_enough": self.one_is_enough}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.frozen is not None:
            yield f"one loss scale, because {self.frozen}"
            return
        if len(self.scales) == 1:
            enough = "one loss scale" if self.hidden else "one loss scale is enough"
            yield f"{enough}, 2^{self.scales[0]}"
        else:
            yield f"{len(self.scales)} loss scales are needed, in {len(self.groups)} groups:"
            yield from (f"  {group}" for group in self.groups)
        yield from self.parameters
        if self.hidden:
            yield (
                f"{self.hidden} parameters get their gradients inside compiled graphs that no plan "
                "looks into; what they need is not known"
            )
        for place in self.overflowed:
            yield f"an overflow began at {place}; its group and those behind it went down"
        yield from map(str, self.losses)
        yield from self.notes
