"""The contract of a checkpoint layout: how one system's saved state is known, read and written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from gradscale.checkpoints.draft import Exported
from gradscale.checkpoints.state import ScalerState
from gradscale.entries import Entries

Saved = Mapping[str, object]


class Layout(ABC):
    """How one system saves its loss scaler. Each system is one final class, listed in `convert`."""

    name: str
    """The word that `source=` and `target=` take."""

    @abstractmethod
    def recognizes(self, state: Saved) -> bool:
        """Whether this system saved `state`, and no other did."""

    @abstractmethod
    def read(self, state: Entries) -> ScalerState:
        """`state` in the words of no particular system; raises where it is not of this layout."""

    @abstractmethod
    def write(self, state: ScalerState) -> Exported:
        """A neutral state as this system's dictionary."""
