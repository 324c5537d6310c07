"""`attach`: one line that puts a scaler into a trainer or engine, whichever it is."""

from __future__ import annotations

import importlib
from typing import Any

from gradscale.integrations.attachment import Attachment
from gradscale.integrations.hosts import HOSTS, HostKind, kind_of
from gradscale.integrations.wanted import WantedScaler
from gradscale.scaler import GradScaler


def attach(host: Any, scaler: GradScaler | None = None, **scaler_arguments: Any) -> Attachment:
    """Puts a `GradScaler` into a trainer or engine, before or after it has prepared its model.

    The host goes on calling its scaler as it did; what it derives from it (clipping, the schedule,
    its skip flag, its checkpoint) is made right where it was not. Nothing is imported that is not
    there already.

    Args:
        host: an `Accelerator`, a Transformers `Trainer`, or another of docs/integrations.
        scaler: one that is there already; None makes one for the host's device.
        scaler_arguments: of `GradScaler`: ``layerwise=True``, ``policy=``, …

    Returns:
        What was done, in words, with the scaler; its `detach` undoes it.

    Raises:
        TypeError: if the host is of no kind that is known, or scales no loss.
        ValueError: if both a scaler and arguments of one are given, or the host trains in a format
            that needs no scaler.
        RuntimeError: if there is one of ours in the host already.

    Example:
        >>> import gradscale
        >>> from torch import nn
        >>> gradscale.attach(nn.Linear(2, 1))
        Traceback (most recent call last):
        ...
        TypeError: `attach(Linear)` is a model, ...
    """
    if scaler is not None and scaler_arguments:
        raise ValueError(
            f"`attach(…, scaler, {', '.join(f'{name}=…' for name in scaler_arguments)})` says the "
            "same thing twice. Give those to the scaler, or leave the scaler out."
        )
    if scaler is not None and not isinstance(scaler, GradScaler):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"`attach(…, scaler={type(scaler).__name__}(…))` must be a `gradscale.GradScaler`. "
            "Leave it out to have one made."
        )
    kind = kind_of(host)
    if kind is None:
        raise TypeError(_unknown(host))
    # Names no package but our own; this one imports the host, which is there.
    module = importlib.import_module(f"gradscale.integrations.{kind.module}")
    return getattr(module, kind.function)(host, WantedScaler(scaler, scaler_arguments))


def _unknown(host: Any) -> str:
    call = f"`attach({type(host).__name__})`"
    bases = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(host).__mro__}
    if "torch.nn.modules.module.Module" in bases:
        return (
            f"{call} is a model, and whoever trains it has the scaler. In a loop of your own write "
            "`scaler = gradscale.GradScaler(device)`; else attach to the trainer."
        )
    if "torch.optim.optimizer.Optimizer" in bases:
        return (
            f"{call} is an optimizer. In a loop of your own write `scaler.step(optimizer)` with a "
            "`gradscale.GradScaler`; else attach to the trainer."
        )
    known = ", ".join(dict.fromkeys(_named(kind) for kind in HOSTS))
    return (
        f"{call} is no trainer that is known here. Known are: {known}. If yours has an attribute "
        "that holds a `torch.amp.GradScaler`, assign a `gradscale.GradScaler` to it, which is one."
    )


def _named(kind: HostKind) -> str:
    return f"{kind.package}.{kind.name}"
