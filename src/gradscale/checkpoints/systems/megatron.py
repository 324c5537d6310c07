"""Megatron-LM: a scale and two counters; the settings stay on the command line."""

from __future__ import annotations

from typing import final

import torch

from gradscale.checkpoints.draft import Draft, Exported
from gradscale.checkpoints.layout import Layout, Saved
from gradscale.checkpoints.state import ScalerSettings, ScalerState
from gradscale.entries import MOST, Entries


@final
class Megatron(Layout):
    """`DynamicGradScaler.state_dict()` of Megatron-LM."""

    name = "megatron"

    def recognizes(self, state: Saved) -> bool:
        """True for `DynamicGradScaler.state_dict()`."""
        return {"scale", "growth_tracker", "hysteresis_tracker"} <= state.keys()

    def read(self, state: Entries) -> ScalerState:
        """The state of Megatron's `DynamicGradScaler.state_dict()`.

        Its hysteresis tracker may fall below zero, where every overflow backs off: that is 1 left.
        """
        return ScalerState(
            state.number("scale"),
            good_steps=state.count("growth_tracker"),
            hysteresis_left=max(1, state.count("hysteresis_tracker", least=-MOST)),
            settings=ScalerSettings(dynamic=True, hysteresis_refill="growth"),
        )

    def write(self, state: ScalerState) -> Exported:
        """What Megatron's `DynamicGradScaler.load_state_dict` takes."""
        draft = Draft(state)
        draft.fixed(dynamic=True, hysteresis_refill="growth")
        saved = {
            # Megatron calls .cuda() on this entry, so it must be a tensor, of one element.
            "scale": torch.tensor([draft.take("scale", 2.0**32)], dtype=torch.float32),
            "growth_tracker": draft.take("good_steps", 0),
            "hysteresis_tracker": draft.take("hysteresis_left", 2),
        }
        return draft.finish(saved)
