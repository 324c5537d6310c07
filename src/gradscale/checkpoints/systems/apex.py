"""apex.amp: one entry a loss, ``loss_scaler0`` and on, each a scale and a count."""

from __future__ import annotations

import re
from typing import final

from gradscale.checkpoints.draft import Draft, Exported
from gradscale.checkpoints.layout import Layout, Saved
from gradscale.checkpoints.state import ScalerSettings, ScalerState
from gradscale.entries import Entries, shown

_ENTRY = re.compile(r"loss_scaler\d+")


@final
class Apex(Layout):
    """`apex.amp.state_dict()`."""

    name = "apex"

    def recognizes(self, state: Saved) -> bool:
        """True for `apex.amp.state_dict()`."""
        return any(_ENTRY.fullmatch(str(key)) for key in state)

    def read(self, state: Entries) -> ScalerState:
        """The state of `apex.amp.state_dict()`, which must hold one loss.

        `amp.initialize` has no way to change the factor 2 nor the window of 2000: both are known.
        """
        losses = [key for key in state.held if _ENTRY.fullmatch(str(key))]
        if len(losses) != 1:
            raise ValueError(
                f"`read_state(state)` found {len(losses)} apex loss scalers, {shown(losses)}; it "
                "takes one. Pass them one by one, as in "
                '`read_state({"loss_scaler0": state["loss_scaler0"]})`.'
            )
        entry = state.entries(losses[0])
        settings = ScalerSettings(
            growth_factor=2.0, backoff_factor=0.5, growth_interval=2000, hysteresis=1
        )
        return ScalerState(
            entry.number("loss_scale"),
            good_steps=entry.count("unskipped"),
            hysteresis_left=1,
            settings=settings,
        )

    def write(self, state: ScalerState) -> Exported:
        """What `apex.amp.load_state_dict` takes, for one loss."""
        draft = Draft(state)
        draft.fixed(dynamic=True, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000)
        entry = {
            "loss_scale": draft.take("scale", 2.0**16),
            "unskipped": draft.take("good_steps", 0),
        }
        return draft.finish({"loss_scaler0": entry})
