"""Steps that have ended and whose line waits: for their outcome, their loss, what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gradscale.host_copies import HostCopies
from gradscale.recording.facts import Facts
from gradscale.watching.rows import Row


@dataclass
class Pending:
    """One step whose line is not written yet.

    Attributes:
        step: its index.
        loss: on its way to the host; None if nobody noted one.
        watched: the watch's own number of the step, if it measured it and has yet to tell.
        facts: what became of it; None while that is not known.
        rows: what was measured; None if nothing was.
    """

    step: int
    loss: HostCopies[Tensor] | None = None
    watched: int | None = None
    facts: Facts | None = None
    rows: Sequence[Row] | None = None

    @property
    def arrived(self) -> bool:
        """Whether its line can be written."""
        # All three, for a line is written once, and lines are in order.
        loss = self.loss is None or self.loss.arrived
        return self.facts is not None and loss and self.watched is None

    def wait(self) -> None:
        """Waits for the loss, and gives up what the watch has yet to tell."""
        if self.loss is not None:
            self.loss.wait()
        self.watched = None

    def read_loss(self) -> float | None:
        """The loss, once it is ready: the sum of what was noted."""
        return None if self.loss is None else sum(map(float, self.loss.tensors))


class Losses:
    """The losses noted since the last step, each on its way to the host at once."""

    def __init__(self) -> None:
        self._noted: list[Tensor] = []

    def note(self, loss: Tensor | float) -> None:
        """Adds one.

        Raises:
            ValueError: if it has more than one element.
        """
        tensor = loss if isinstance(loss, Tensor) else Tensor([loss])
        if tensor.numel() != 1:
            raise ValueError(
                f"`note_loss(tensor of shape {tuple(tensor.shape)})` must have one element. Pass "
                "its mean."
            )
        # A clone: whoever owns the loss may change it in place.
        self._noted.append(tensor.detach().reshape(()).clone())

    def depart(self) -> HostCopies[Tensor] | None:
        """What was noted, on its way; the next step begins with none."""
        # Added up on the host, in double precision; on the device it would be one kernel more.
        noted, self._noted = self._noted, []
        return HostCopies(noted) if noted else None
