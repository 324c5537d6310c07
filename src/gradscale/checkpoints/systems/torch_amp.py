"""torch.amp.GradScaler: five entries, settings among them."""

from __future__ import annotations

from typing import final

from gradscale.checkpoints.draft import Draft, Exported
from gradscale.checkpoints.layout import Layout, Saved
from gradscale.checkpoints.state import ScalerSettings, ScalerState
from gradscale.entries import Entries

KEYS = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


@final
class TorchAmp(Layout):
    """`torch.amp.GradScaler.state_dict()`."""

    name = "torch"

    def recognizes(self, state: Saved) -> bool:
        """True for the five keys of `torch.amp.GradScaler.state_dict()`."""
        return state.keys() >= set(KEYS) and "gradscale" not in state

    def read(self, state: Entries) -> ScalerState:
        """The state of `torch.amp.GradScaler.state_dict()`."""
        settings = ScalerSettings(
            growth_factor=state.number("growth_factor"),
            backoff_factor=state.number("backoff_factor"),
            growth_interval=state.count("growth_interval"),
            hysteresis=1,
        )
        return ScalerState(
            state.number("scale"),
            good_steps=state.count("_growth_tracker"),
            hysteresis_left=1,
            settings=settings,
        )

    def write(self, state: ScalerState) -> Exported:
        """What `torch.amp.GradScaler.load_state_dict` takes."""
        draft = Draft(state)
        draft.fixed(dynamic=True)
        saved = {
            "scale": draft.take("scale", 2.0**16),
            "growth_factor": draft.take("growth_factor", 2.0),
            "backoff_factor": draft.take("backoff_factor", 0.5),
            "growth_interval": draft.take("growth_interval", 2000),
            "_growth_tracker": draft.take("good_steps", 0),
        }
        return draft.finish(saved)
