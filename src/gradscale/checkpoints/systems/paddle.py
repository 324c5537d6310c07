"""PaddlePaddle: a scale, two counters and every setting."""

from __future__ import annotations

from typing import final

from gradscale.checkpoints.draft import Draft, Exported
from gradscale.checkpoints.layout import Layout, Saved
from gradscale.checkpoints.state import ScalerSettings, ScalerState
from gradscale.entries import Entries


@final
class Paddle(Layout):
    """`paddle.amp.GradScaler.state_dict()`."""

    name = "paddle"

    def recognizes(self, state: Saved) -> bool:
        """True for `paddle.amp.GradScaler.state_dict()`."""
        return {"scale", "incr_ratio", "incr_count", "decr_count"} <= state.keys()

    def read(self, state: Entries) -> ScalerState:
        """The state of `paddle.amp.GradScaler.state_dict()`.

        Paddle counts overflows in a row upwards from 0 and backs off when the count reaches
        ``decr_every_n_nan_or_inf``; what is left is the difference.
        """
        hysteresis = state.count("decr_every_n_nan_or_inf")
        settings = ScalerSettings(
            dynamic=state.flag("use_dynamic_loss_scaling"),
            growth_factor=state.number("incr_ratio"),
            backoff_factor=state.number("decr_ratio"),
            growth_interval=state.count("incr_every_n_steps"),
            hysteresis=hysteresis,
            hysteresis_refill="clean_or_backoff",
        )
        return ScalerState(
            state.number("scale"),
            good_steps=state.count("incr_count"),
            hysteresis_left=hysteresis - state.count("decr_count"),
            settings=settings,
        )

    def write(self, state: ScalerState) -> Exported:
        """What `paddle.amp.GradScaler.load_state_dict` takes."""
        draft = Draft(state)
        draft.fixed(hysteresis_refill="clean_or_backoff")
        hysteresis = draft.take("hysteresis", 1)
        # Paddle counts upwards from 0: more than all can not be left.
        left = min(hysteresis, draft.known("hysteresis_left", hysteresis))
        draft.fixed(hysteresis_left=left)
        saved = {
            "scale": [draft.take("scale", 2.0**16)],  # Paddle reads element 0
            "incr_ratio": draft.take("growth_factor", 2.0),
            "decr_ratio": draft.take("backoff_factor", 0.5),
            "incr_every_n_steps": draft.take("growth_interval", 2000),
            "decr_every_n_nan_or_inf": hysteresis,
            "incr_count": draft.take("good_steps", 0),
            "decr_count": hysteresis - left,
            "use_dynamic_loss_scaling": draft.take("dynamic", True),
        }
        return draft.finish(saved)
