"""What a replay found: every step, and from where on it is a guess."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from gradscale.policies import Policy

Basis = Literal["exact", "same steps", "counterfactual"]


class ReplayedStep(NamedTuple):
    """One step under another policy.

    Attributes:
        step: its index in the recording.
        scale: what the policy would have chosen.
        skipped: whether the step would have been lost.
        overflow: whether for an overflow.
        certain: whether that follows from what was recorded; else it is predicted from magnitudes.
        basis: ``exact`` while all scales were the recorded ones; ``same steps`` while they were
            others but every step was taken or skipped as recorded, so that the weights differ by
            no more than what was flushed; ``counterfactual`` afterwards: the run would have gone
            another way, and the recorded gradients stand in for those of that way.
        lost_share: the share of lost gradients, on steps that say so.
    """

    step: int
    scale: float
    skipped: bool
    overflow: bool
    certain: bool
    basis: Basis
    lost_share: float | None


@dataclass(frozen=True)
class Replay:
    """A recorded run under another policy.

    Attributes:
        policy: whose scales these are.
        steps: in order.
        moved: steps before which something else than the policy had set the recorded scale, such
            as `update(new_scale)` or a layer-wise plan; the replay takes over that scale.
    """

    policy: Policy
    steps: Sequence[ReplayedStep]
    moved: tuple[int, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every step is exact."""
        return self.count("exact") == len(self.steps)

    @property
    def skipped(self) -> int:
        """How many steps would have been skipped."""
        return sum(step.skipped for step in self.steps)

    @property
    def predicted(self) -> int:
        """How many steps' fate is predicted rather than known."""
        return sum(not step.certain for step in self.steps)

    @property
    def scales(self) -> tuple[float, float, float]:
        """The lowest, the highest and the last scale."""
        scales = [step.scale for step in self.steps]
        return min(scales), max(scales), scales[-1]

    @cached_property
    def lost_share(self) -> float | None:
        """The mean lost share over the steps that say so; None if none does."""
        # Every measured step alike, however many gradients it had.
        known = [step.lost_share for step in self.steps if step.lost_share is not None]
        return statistics.fmean(known) if known else None

    @property
    def lost_steps(self) -> int:
        """How many steps say what was lost."""
        return sum(step.lost_share is not None for step in self.steps)

    def first(self, basis: Basis) -> int | None:
        """The index of the first step with this basis; None if there is none."""
        return next((step.step for step in self.steps if step.basis == basis), None)

    def count(self, basis: Basis) -> int:
        """How many steps have this basis."""
        return sum(step.basis == basis for step in self.steps)

    def to_dict(self) -> dict[str, object]:
        """Plain numbers and text, for JSON."""
        low, high, last = self.scales
        return {
            "policy": repr(self.policy),
            "steps": len(self.steps),
            "skipped": self.skipped,
            "predicted": self.predicted,
            "lost_share": self.lost_share,
            "lost_steps": self.lost_steps,
            "scale": {"lowest": low, "highest": high, "last": last},
            "exact_steps": self.count("exact"),
            "same_steps_from": self.first("same steps"),
            "counterfactual_from": self.first("counterfactual"),
            "moved": list(self.moved),
        }
