"""fairseq: the scale alone, as one entry of the optimizer's state."""

from __future__ import annotations

from typing import final

from gradscale.checkpoints.draft import Draft, Exported
from gradscale.checkpoints.layout import Layout, Saved
from gradscale.checkpoints.state import ScalerSettings, ScalerState
from gradscale.entries import Entries


@final
class Fairseq(Layout):
    """The state of fairseq's `FP16Optimizer`."""

    name = "fairseq"

    def recognizes(self, state: Saved) -> bool:
        """True for the state of fairseq's `FP16Optimizer`."""
        return "loss_scale" in state and "unskipped" not in state

    def read(self, state: Entries) -> ScalerState:
        """The scale in the state of fairseq's `FP16Optimizer`; it saves no counter."""
        settings = ScalerSettings(dynamic=True, growth_factor=2.0, backoff_factor=0.5)
        return ScalerState(state.number("loss_scale"), settings=settings)

    def write(self, state: ScalerState) -> Exported:
        """The entry that fairseq's `FP16Optimizer` looks for beside the optimizer's own."""
        draft = Draft(state)
        draft.fixed(dynamic=True, growth_factor=2.0, backoff_factor=0.5)
        return draft.finish({"loss_scale": draft.take("scale", 2.0**15)})
