"""Keras 3: two variables of `LossScaleOptimizer`, by the last part of their path."""

from __future__ import annotations

from typing import final

from gradscale.checkpoints.draft import Draft, Exported
from gradscale.checkpoints.layout import Layout, Saved
from gradscale.checkpoints.state import ScalerSettings, ScalerState
from gradscale.entries import Entries

_STORE = {"step_counter": "2", "dynamic_scale": "3"}
"""Where `Optimizer.save_own_variables` puts them: after its own iteration and learning rate."""


def _by_name(state: Saved) -> Saved:
    return {str(key).rsplit("/", 1)[-1]: value for key, value in state.items()}


@final
class Keras(Layout):
    """The variables of Keras' `LossScaleOptimizer`."""

    name = "keras"

    def recognizes(self, state: Saved) -> bool:
        """True for ``{v.path: v.numpy() for v in optimizer.variables}``."""
        return {"step_counter", "dynamic_scale"} <= _by_name(state).keys()

    def read(self, state: Entries) -> ScalerState:
        """The state of `LossScaleOptimizer`, by name or as `save_own_variables` numbers it.

        ``dynamic_growth_steps`` belongs to `get_config()`; it is read where `state` has it too.
        """
        named = Entries(_by_name(state.held))
        numbered = not named.has("dynamic_scale") and all(map(named.has, _STORE.values()))
        keys = _STORE if numbered else {name: name for name in _STORE}
        interval = "dynamic_growth_steps"
        settings = ScalerSettings(
            dynamic=True,
            growth_factor=2.0,
            backoff_factor=0.5,
            growth_interval=named.count(interval) if named.has(interval) else None,
            hysteresis=1,
        )
        return ScalerState(
            named.number(keys["dynamic_scale"]),
            good_steps=named.count(keys["step_counter"]),
            hysteresis_left=1,
            settings=settings,
        )

    def write(self, state: ScalerState) -> Exported:
        """The two variables to assign: ``step_counter`` and ``dynamic_scale`` of the optimizer."""
        draft = Draft(state)
        draft.fixed(dynamic=True, growth_factor=2.0, backoff_factor=0.5)
        saved = {
            "step_counter": draft.take("good_steps", 0),
            "dynamic_scale": draft.take("scale", 2.0**15),
        }
        return draft.finish(saved)
