"""A saved state read whole into new values and checked, before a scaler takes over any of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

import gradscale.policies
from gradscale.entries import Entries, shown
from gradscale.layerwise.saved_plans import SavedPlans, read_plans
from gradscale.outcomes.counters import Counters
from gradscale.policies.bits import MAX_FLOAT32, MIN_SCALE
from gradscale.policies.frozen import frozen
from gradscale.policies.policy import Policy, PolicyState
from gradscale.scaler.state import VERSION, Fields, describe

_MOST = 2**31 - 1  # of a tracker, which is an int32
_RANGES: dict[str, tuple[float, float]] = {
    "scale": (MIN_SCALE, MAX_FLOAT32),
    "growth_window": (1, _MOST),
    "mean": (-(2.0**10), 2.0**10),  # of log2 amax
    "slow_mean": (-(2.0**10), 2.0**10),
    "variance": (0.0, 2.0**20),
    "maximum": (0.0, MAX_FLOAT32),
    "recent": (-math.inf, 2.0**10),  # -inf where nothing has been recorded yet
}
"""What the fields of our policies' states may hold, by the end of their names: a policy within
another has a prefix. Other whole numbers count something; other numbers are not ours to judge."""


class SavedState(NamedTuple):
    """All that `GradScaler.state_dict` says, as values that fit the scaler.

    Attributes:
        policy: that goes on.
        fields: of its state, by name.
        counters: of steps; None if the state has none.
        plans: of a layer-wise scaler; None if the state has none.
        differing: settings that are not the scaler's own, as ``name=saved (here: value)``.
    """

    policy: Policy
    fields: Fields
    counters: Counters | None
    plans: SavedPlans | None
    differing: list[str]


def read_saved(saved: Mapping[str, object], policy: Policy, *, restore: bool) -> SavedState:
    """Reads what `state_dict` of this or of torch's scaler gave.

    Args:
        saved: the dictionary.
        policy: of the scaler.
        restore: whether the saved settings replace those of `policy`.

    Raises:
        RuntimeError: if `saved` is empty or has no scale.
        ValueError: if it is of a later version, its scale is unusable, or an entry does not fit.
        TypeError: if an entry is of another kind.
    """
    _check_scale_is_there(saved)
    held = Entries(saved, "state_dict")
    own = held.within("gradscale")
    version = own.count("version") if own.has("version") else VERSION
    if version > VERSION:
        raise ValueError(
            f"`load_state_dict` was given version {version}; this gradscale reads up to "
            f"{VERSION}. Upgrade it, or drop the key 'gradscale' to load what torch knows."
        )
    scale = _scale(held)
    described = own.entries("policy") if own.has("policy") else None
    if restore:
        policy = _torchs(held, policy) if described is None else _built(described)
    tracker = held.optional(lambda key: held.count(key, most=_MOST), "_growth_tracker") or 0
    fields: dict[str, object] = {"growth_tracker": tracker}
    if described is not None and described.held.get("name") == type(policy).__name__:
        fields |= own.within("state").held
    fields["scale"] = scale
    fitting = _fitting(policy.init(), Entries(fields, "state_dict['gradscale']['state']"))
    return SavedState(
        policy=policy,
        fields={"growth_tracker": tracker, **fitting},
        counters=_counters(own.entries("counters")) if own.has("counters") else None,
        plans=read_plans(own.entries("layerwise")) if own.has("layerwise") else None,
        differing=_differences(held, described, policy),
    )


def _check_scale_is_there(saved: Mapping[str, object]) -> None:
    if "scale" in saved:
        return
    looks = f"has the keys {shown(sorted(map(str, saved)))}"
    if not saved:
        looks = "is empty, as a scaler with enabled=False saves it"
    elif "param_groups" in saved:
        looks = "is an optimizer's"
    raise RuntimeError(
        f"`load_state_dict` was given a state dict without a scale: it {looks}. Load what "
        "`state_dict()` of an enabled scaler returned."
    )


def _scale(held: Entries) -> float:
    scale = held.number("scale")
    if not MIN_SCALE <= scale <= MAX_FLOAT32:
        raise ValueError(
            f"`load_state_dict({{'scale': {scale}}})` must have a finite scale of at "
            "least 2**-126; the run that saved it had collapsed. Replace it, say by 2.0**16."
        )
    return scale


def _torchs(held: Entries, policy: Policy) -> Policy:
    """The scaler's own policy with the settings that torch saves."""
    if not dataclasses.is_dataclass(policy):
        return policy
    names = {field.name for field in dataclasses.fields(policy)} - {"init_scale"}
    known = {name: value for name, value in held.held.items() if name in names}
    return cast(Policy, dataclasses.replace(policy, **known))


def _built(described: Entries) -> Policy:
    """The policy that a name and a configuration describe, policies within it included."""
    name, config = described.text("name"), described.entries("config")
    kind = getattr(gradscale.policies, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Policy)) or kind is Policy:
        raise ValueError(
            f"`load_state_dict(configuration='restore')` finds no policy {shown(name)} "
            "in `gradscale.policies`. Build the scaler with that policy and load with 'keep'."
        )
    fields = dataclasses.fields(cast(Any, kind))
    known = {field.name for field in fields}
    strange = [setting for setting in config.held if setting not in known]
    if strange:
        raise ValueError(
            f"`load_state_dict(configuration='restore')`: `{name}` has no setting "
            f"{shown(strange[0])}. Drop it from the state, or load with 'keep'."
        )
    required = [field.name for field in fields if _has_no_default(field)]
    missing = [setting for setting in required if setting not in config.held]
    if missing:
        raise ValueError(
            f"`load_state_dict(configuration='restore')`: `{name}` needs `{missing[0]}`, which the "
            "state does not have. Build the scaler with that policy and load with 'keep'."
        )
    settings = {
        setting: _built(config.entries(setting))
        if isinstance(value, Mapping) and "config" in value
        else frozen(value)
        for setting, value in config.held.items()
    }
    return kind(**settings)


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _differences(held: Entries, described: Entries | None, policy: Policy) -> list[str]:
    """The saved hyperparameters that differ from `policy`'s.

    The first scale is left out: once training has moved it, it is a setting no more.
    """
    mine = describe(policy)
    name = mine["name"] if described is None else described.text("name")
    if name != mine["name"]:
        return [f"policy={shown(name).strip(chr(39))} (here: {mine['name']})"]
    theirs = (held if described is None else described.entries("config")).held
    return [
        f"{setting}={_quoted(theirs[setting])} (here: {value})"
        for setting, value in mine["config"].items()
        if setting != "init_scale" and setting in theirs and not _same(theirs[setting], value)
    ]


def _same(one: object, other: object) -> bool:
    # Of two tensors `==` gives a tensor, which is neither true nor false.
    return not isinstance(one, Tensor) and bool(frozen(one) == other)


def _quoted(value: object) -> str:
    return f"{value}" if isinstance(value, bool | float | int) else shown(value).strip("'")


def _counters(held: Entries) -> Counters:
    within = held.within("reasons")
    reasons = {name: within.count(name) for name in within.held}
    return Counters(
        steps=held.count("steps"),
        skipped=held.count("skipped"),
        consecutive=held.count("consecutive"),
        reasons={name: count for name, count in reasons.items() if count},
        updates=held.optional(held.count, "updates") or 0,
    )


def _fitting(state: PolicyState, saved: Entries) -> Fields:
    """The saved fields that `state` has, each of its shape and within its range."""
    fields: Fields = {}
    for name, current in state._asdict().items():
        if not saved.has(name):
            continue
        if current.dim() == 0:
            fields[name] = _number(saved, name, whole=not current.is_floating_point())
        else:
            fields[name] = _numbers(saved, name, current)
    return fields


def _range(name: str) -> tuple[float, float] | None:
    ends = [known for known in _RANGES if name == known or name.endswith(f"_{known}")]
    return _RANGES[max(ends, key=len)] if ends else None


def _number(saved: Entries, name: str, *, whole: bool) -> float | int:
    _check_shape(saved, name, ())
    least, most = _range(name) or (None, None)
    if whole:
        return saved.count(name, int(least or 0), int(most or _MOST))
    return saved.number(name, least, most)


def _numbers(saved: Entries, name: str, current: Tensor) -> Tensor:
    _check_shape(saved, name, tuple(current.shape))
    values = torch.as_tensor(saved.held[name]).detach().to("cpu", torch.float64)
    least, most = _range(name) or (-math.inf, math.inf)
    if not bool(((values >= least) & (values <= most)).all()):
        raise ValueError(
            f"`{saved.name}[{name!r}]` has elements that do not lie between {least:g} and "
            f"{most:g}. Drop the entry: the policy then measures anew."
        )
    return values.to(current.dtype, copy=True)


def _check_shape(saved: Entries, name: str, shape: tuple[int, ...]) -> None:
    try:
        found = tuple(torch.as_tensor(saved.held[name]).shape)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        if not shape:
            return  # whoever takes the number says what it is instead
        raise TypeError(
            f"`{saved.name}[{name!r}]` is {shown(saved.held[name])}; it must be a tensor of shape "
            f"{shape}."
        ) from None
    if found != shape:
        raise ValueError(
            f"`load_state_dict`: the saved `{name}` has shape {found}, this policy's has {shape}. "
            "Build the scaler with the saved policy, or pass `configuration='restore'`."
        )
