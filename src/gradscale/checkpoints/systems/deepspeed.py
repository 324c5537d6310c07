"""DeepSpeed: iteration numbers in place of counters, and two conventions for when to grow."""

from __future__ import annotations

from typing import final

from gradscale.checkpoints.draft import Draft, Exported
from gradscale.checkpoints.layout import Layout, Saved
from gradscale.checkpoints.state import ScalerSettings, ScalerState
from gradscale.entries import Entries
from gradscale.policies.bits import MAX_FLOAT32, MIN_SCALE
from gradscale.torch_types import StateDict


@final
class DeepSpeedScaler(Layout):
    """`vars(loss_scaler)` of DeepSpeed's ZeRO."""

    name = "deepspeed"

    def recognizes(self, state: Saved) -> bool:
        """True for `vars(loss_scaler)` of a ZeRO checkpoint."""
        return "cur_scale" in state and "dynamic_loss_scale" not in state

    def read(self, state: Entries) -> ScalerState:
        """The state of DeepSpeed's `DynamicLossScaler`, or of its static `LossScaler`.

        It grows on a finite step when ``cur_iter - last_overflow_iter`` divides by the window.
        """
        scale = state.number("cur_scale")
        if not state.has("scale_window"):
            return ScalerState(scale, settings=ScalerSettings(dynamic=False))
        interval = state.count("scale_window", least=1)
        settings = ScalerSettings(
            dynamic=True,
            growth_factor=state.number("scale_factor", MIN_SCALE, MAX_FLOAT32),
            backoff_factor=1 / state.number("scale_factor", MIN_SCALE, MAX_FLOAT32),
            growth_interval=interval,
            hysteresis=state.count("delayed_shift"),
            hysteresis_refill="clean" if state.flag("consecutive_hysteresis") else "growth",
            min_scale=state.number("min_scale"),
        )
        return ScalerState(
            scale,
            # It grows at each `interval`-th step since the overflow, and keeps no counter for it.
            good_steps=(_since_overflow(state) - 1) % interval,
            hysteresis_left=state.count("cur_hysteresis"),
            settings=settings,
        )

    def write(self, state: ScalerState) -> Exported:
        """The attributes of DeepSpeed's `DynamicLossScaler`: ``vars(loss_scaler).update(...)``."""
        draft = Draft(state)
        if not draft.take("dynamic", True):
            return draft.finish({"cur_scale": draft.take("scale", 1.0), "dynamic": False})
        # With a hysteresis of 1 DeepSpeed does not look at what is left: it must not be below.
        hysteresis = draft.take("hysteresis", draft.known("hysteresis_left", 1))
        left = draft.take("hysteresis_left", hysteresis)
        refill = draft.choose("hysteresis_refill", ("growth", "clean"))
        saved = {
            "dynamic": True,
            **_common(draft),
            "cur_iter": draft.take("good_steps", 0),
            "min_scale": draft.take("min_scale", 1.0),
            "delayed_shift": hysteresis,
            "cur_hysteresis": left,
            "consecutive_hysteresis": refill == "clean",
        }
        return draft.finish(saved)


@final
class DeepSpeedFused(Layout):
    """The state of DeepSpeed's `FP16_Optimizer`."""

    name = "deepspeed_fused"

    def recognizes(self, state: Saved) -> bool:
        """True for the state of DeepSpeed's `FP16_Optimizer`, fused or not."""
        return {"cur_scale", "dynamic_loss_scale", "cur_iter"} <= state.keys()

    def read(self, state: Entries) -> ScalerState:
        """The state of DeepSpeed's `FP16_Optimizer`, whose growth comes late by a step.

        After an overflow it waits for the window and one finite step more, then for the window. The
        count says when growth is due, except right after an overflow, where it is one step early.
        """
        scale = state.number("cur_scale")
        if not state.flag("dynamic_loss_scale"):
            return ScalerState(scale, settings=ScalerSettings(dynamic=False))
        interval = state.count("scale_window", least=1)
        stable = _since_overflow(state) - 1
        settings = ScalerSettings(
            dynamic=True,
            growth_factor=state.number("scale_factor", MIN_SCALE, MAX_FLOAT32),
            backoff_factor=1 / state.number("scale_factor", MIN_SCALE, MAX_FLOAT32),
            growth_interval=interval,
            hysteresis=1,
        )
        return ScalerState(
            scale,
            good_steps=(stable - 1) % interval if stable else 0,
            hysteresis_left=1,
            settings=settings,
            unread=("growth after an overflow comes one finite step later than elsewhere",),
        )

    def write(self, state: ScalerState) -> Exported:
        """The scaler's entries in the state of `FP16_Optimizer`, not the optimizer's."""
        draft = Draft(state)
        if not draft.take("dynamic", True):
            static = {"dynamic_loss_scale": False, "cur_scale": draft.take("scale", 1.0)}
            return draft.finish({**static, "cur_iter": 0})
        saved = {
            "dynamic_loss_scale": True,
            **_common(draft),
            # One more: the first finite step after an overflow does not count there.
            "cur_iter": draft.take("good_steps", 0) + 1,
        }
        return draft.finish(saved)


def _common(draft: Draft) -> StateDict:
    factor = draft.take("growth_factor", 2.0)
    draft.fixed(backoff_factor=1 / factor)  # one factor serves both ways
    return {
        "cur_scale": draft.take("scale", 2.0**16),
        # With the last overflow just before iteration 0, `cur_iter` counts the good steps.
        "last_overflow_iter": -1,
        "scale_factor": factor,
        "scale_window": draft.take("growth_interval", 1000),
    }


def _since_overflow(state: Entries) -> int:
    return state.count("cur_iter") - state.count("last_overflow_iter", least=-1)
