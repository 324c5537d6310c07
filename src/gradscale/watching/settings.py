"""What `watch(…)` was called with, checked before anything is measured."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler as TorchScaler

from gradscale.argument_checks import check_switch, check_whole
from gradscale.ranks import check_process_group


def checked_model(model: object) -> nn.Module:
    """The model without the wrapper around the whole of it, whose name nobody wants to read.

    Raises:
        TypeError: if it is no module.
        ValueError: if it has nothing to train.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`watch({type(model).__name__})` needs a `torch.nn.Module`, whose parameters it gives "
            "rows. Pass the model, not its parameters or its optimizer."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"`watch({type(model).__name__}(…))`: no parameter of this model requires a gradient, "
            "so there is nothing to watch. Unfreeze some, or pass the model that is trained."
        )
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else model


def checked_scaler(scaler: object) -> TorchScaler | None:
    """The scaler, or what stands in for one.

    Raises:
        TypeError: if it is none.
    """
    # By what is used of it, so that a host's own will do.
    if scaler is None or (hasattr(scaler, "_scale") and hasattr(scaler, "is_enabled")):
        return cast("TorchScaler | None", scaler)
    raise TypeError(
        f"`watch(model, scaler={type(scaler).__name__})` needs a `gradscale.GradScaler` or a "
        "`torch.amp.GradScaler`, whose scale it divides by. Leave it out if the loss is not scaled."
    )


def check_rest(every: object, keep: object, activations: object, process_group: object) -> None:
    """Refuses what would measure never, or fail when ranks first meet.

    Raises:
        TypeError: if `activations` is no bool, or `process_group` stands for no ranks.
        ValueError: if a number of steps is no whole number of at least 1.
    """
    check_whole("watch", "every", every, 1, "To measure at every step, pass 1.")
    check_whole("watch", "keep", keep, 1, "A report is made of one step at least.")
    check_switch("watch", "activations", activations)
    check_process_group("watch", process_group)


def checked_exponent(at: object) -> int | None:
    """The exponent to judge at.

    Raises:
        ValueError: if it is no whole number.
    """
    if at is None or (isinstance(at, int) and not isinstance(at, bool)):
        return at
    raise ValueError(
        f"`watch.report(at={at!r})` must be the exponent of a scale, a whole number: 16 for a loss "
        "scale of 65536. Leave it out for the scales that the gradients had."
    )


def live_scale(scaler: TorchScaler | None) -> float | torch.Tensor:
    """The scaler's scale where it is, on the device; 1 without a scaler or before its first use."""
    if scaler is None or not scaler.is_enabled() or scaler._scale is None:
        return 1.0
    return scaler._scale


def corrects(scaler: object) -> bool:
    """Whether it is a scaler of ours that multiplies what users' functions add by its scale."""
    held = getattr(scaler, "_held", None)
    return held is not None and held.functions.injected == "scale"


def holds_sums(scaler: object) -> bool:
    """Whether a scaler of ours holds sums of micro-batches that are no step yet."""
    step = getattr(scaler, "_step", None)
    records = () if step is None else step.records.values()
    return any(getattr(record, "sums", None) is not None for record in records)
