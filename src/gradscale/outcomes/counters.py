"""How many optimizer steps were taken and skipped, as numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from gradscale.outcomes.triage import Reason


@dataclass
class Counters:
    """How many optimizer steps were taken and skipped.

    Attributes:
        steps: optimizer steps asked for.
        skipped: of these, not taken.
        consecutive: skipped since the last one taken.
        reasons: skipped, by reason.
        updates: how often `update()` ended a step; known at once, before the flags have arrived.
    """

    steps: int = 0
    skipped: int = 0
    consecutive: int = 0
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    updates: int = 0

    def count(self, reason: Reason | None) -> None:
        """Adds one step: why it was skipped, or None."""
        self.steps += 1
        if reason is None:
            self.consecutive = 0
            return
        self.skipped += 1
        self.consecutive += 1
        # A new dictionary, because copies of these counters share the old one.
        self.reasons = {**self.reasons, reason: self.reasons.get(reason, 0) + 1}

    def copied(self) -> Counters:
        """These numbers, which later steps leave alone; once a step, so without ceremony."""
        twin = object.__new__(Counters)
        twin.__dict__.update(self.__dict__)
        return twin
