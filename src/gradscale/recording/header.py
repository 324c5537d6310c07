"""The first line of a recording: what run it is."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import cast

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler as TorchScaler

from gradscale.files.json_text import Json
from gradscale.formats import FloatFormat
from gradscale.policies.dynamic import Dynamic
from gradscale.policies.policy import Policy
from gradscale.recording.schema import VERSION
from gradscale.scaler import GradScaler
from gradscale.scaler.state import describe, dump_state
from gradscale.version import __version__


def header(
    scaler: TorchScaler | None, format: str, measure_every: int | None, note: Mapping[str, object]
) -> dict[str, object]:
    """The line that begins a recording. Reads the scaler's state, once.

    Args:
        scaler: whose steps are recorded; None for a run without one.
        format: what its gradients are stored in.
        measure_every: steps between two measurements; None without a watch.
        note: the user's own.
    """
    line: dict[str, object] = {
        "kind": "run",
        "version": VERSION,
        "gradscale": __version__,
        "torch": str(torch.__version__),
        "started": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "format": format,
    }
    line |= {"scaler": None, "policy": None, "state": None, "layerwise": None}
    if isinstance(scaler, GradScaler):
        line |= _ours(scaler)
    elif scaler is not None:
        line |= _torch(scaler)
    return line | {"measure_every": measure_every, "note": dict(note)}


def _ours(scaler: GradScaler) -> dict[str, object]:
    planner = scaler.layerwise
    return {
        "scaler": "gradscale.GradScaler",
        "policy": json_words(describe(scaler.policy)),
        "state": _state(scaler.policy, scaler.state_dict()["gradscale"]["state"]),
        "layerwise": None if planner is None else repr(planner.planner),
    }


def _torch(scaler: TorchScaler) -> dict[str, object]:
    saved = scaler.state_dict()
    # torch counts outside of its settings; ours in the policy's state.
    tracker = saved.pop("_growth_tracker")
    # What is left of torch's state are its settings, by the names that ours have.
    policy = Dynamic(init_scale=saved.pop("scale"), **saved)
    return {
        "scaler": "torch.amp.GradScaler",
        "policy": json_words(describe(policy)),
        "state": _state(policy, {**dump_state(policy.init()), "growth_tracker": tracker}),
    }


def _state(policy: Policy, fields: Mapping[str, object]) -> Json:
    """Where the policy stands; None if it stands at its beginning."""
    # As JSON has it: a restored state holds tensors where a fresh one has numbers.
    now = json_words(fields)
    return None if now == json_words(dump_state(policy.init())) else now


def json_words(value: object) -> Json:
    """`value` in words of JSON: formats by name, tensors as lists.

    Example:
        >>> json_words({"format": torch.float16, "scale": torch.tensor([2.0])})
        {'format': 'fp16', 'scale': [2.0]}
    """
    if isinstance(value, torch.dtype | FloatFormat):
        return FloatFormat.of(value).name
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): json_words(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_words(part) for part in value]
    return cast("Json", value)
