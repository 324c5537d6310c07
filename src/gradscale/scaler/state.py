"""A scaler's state as plain values: a superset of torch's five keys that loads both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

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


def _dump(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return dump_state(value)
    return value.item() if value.dim() == 0 else value.detach().cpu().clone()
