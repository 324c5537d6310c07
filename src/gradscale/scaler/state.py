"""A scaler's state as plain values: a superset of torch's five keys that loads both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

import gradscale.policies
from gradscale.policies.bits import MIN_SCALE
from gradscale.policies.policy import Policy

VERSION = 1
"""Raised when a saved state changes its meaning."""


def describe(policy: Policy) -> dict[str, Any]:
    """A policy as its name and configuration, policies within policies included."""
    config: dict[str, Any] = {}
    if dataclasses.is_dataclass(policy):
        for field in dataclasses.fields(policy):
            value = getattr(policy, field.name)
            config[field.name] = describe(value) if isinstance(value, Policy) else value
    return {"name": type(policy).__name__, "config": config}


def restored_policy(saved: Mapping[str, Any], policy: Policy) -> Policy:
    """The policy with the saved configuration, whether gradscale or torch saved it.

    Raises:
        ValueError: if `gradscale.policies` has no policy of the saved name.
    """
    own = saved.get("gradscale")
    if own is not None:
        return _build(own["policy"])
    if not dataclasses.is_dataclass(policy):
        return policy
    names = {field.name for field in dataclasses.fields(policy)} - {"init_scale"}
    known = {name: value for name, value in saved.items() if name in names}
    return cast(Policy, dataclasses.replace(policy, **known))


def differences(saved: Mapping[str, Any], policy: Policy) -> list[str]:
    """The saved hyperparameters that differ from `policy`'s, as ``name=saved (here: value)``.

    The first scale is left out: once training has moved it, it is a setting no more.
    """
    mine = describe(policy)
    own = saved.get("gradscale")
    theirs = {"name": mine["name"], "config": saved} if own is None else own["policy"]
    if theirs["name"] != mine["name"]:
        return [f"policy={theirs['name']} (here: {mine['name']})"]
    return [
        f"{name}={theirs['config'][name]} (here: {value})"
        for name, value in mine["config"].items()
        if name != "init_scale" and name in theirs["config"] and theirs["config"][name] != value
    ]


def dump_state(state: Any) -> dict[str, Any]:
    """A policy state as numbers, and CPU tensors where fields have dimensions. Host read."""
    return {name: _dump(value) for name, value in state._asdict().items()}


def fill_state_(state: Any, fields: Mapping[str, Any]) -> None:
    """Writes saved fields into a policy state in place; fields that only one side has are left."""
    for name, current in state._asdict().items():
        if name not in fields:
            continue
        if isinstance(current, Tensor):
            current.copy_(torch.as_tensor(fields[name], dtype=current.dtype, device=current.device))
        else:
            fill_state_(current, fields[name])


def copy_state_(state: Any, after: Any) -> None:
    """Overwrites the tensors of a policy state by those of another."""
    for old, new in zip(state, after, strict=True):
        if not isinstance(old, Tensor):
            copy_state_(old, new)
        elif old is not new:
            old.copy_(new)


def check_saved(saved: Mapping[str, Any], state: Any, policy: Policy) -> dict[str, Any]:
    """The saved fields that fit `state`, which a scaler may then take over.

    Raises:
        RuntimeError: if `saved` is empty or has no scale.
        ValueError: if it is of a later version, its scale is unusable, or a field does not fit.
    """
    if "scale" not in saved:
        looks = f"has the keys {sorted(map(str, saved))}"
        if not saved:
            looks = "is empty, as a scaler with enabled=False saves it"
        elif "param_groups" in saved:
            looks = "is an optimizer's"
        raise RuntimeError(
            f"`load_state_dict` was given a state dict without a scale: it {looks}. Load what "
            "`state_dict()` of an enabled scaler returned."
        )
    own = saved.get("gradscale", {})
    if own.get("version", VERSION) > VERSION:
        raise ValueError(
            f"`load_state_dict` was given version {own['version']}; this gradscale reads up to "
            f"{VERSION}. Upgrade it, or drop the key 'gradscale' to load what torch knows."
        )
    if not MIN_SCALE <= saved["scale"] <= torch.finfo(torch.float32).max:
        raise ValueError(
            f"`load_state_dict({{'scale': {saved['scale']}}})` must have a finite scale of at "
            "least 2**-126; the run that saved it had collapsed. Replace it, say by 2.0**16."
        )
    fields: dict[str, Any] = {"growth_tracker": saved.get("_growth_tracker", 0)}
    if own.get("policy", {}).get("name") == type(policy).__name__:
        fields |= own["state"]
    fields["scale"] = saved["scale"]
    _check_shapes(state, fields)
    return fields


def _check_shapes(state: Any, fields: Mapping[str, Any]) -> None:
    for name, current in state._asdict().items():
        if name not in fields:
            continue
        if not isinstance(current, Tensor):
            _check_shapes(current, fields[name])
        elif torch.as_tensor(fields[name]).shape != current.shape:
            raise ValueError(
                f"`load_state_dict`: the saved `{name}` has shape "
                f"{tuple(torch.as_tensor(fields[name]).shape)}, this policy's has "
                f"{tuple(current.shape)}. Build the scaler with the saved policy, or pass "
                "`configuration='restore'`."
            )


def _dump(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return dump_state(value)
    return value.item() if value.dim() == 0 else value.detach().cpu().clone()


def _build(description: Mapping[str, Any]) -> Policy:
    kind = getattr(gradscale.policies, description["name"], None)
    if not (isinstance(kind, type) and issubclass(kind, Policy)):
        raise ValueError(
            f"`load_state_dict(configuration='restore')` finds no policy {description['name']!r} "
            "in `gradscale.policies`. Build the scaler with that policy and load with 'keep'."
        )
    config = {
        name: _build(value) if isinstance(value, Mapping) and "config" in value else value
        for name, value in description["config"].items()
    }
    return kind(**config)
