"""One recorded run, gathered once for the page, the figures and the summary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from gradscale.recording import Recording
from gradscale.recording.schema import Plan
from gradscale.report.columns import Column, Columns
from gradscale.report.histograms import HistogramSnapshot, evenly, snapshots_of
from gradscale.report.network import Network, network_of
from gradscale.report.rows import RowStory, stories_of
from gradscale.report.timeline import Timeline

PLANS = 50  # to choose from


@dataclass(frozen=True)
class Run:
    """A recording, ready to be shown.

    Attributes:
        name: what it is called beside other runs.
        recording: where it comes from.
        timeline: scale, loss, largest gradient and skipped steps.
        rows: each row and what became of it, by id.
        columns: the heat map's.
        snapshots: histograms at a few steps.
        network: where the parts of the network are drawn.
        plans: the plans that were in use, each with the step of its first use.
    """

    name: str
    recording: Recording
    timeline: Timeline
    rows: tuple[RowStory, ...]
    columns: tuple[Column, ...]
    snapshots: tuple[HistogramSnapshot, ...]
    network: Network
    plans: tuple[tuple[int, Plan], ...]

    @staticmethod
    def of(recording: Recording, name: str | None = None) -> Run:
        """Everything that is shown of a recording.

        Args:
            recording: from `gradscale.recording.read`.
            name: what to call it; without one, its folder.
        """
        columns = Columns(len(recording.rows))
        for step in recording.steps:
            if step.seen is not None:
                columns.add(step.step, step.seen)
        return Run(
            name or recording.path.resolve().parent.name,
            recording,
            Timeline.of(recording),
            stories_of(recording),
            tuple(columns.finish()),
            tuple(snapshots_of(recording)),
            network_of(recording),
            plans_of(recording),
        )

    @cached_property
    def order(self) -> list[int]:
        """Row ids in the order in which the backward pass reached them."""
        return sorted(range(len(self.rows)), key=lambda row: self.rows[row].info.order)

    @property
    def missing(self) -> list[str]:
        """What the recording lacks, and how to have it the next time."""
        steps = self.recording.steps
        if not steps:
            return ["It holds no step yet."]
        found: list[str] = []
        if not self.columns:
            found.append(
                "No gradients were measured, so nobody knows what was lost and where. Record with "
                "a watch: `gradscale.Recorder(path, scaler, watch)`, or `gradscale train --record`."
            )
        elif not self.snapshots:
            found.append("It has no histograms, so other scales cannot be tried.")
        # Not noted and never finite look alike on the page: an empty plot.
        losses = [step.loss for step in steps if step.loss is not None]
        if not losses:
            found.append("The loss was not noted: call `recorder.note_loss(loss)` in the loop.")
        elif not any(math.isfinite(loss) for loss in losses):
            found.append("Every loss is infinite or NaN.")
        return found


def plans_of(recording: Recording, limit: int = PLANS) -> tuple[tuple[int, Plan], ...]:
    """The plans and when each came into use; of very many, the first and an even choice."""
    found: list[tuple[int, Plan]] = []
    for step in recording.steps:
        # Where it changes: a recording may say the same plan again.
        if step.plan is not None and (not found or found[-1][1] != step.plan):
            found.append((step.step, step.plan))
    return tuple(found[place] for place in evenly(len(found), limit))
