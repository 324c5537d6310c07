"""Who chooses the loss scale, by the name that the user types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch.amp.grad_scaler import GradScaler as TorchScaler

from gradscale.plans import Adaptive, Planner, Windows
from gradscale.policies import Guarded, Policy, Recovering, Static
from gradscale.policies.by_name import BY_NAME, POLICIES
from gradscale.scaler import GradScaler

# Planners, which give every part of the network its own scale.
PLANNERS: dict[str, Callable[[], Planner]] = {
    "layerwise": Windows,
    "adaptive": Adaptive,
}
# What a comparison shows: no scaling, every policy, a scale per layer, torch's own as a peer.
COMPARED = ("none", *POLICIES, "layerwise", "torch")
# What is left out there: a policy that is `Dynamic` above 1, a rule for plans, others' defaults.
BESIDE = ("recovering", "adaptive")
SYSTEMS = tuple(name for name in BY_NAME if name not in (*POLICIES, *BESIDE, "torch"))
SCALINGS = (*COMPARED, *BESIDE, *SYSTEMS)


class Outcome(NamedTuple):
    """What happened to one optimizer step."""

    scale: float
    skipped: bool
    reason: str | None


def make_policy(name: str, init_scale: float | None, format: str = "fp16") -> Policy:
    """The policy or preset of that name.

    Args:
        name: one of `POLICIES` or `SYSTEMS`, or ``"recovering"``.
        init_scale: replaces its first scale, unless None.
        format: what the gradients are stored in, for policies that ask.

    Raises:
        ValueError: if the policy does not allow this first scale.

    Example:
        >>> make_policy("deepspeed", init_scale=2.0**20).init_scale
        1048576.0
    """
    return _adapted(BY_NAME[name], init_scale, format)


def _adapted(policy: Policy, init_scale: float | None, format: str) -> Policy:
    if isinstance(policy, Recovering):
        return replace(policy, policy=_adapted(policy.policy, init_scale, format))
    if isinstance(policy, Guarded):
        inner = _adapted(policy.policy, init_scale, format)
        guard = policy.guard if init_scale is None else replace(policy.guard, init_scale=init_scale)
        return Guarded(inner, guard)
    changes: dict[str, object] = {}
    if init_scale is not None:
        changes["scale" if isinstance(policy, Static) else "init_scale"] = init_scale
    if "format" in {field.name for field in fields(policy)}:  # pyright: ignore[reportArgumentType]
        changes["format"] = format
    return replace(policy, **changes)  # pyright: ignore[reportArgumentType, reportUnknownVariableType]


def make_scaler(
    name: str, device: str, init_scale: float | None, format: str = "fp16"
) -> TorchScaler | None:
    """The scaler of that name; None for ``none``."""
    kind = torch.device(device).type
    if name == "none":
        return None
    if name == "torch":
        return TorchScaler(kind, init_scale=2.0**16 if init_scale is None else init_scale)
    if name in PLANNERS:
        # The plan sets the scale; the policy is what backs off where the plan was wrong.
        guard = make_policy("dynamic", init_scale)
        return GradScaler(kind, policy=guard, layerwise=PLANNERS[name]())
    return GradScaler(kind, policy=make_policy(name, init_scale, format))


def outcome(scaler: TorchScaler, optimizer: torch.optim.Optimizer, scale: float) -> Outcome:
    """What `scaler` did to the step just taken at `scale`; call it before `update()`.

    torch's scaler does not say why it skipped; its only reason is ``overflow``.
    """
    if isinstance(scaler, GradScaler):
        last = scaler.last_step
        return Outcome(scale, last.skipped, last.reason)
    # Read before `update()`, which clears the flags.
    found = scaler._found_inf_per_device(optimizer).values()
    skipped = any(bool(flag.item()) for flag in found)
    return Outcome(scale, skipped, "overflow" if skipped else None)
