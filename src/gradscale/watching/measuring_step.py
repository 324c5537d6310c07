"""The passes and activations of one measuring step, on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gradscale.capturing import capturing
from gradscale.layerwise.agreement import same_on_all_ranks
from gradscale.watching.activations import Taken
from gradscale.watching.measured_pass import MeasuredPass
from gradscale.watching.sights import Sight, together

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class StepSights:
    """What a measuring step saw, on the host.

    Attributes:
        step: its number.
        sights: by row, in backward order, activations in forward order.
        alone: whether other ranks ran other graphs, so that these are this rank's counts only.
    """

    step: int
    sights: tuple[Sight, ...]
    alone: bool = False


class MeasuringStep:
    """What one measuring step counts.

    Args:
        step: its number.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.passes: list[MeasuredPass] = []
        self._taken = Taken()
        self._alone = self._waited = False

    def finish(
        self, taken: Taken | None, groups: Sequence[ProcessGroup], device: torch.device
    ) -> None:
        """The step is over: the ranks add up, and the counts start on their way to the host.

        A collective where there are groups: every rank calls it, with or without a pass.

        Args:
            taken: the activations of the step, if they are counted.
            groups: the process groups that share a report.
            device: on which they communicate.
        """
        self._taken = taken = taken or Taken()
        measurings = [measured.measuring for measured in self.passes]
        situations: list[object] = [measured.signature() for measured in self.passes]
        signatures = [f"{taken.signature}"]
        signatures += [f"{m.signature} {s!r}" for m, s in zip(measurings, situations, strict=True)]
        self._alone = bool(groups) and not same_on_all_ranks(signatures, groups, device)
        for measured in self.passes:
            if groups and not self._alone:
                measured.reduce(groups)
            measured.fetch()
        if groups and not self._alone:
            taken.reduce(groups)
        taken.fetch()

    @property
    def arrived(self) -> bool:
        """Whether everything is on the host."""
        parts = (self._taken, *self.passes)
        # During a capture nothing may be asked of the device: the answer would be recorded.
        return self._waited or (not capturing() and all(part.arrived for part in parts))

    def wait(self) -> None:
        """Has it handed on as it is: `seen` waits for what is still under way."""
        self._waited = True

    def so_far(self) -> StepSights:
        """The gradients counted in a step that is not over. Waits for them."""
        for measured in self.passes:
            measured.fetch()
        return self.seen()

    def seen(self) -> StepSights:
        """On the host; waits for what has not arrived."""
        # Kept apart, because each kind has an order of its own.
        gradients = together(sight for measured in self.passes for sight in measured.sights())
        activations = together(self._taken.sights())
        return StepSights(self.step, (*gradients.values(), *activations.values()), self._alone)
