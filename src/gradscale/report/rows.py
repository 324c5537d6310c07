"""What became of each row over a whole run."""

from __future__ import annotations

from dataclasses import dataclass

from gradscale.recording import Recording, RowInfo, Seen, Step


@dataclass
class RowStory:
    """One row from the first measured step to the last.

    Attributes:
        info: its name, kind, format and place.
        measured: at how many steps it was measured.
        flushed: elements lost, over all of them.
        nonzero: elements truly not zero, over all of them.
        nonfinite: elements infinite or NaN, over all of them.
        worst: the largest lost share of a step.
        worst_step: which step that was.
        last: the latest step that measured it, what it saw, and the row's place in that; None if
            none did.
    """

    info: RowInfo
    measured: int = 0
    flushed: int = 0
    nonzero: int = 0
    nonfinite: int = 0
    worst: float = 0.0
    worst_step: int | None = None
    last: tuple[Step, Seen, int] | None = None

    def add(self, step: Step, seen: Seen, place: int) -> None:
        """Count one measured step."""
        flushed, nonzero = seen.flushed[place], seen.nonzero[place]
        self.measured += 1
        self.flushed += flushed
        self.nonzero += nonzero
        self.nonfinite += seen.nonfinite[place]
        share = flushed / max(1, nonzero)
        # The first of equals: it is where one begins to look.
        if self.worst_step is None or share > self.worst:
            self.worst, self.worst_step = share, step.step
        self.last = step, seen, place

    @property
    def lost_share(self) -> float:
        """Lost elements as a share of the non-zero ones, over the run."""
        return self.flushed / max(1, self.nonzero)

    @property
    def negligible(self) -> bool:
        """Whether its true value was zero up to rounding when it was last measured."""
        return self.last is not None and self.info.id in self.last[1].negligible

    @property
    def method(self) -> str | None:
        """Where the number of lost elements comes from; None if nothing was measured."""
        if self.last is None:
            return None
        _, seen, place = self.last
        return seen.methods[place]

    @property
    def alarming(self) -> bool:
        """Whether its losses count: a gradient that was measured, and is not zero in truth."""
        return bool(self.measured) and self.info.kind != "activation" and not self.negligible

    @property
    def counts(self) -> bool:
        """Whether it is one of those that the lost share is of: float32 loses nothing itself."""
        return self.alarming and self.info.format != "fp32"


def stories_of(recording: Recording) -> tuple[RowStory, ...]:
    """One story a row, by id."""
    # Ids count up from 0, so a row's id is its place.
    stories = tuple(RowStory(info) for info in recording.rows)
    for step in recording.steps:
        if step.seen is not None:
            for place, row in enumerate(step.seen.id):
                stories[row].add(step, step.seen, place)
    return stories
