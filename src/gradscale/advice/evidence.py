"""What was measured of one way to scale: what is lost, and what is left of every update."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Literal, NamedTuple

from torch import Tensor

from gradscale.advice.agreement import Agreement, agreements, reaches, total
from gradscale.advice.updates import Updates
from gradscale.files.json_text import JsonObject
from gradscale.formats import FloatFormat
from gradscale.truth import Gradients, compared

Scaling = Literal["none", "default", "one scale", "a plan"]
"""Ways of scaling, the simplest first."""

NEGLIGIBLE = 0.01
"""What moves by less than this share of what moves farthest is as good as still."""

Level = Literal["safe", "risky", "unsafe", "unknown"]

LIMITS: tuple[tuple[Level, float], ...] = (("safe", 0.5), ("risky", 0.1))
"""The least that may be left of any module's update: half the learning rate, a tenth of it."""

ASTRAY = 0.9
"""A cosine below it is another direction: what is lost at the top shows in nothing else."""


@dataclass(frozen=True)
class ScalingEvidence:
    """Gradients of one format at one scale, or at the scales of a plan, against float32.

    Attributes:
        lost_share: the share of gradient elements that were flushed, over modules and parameters.
        cosine: between the gradients of what the optimizer moves and the true ones, all together.
        worst: what is left of the optimizer's update of a module, at worst: 1 is the update of
            float32, a half is half of the learning rate. Modules that the optimizer hardly moves in
            float32 do not count: less than a hundredth as far as others.
        where: the name of that module.
        overflowed: whether nothing finite came of it, or of a step that nobody skips.
        frozen: modules of whose update less than a tenth is left.
        spared: modules whose gradients are astray, but which the optimizer hardly moves.
        clipped_share: the share of gradient elements beyond the largest number of a format that
            has no infinity, where products read them.
    """

    lost_share: float
    cosine: float
    worst: float
    where: str
    overflowed: bool
    frozen: tuple[str, ...] = ()
    spared: tuple[str, ...] = ()
    clipped_share: float = 0.0

    def to_dict(self) -> JsonObject:
        """Plain numbers and strings."""
        return asdict(self)


NOTHING = ScalingEvidence(1.0, 0.0, 0.0, "", overflowed=True)


class Truth:
    """The float32 gradients of a batch, and what the optimizer makes of them."""

    def __init__(self, gradients: Gradients, updates: Updates) -> None:
        self.gradients, self.updates = gradients, updates
        weights: dict[str, Tensor] = dict(updates.model.named_parameters())
        moves = updates.of(gradients)
        # A learning rate that warms up from 0 moves nothing yet: then as plain descent would.
        self.stands = not any(bool(moved.any()) for moved in moves.parameters.values())
        self.moves = gradients if self.stands else moves
        self.reaches = reaches(self.moves, weights)

    def moved_by(self, held: Gradients) -> Gradients:
        """What the optimizer makes of other gradients."""
        return held if self.stands else self.updates.of(held)


class _Module(NamedTuple):
    """A module at one moment of training."""

    cosine: float
    left: float
    moves: bool


@dataclass
class Collected:
    """Evidence added up over several moments of training.

    Attributes:
        skips: whether a scaler is there to skip a step that overflows.
    """

    skips: bool = True
    flushed: int = 0
    nonzero: int = 0
    clipped: int = 0
    read: int = 0
    cosines: list[float] = field(default_factory=list[float])
    modules: dict[str, list[_Module]] = field(default_factory=dict[str, list[_Module]])
    overflowed: bool = False

    def add(self, true: Truth, held: Gradients, format: FloatFormat) -> None:
        """One pass of the half-precision network, and the truth of the same batch."""
        if not held.finite:
            self.overflowed = True
            return
        lost = compared(true.gradients, held, format)
        self.flushed += lost.flushed
        self.nonzero += lost.nonzero
        self._count_clipped(held, format)
        gradients = agreements(true.gradients, held)
        updates = agreements(true.moves, true.moved_by(held))
        moved = {n: a for n, a in gradients.items() if true.reaches.get(n, 0.0) >= NEGLIGIBLE}
        self.cosines.append(total((moved or gradients).values()).cosine)
        for name in gradients | updates:
            seen = _Module(
                gradients.get(name, Agreement()).cosine,
                updates.get(name, Agreement()).left,
                true.reaches.get(name, 0.0) >= NEGLIGIBLE,
            )
            self.modules.setdefault(name, []).append(seen)

    def _count_clipped(self, held: Gradients, format: FloatFormat) -> None:
        if format.overflow != "saturate":
            return
        for output in held.products & held.modules.keys():
            grad = held.modules[output]
            self.clipped += int((grad.abs() > format.max).sum())
            self.read += int(grad.count_nonzero())

    @property
    def evidence(self) -> ScalingEvidence | None:
        """The means over finite passes; None if there was none at all."""
        if self.overflowed and not (self.skips and self.cosines):
            return NOTHING
        if not self.cosines:
            return None
        moving = {
            name: fmean(seen.left for seen in looks if seen.moves)
            for name, looks in self.modules.items()
            if any(seen.moves for seen in looks)
        }
        astray = {n: fmean(s.cosine for s in looks) < ASTRAY for n, looks in self.modules.items()}
        where = min(moving, key=lambda name: moving[name], default="")
        return ScalingEvidence(
            self.flushed / max(1, self.nonzero),
            fmean(self.cosines),
            moving.get(where, 1.0),
            where,
            False,
            tuple(name for name, left in moving.items() if left < LIMITS[-1][1]),
            tuple(name for name in self.modules if astray[name] and name not in moving),
            self.clipped / max(1, self.read),
        )
