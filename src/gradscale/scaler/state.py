"""A scaler's state as plain values: a superset of torch's five keys that loads both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import Tensor

from gradscale.policies.policy import Policy, PolicyState

VERSION = 1
"""Raised when a saved state changes its meaning."""

Fields = dict[str, Tensor | float | int]
"""Of a policy's state, by name: a number, or a tensor where the field has dimensions."""


class Description(TypedDict):
    """A policy as its name and its configuration."""

    name: str
    config: dict[str, object]


def describe(policy: Policy) -> Description:
    """A policy as its name and configuration, policies within policies included."""
    config: dict[str, object] = {}
    if dataclasses.is_dataclass(policy):
        for field in dataclasses.fields(policy):
            value = getattr(policy, field.name)
            config[field.name] = describe(value) if isinstance(value, Policy) else value
    return {"name": type(policy).__name__, "config": config}


def dump_state(state: PolicyState) -> Fields:
    """A policy state as numbers, and CPU tensors where fields have dimensions. Host read."""
    return {
        name: value.item() if value.dim() == 0 else value.detach().cpu().clone()
        for name, value in state._asdict().items()
    }


def fill_state_(state: PolicyState, fields: Mapping[str, object]) -> None:
    """Writes saved fields into a policy state in place; fields that only one side has are left."""
    for name, current in state._asdict().items():
        if name in fields:
            current.copy_(torch.as_tensor(fields[name], dtype=current.dtype, device=current.device))


def copy_state_(state: PolicyState, after: PolicyState) -> None:
    """Overwrites the tensors of a policy state by those of another."""
    for old, new in zip(state, after, strict=True):
        if old is not new:
            old.copy_(new)
