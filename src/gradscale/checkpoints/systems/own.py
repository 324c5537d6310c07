"""gradscale's own: torch's five entries, and one more with the policy and its whole state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradscale.checkpoints.draft import Draft, Exported
from gradscale.checkpoints.layout import Layout, Saved, has
from gradscale.checkpoints.state import ScalerSettings, ScalerState
from gradscale.checkpoints.systems import torch_amp
from gradscale.checkpoints.values import read_count
from gradscale.policies.dynamic import Dynamic

_SHARED = ("scale", "growth_tracker", "hysteresis_tracker")
_SETTINGS = (
    "growth_factor",
    "backoff_factor",
    "growth_interval",
    "hysteresis",
    "hysteresis_refill",
    "min_scale",
    "max_scale",
)


def recognizes(state: Saved) -> bool:
    """True for `gradscale.GradScaler.state_dict()`."""
    return has(state, "gradscale", *torch_amp.KEYS)


def read(state: Saved) -> ScalerState:
    """The state of `gradscale.GradScaler.state_dict()`.

    Only `Dynamic` has counterparts elsewhere; what other policies keep is listed as unread.
    """
    plain = torch_amp.read(state)
    if not has(state, "gradscale"):
        return plain
    own: Mapping[str, Any] = state["gradscale"]
    policy, fields = own.get("policy", {}), own.get("state", {})
    dynamic = policy.get("name") == "Dynamic"
    unread = [] if dynamic else [f"policy {policy.get('name')}"]
    if not dynamic or policy.get("tolerance") or policy.get("window_follows_scale"):
        unread += [f"state.{name}" for name in fields if name not in _SHARED]
    unread += ["counters"] if own.get("counters") else []
    if not has(fields, "hysteresis_tracker"):
        return ScalerState(plain.scale, plain.good_steps, unread=tuple(unread))
    settings = {name: policy.get(name, state.get(name)) for name in _SETTINGS}
    return ScalerState(
        plain.scale,
        good_steps=plain.good_steps,
        hysteresis_left=max(1, read_count(fields, "hysteresis_tracker")),
        settings=ScalerSettings(True, **settings),
        unread=tuple(unread),
    )


def write(state: ScalerState) -> Exported:
    """What `gradscale.GradScaler.load_state_dict` takes, with the settings that are known.

    Without ``configuration="restore"`` the scaler keeps its own settings. Where the source knows no
    hysteresis, only torch's part is written, and the scaler's own starts full.
    """
    draft = Draft(state)
    draft.fixed(dynamic=True)
    saved = torch_amp.entries(draft)
    if draft.known("hysteresis", 2) == 1 or draft.known("hysteresis_left", 0) == 0:
        return draft.finish(saved)
    # The other counters of a Dynamic start where its own start.
    start = Dynamic(
        growth_interval=saved["growth_interval"], hysteresis=draft.known("hysteresis", 1)
    )
    fields = {name: value.item() for name, value in start.init()._asdict().items()}
    fields |= {
        "scale": saved["scale"],
        "growth_tracker": saved["_growth_tracker"],
        "hysteresis_tracker": draft.take("hysteresis_left", 1),
    }
    known = {name: value for name, value in state.flat().items() if name in _SETTINGS}
    draft.keep(*known)
    own = {"version": 1, "policy": {"name": "Dynamic", **known}, "state": fields}
    return draft.finish({**saved, "gradscale": own})


LAYOUT = Layout("gradscale", recognizes, read, write)
