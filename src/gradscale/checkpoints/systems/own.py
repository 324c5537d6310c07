"""gradscale's own: torch's five entries, and one more with the policy and its whole state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, final

from gradscale.checkpoints.draft import Draft, Exported
from gradscale.checkpoints.layout import Layout, Saved, has
from gradscale.checkpoints.state import ScalerSettings, ScalerState
from gradscale.checkpoints.values import read_count, read_float

_SHARED = ("scale", "growth_tracker", "hysteresis_tracker")
_TORCH = ("growth_factor", "backoff_factor", "growth_interval")
_SETTINGS = (
    *_TORCH,
    "hysteresis",
    "hysteresis_refill",
    "min_scale",
    "max_scale",
)


@final
class Own(Layout):
    """`gradscale.GradScaler.state_dict()`."""

    name = "gradscale"

    def recognizes(self, state: Saved) -> bool:
        """True for `gradscale.GradScaler.state_dict()`."""
        return has(state, "gradscale", "scale")

    def read(self, state: Saved) -> ScalerState:
        """The state of `gradscale.GradScaler.state_dict()`.

        Only `Dynamic` has counterparts elsewhere; what other policies keep is listed as unread.
        """
        own: Mapping[str, Any] = state.get("gradscale", {})
        policy, fields = own.get("policy", {"name": "Dynamic"}), own.get("state", {})
        config: Saved = policy.get("config", {})
        known = {name: config.get(name, state.get(name)) for name in _SETTINGS}
        if not own:
            known["hysteresis"] = 1
        left = read_count(fields, "hysteresis_tracker") if "hysteresis_tracker" in fields else 1
        return ScalerState(
            read_float(state, "scale"),
            good_steps=read_count(state, "_growth_tracker"),
            hysteresis_left=max(1, left),
            settings=ScalerSettings(True, **known),
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
        saved: dict[str, Any] = {
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


def _unread(own: Saved, policy: Saved, fields: Saved) -> Iterator[str]:
    dynamic = policy.get("name") == "Dynamic"
    if not dynamic:
        yield f"policy {policy.get('name')}"
    config: Saved = policy.get("config", {})
    if not dynamic or config.get("tolerance") or config.get("window_follows_scale"):
        yield from (f"state.{name}" for name in fields if name not in _SHARED)
    yield from (name for name in ("counters", "layerwise") if own.get(name))
