"""flax `DynamicScale`: a scale and a count; the rest is static and not in its state."""

from __future__ import annotations

from typing import final

from gradscale.checkpoints.draft import Draft, Exported
from gradscale.checkpoints.layout import Layout, Saved
from gradscale.checkpoints.state import ScalerSettings, ScalerState
from gradscale.entries import Entries
from gradscale.policies.bits import MIN_SCALE


@final
class Flax(Layout):
    """The state of flax' `DynamicScale`."""

    name = "flax"

    def recognizes(self, state: Saved) -> bool:
        """True for `to_state_dict(dynamic_scale)` of flax, and for `dataclasses.asdict` of it."""
        return {"fin_steps", "scale"} <= state.keys()

    def read(self, state: Entries) -> ScalerState:
        """The state of flax' `DynamicScale`, with its settings where they were saved too.

        flax grows the scale on the finite step *after* ``growth_interval`` of them; torch would
        call that interval one longer, and that is the number given here.
        """
        interval = "growth_interval"
        settings = ScalerSettings(
            dynamic=True,
            growth_factor=state.optional(state.number, "growth_factor"),
            backoff_factor=state.optional(state.number, "backoff_factor"),
            growth_interval=state.count(interval) + 1 if state.has(interval) else None,
            hysteresis=1,
            min_scale=state.optional(state.number, "minimum_scale"),
        )
        return ScalerState(
            state.number("scale"),
            good_steps=state.count("fin_steps"),
            hysteresis_left=1,
            settings=settings,
        )

    def write(self, state: ScalerState) -> Exported:
        """What `flax.serialization.from_state_dict` takes: it refuses any other key."""
        draft = Draft(state)
        draft.fixed(dynamic=True, min_scale=MIN_SCALE)
        saved = {"fin_steps": draft.take("good_steps", 0), "scale": draft.take("scale", 2.0**16)}
        return draft.finish(saved)
