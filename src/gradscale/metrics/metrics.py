"""`Metrics`: what one step did, as plain numbers that somebody can plot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple


class LostShare(NamedTuple):
    """How much of the gradients was lost, when that was last measured.

    Attributes:
        lost_share: lost elements over non-zero ones, in [0, 1].
        step: the step that measured it.
        method: where it comes from: ``counted``, ``reference``, ``probe`` or ``extrapolated``.
    """

    lost_share: float
    step: int
    method: str


@dataclass(frozen=True)
class Metrics:
    """What became of one step.

    Attributes:
        step: which one: the number of `update()` calls before it; -1 if no step has arrived yet.
        scale: the loss scale that it was taken at; NaN at step -1.
        skipped: whether one of its optimizers did not step.
        reason: why; None if none was skipped.
        dropped: micro-batches that were left out of it; None unless `accumulate_` may do so.
        steps: optimizer steps so far, this step's included.
        skipped_steps: of these, not taken.
        consecutive: skipped since the last one taken.
        reasons: skipped, by reason.
        groups: how many loss scales the network uses; 1 without layer-wise scaling.
        amax: the largest finite magnitude of the unscaled gradients; None unless it is measured.
        lost: the share of lost gradients when it was last measured; None unless a watch does.

    Example:
        >>> metrics = Metrics(step=4, scale=1024.0, steps=5, skipped_steps=1)
        >>> metrics.skipped_share, metrics.scalars()["log2_scale"]
        (0.2, 10.0)
    """

    step: int = -1
    scale: float = math.nan
    skipped: bool = False
    reason: str | None = None
    dropped: int | None = None
    steps: int = 0
    skipped_steps: int = 0
    consecutive: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict[str, int])
    groups: int = 1
    amax: float | None = None
    lost: LostShare | None = None

    @property
    def skipped_share(self) -> float:
        """Skipped steps as a share of all so far."""
        return self.skipped_steps / max(1, self.steps)

    def scalars(self) -> dict[str, float]:
        """The numbers that make a curve, by name; what is not known is left out.

        Example:
            >>> sorted(Metrics(step=0, scale=8.0).scalars())
            ['consecutive', 'groups', 'log2_scale', 'scale', 'skipped', 'skipped_steps']
        """
        numbers: dict[str, float] = {
            "scale": self.scale,
            "log2_scale": math.log2(self.scale) if self.scale > 0 else -math.inf,
            "skipped": float(self.skipped),
            "skipped_steps": float(self.skipped_steps),
            "consecutive": float(self.consecutive),
            "groups": float(self.groups),
        }
        numbers |= {f"skipped_{reason}": float(n) for reason, n in self.reasons.items()}
        if self.dropped is not None:
            numbers["dropped"] = float(self.dropped)
        if self.amax is not None:
            numbers["amax"] = self.amax
        if self.lost is not None:
            numbers["lost_share"] = self.lost.lost_share
        return numbers

    def to_dict(self) -> dict[str, object]:
        """All fields, as plain values that JSON has; non-finite numbers are strings.

        Example:
            >>> Metrics().to_dict()["scale"]
            'nan'
        """
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        plain["reasons"] = dict(self.reasons)
        plain["lost"] = None if self.lost is None else self.lost._asdict()
        # Python would write NaN, which is no JSON.
        for name in ("scale", "amax"):
            value = plain[name]
            if value is not None and not math.isfinite(value):
                plain[name] = str(value)
        return plain
