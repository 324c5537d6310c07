"""gradscale's own: torch's five entries, and one more with the policy and its whole state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast, final, get_args

from gradscale.checkpoints.draft import Draft, Exported
from gradscale.checkpoints.layout import Layout, Saved
from gradscale.checkpoints.state import ScalerSettings, ScalerState
from gradscale.entries import MOST, Entries, shown
from gradscale.policies.dynamic import Refill
from gradscale.torch_types import StateDict

_SHARED = ("scale", "growth_tracker", "hysteresis_tracker")
_TORCH = ("growth_factor", "backoff_factor", "growth_interval")
_SETTINGS = (*_TORCH, "hysteresis", "hysteresis_refill", "min_scale", "max_scale")


@final
class Own(Layout):
    """`gradscale.GradScaler.state_dict()`."""

    name = "gradscale"

    def recognizes(self, state: Saved) -> bool:
        """True for `gradscale.GradScaler.state_dict()`."""
        return {"gradscale", "scale"} <= state.keys()

    def read(self, state: Entries) -> ScalerState:
        """The state of `gradscale.GradScaler.state_dict()`.

        Only `Dynamic` has counterparts elsewhere; what other policies keep is listed as unread.
        """
        own = state.within("gradscale")
        policy, fields = own.within("policy"), own.within("state")
        if not own.held:
            # No policy beside it: torch's own scaler saved it, which backs off at once.
            settings = _settings(Entries({**state.held, "hysteresis": 1}))
        else:
            settings = _settings(Entries({**state.held, **policy.within("config").held}))
        left = fields.optional(lambda key: fields.count(key, least=-MOST), "hysteresis_tracker")
        return ScalerState(
            state.number("scale"),
            good_steps=state.count("_growth_tracker"),
            hysteresis_left=1 if left is None else max(1, left),
            settings=settings,
            unread=tuple(_unread(own, policy, fields)),
        )

    def write(self, state: ScalerState) -> Exported:
        """What `gradscale.GradScaler.load_state_dict` takes: no setting in it that is not known.

        Where the source knows no hysteresis, only torch's entries are written, and the scaler's own
        hysteresis starts full.
        """
        draft = Draft(state)
        draft.fixed(dynamic=True)
        known = {name: value for name, value in state.flat().items() if name in _SETTINGS}
        saved: StateDict = {
            "scale": draft.take("scale", 2.0**16),
            **{name: draft.take(name, 0) for name in _TORCH if name in known},
            "_growth_tracker": draft.take("good_steps", 0),
        }
        if draft.known("hysteresis", 2) == 1 or draft.known("hysteresis_left", 0) == 0:
            return draft.finish(saved)
        draft.keep(*known)
        own = {
            "version": 1,
            "policy": {"name": "Dynamic", "config": {"init_scale": saved["scale"], **known}},
            "state": {"hysteresis_tracker": draft.take("hysteresis_left", 1)},
        }
        return draft.finish({**saved, "gradscale": own})


def _settings(held: Entries) -> ScalerSettings:
    number, count = held.number, held.count
    refill = held.optional(lambda key: held.choice(key, get_args(Refill)), "hysteresis_refill")
    return ScalerSettings(
        dynamic=True,
        growth_factor=held.optional(number, "growth_factor"),
        backoff_factor=held.optional(number, "backoff_factor"),
        growth_interval=held.optional(count, "growth_interval"),
        hysteresis=held.optional(count, "hysteresis"),
        hysteresis_refill=cast("Refill | None", refill),
        min_scale=held.optional(number, "min_scale"),
        max_scale=held.optional(number, "max_scale"),
    )


def _unread(own: Entries, policy: Entries, fields: Entries) -> Iterator[str]:
    name = policy.held.get("name", "Dynamic")
    if name != "Dynamic":
        yield f"policy {shown(name)}" if not isinstance(name, str) else f"policy {name:.60}"
    config = policy.within("config").held
    if name != "Dynamic" or config.get("tolerance") or config.get("window_follows_scale"):
        yield from (f"state.{field:.60}" for field in fields.held if field not in _SHARED)
    yield from (name for name in ("counters", "layerwise") if own.held.get(name))
