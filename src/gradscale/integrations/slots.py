"""Hosts that keep their scaler in an attribute: another one is put there."""

from __future__ import annotations

from typing import cast

import torch

from gradscale.integrations.attachment import Attachment
from gradscale.integrations.hosts import HostKind, kind_of
from gradscale.integrations.wanted import WantedScaler, device_of
from gradscale.scaler import GradScaler


def attach_slots(host: object, wanted: WantedScaler) -> Attachment:
    """Puts a scaler into each slot of the host's kind; several slots get a scaler each.

    Raises:
        RuntimeError: if one of ours is there already.
        ValueError: if the host has no scaler there, or one that is switched off.
    """
    kind = cast(HostKind, kind_of(host))  # there, or nobody would have come here
    slots, half = kind.slots, kind.half
    found = [(path, *_slot(host, path, half)) for path in slots]
    scalers = {path: check_slot(host, getattr(o, name), half, wanted) for path, o, name in found}
    attachment = Attachment(host, *scalers.values())
    for path, owner, name in found:
        attachment.put(owner, name, scalers[path], say=path)
    return attachment


def check_slot(host: object, before: object, half: str, wanted: WantedScaler) -> GradScaler:
    """The scaler for a slot, unless it is taken or the host trains in another format."""
    name = type(host).__name__
    if isinstance(before, GradScaler):
        raise RuntimeError(
            f"`attach({name})`: there is a `gradscale.GradScaler` in it already. Call `detach()` "
            "of that attachment first."
        )
    # Without a GPU torch's scaler is off whatever the host wanted of it.
    if isinstance(before, torch.amp.GradScaler) and torch.accelerator.is_available():
        if not before.is_enabled():
            raise ValueError(without_half(name, half))
    return wanted.build(device_of(host))


def without_half(name: str, half: str) -> str:
    """What is said of a host that does not train in float16."""
    way_out = f" Have it do so with {half}." if half else ""
    return (
        f"`attach({name})`: it does not train in float16, and nothing else needs a loss "
        f"scale.{way_out}"
    )


def _slot(host: object, path: str, half: str) -> tuple[object, str]:
    """The object that has the slot, and its name there."""
    *way, name = path.split(".")
    owner = host
    for step in way:
        owner = getattr(owner, step, None)
    if not hasattr(owner, name):
        raise ValueError(
            f"{without_half(type(host).__name__, half)} (There is no `{path}`: if it makes it "
            "later, attach then.)"
        )
    return owner, name
