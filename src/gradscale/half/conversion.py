"""`half_precision`: a model in half precision and an optimizer on float32 masters, in place."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast, overload

import torch
from torch import nn
from torch.optim import Optimizer

from gradscale.argument_checks import check_switch, format_given
from gradscale.half.half_model import HalfPrecision
from gradscale.half.kept import Keep, kept_of
from gradscale.half.refusals import (
    check_fits,
    check_gradients,
    check_kinds,
    check_model,
    check_sharding,
)
from gradscale.half.rounding import HALVES


def half_precision(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    format: torch.dtype | str = torch.float16,
    keep: Keep | Collection[Keep] | None = (),
    *,
    gradients: torch.dtype | str | None = None,
    saturate: bool = False,
) -> HalfPrecision:
    """Turns a model into half precision, and its optimizer to float32 master weights, in place.

        parameters, gradients, activations      half precision
        normalisation layers, what `keep` names float32; inputs and outputs are cast
        optimizer.param_groups, its state       float32 masters in the place of the parameters
        optimizer.step()                        gradients to the masters, update, weights back

    The loop stays: `scaler.scale(loss).backward()`, `scaler.step(optimizer)`, `scaler.update()`. A
    plain forward pass works without autocast; the model returns float32.

    Args:
        model: in float32, or half already: masters then begin at its values. Wrap it in DDP
            afterwards; apply FSDP2 (`fully_shard`) before.
        optimizer: any torch optimizer of its parameters, or several.
        format: `torch.float16`, or `torch.bfloat16`, which needs no loss scaling; or a name of
            either, such as ``"bf16"``.
        keep: what else stays in float32: names or patterns of modules, parameters and buffers,
            modules, their classes, predicates `(name, module) -> bool`, or a collection of these.
        gradients: the dtype in which backward passes accumulate; None for `format`. In
            `torch.float32` micro-batches are summed exactly, and any scaler and clipping works.
        saturate: clamp weights to the largest finite value, as OpenSeq2Seq does. By default one
            beyond it is refused here, and one that leaves the range later becomes infinite.

    Returns:
        The pair's `HalfPrecision`: float32 weights, averages, and the way back.

    Raises:
        TypeError: if something else is given in the place of model, optimizer or `keep`.
        ValueError: if a format, a name in `keep` or a weight's range does not fit.
        RuntimeError: if the model is wrapped already, or gradients are pending.

    Example:
        >>> import gradscale
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> gradscale.half_precision(model, optimizer)
        HalfPrecision(float16: 4 parameters with float32 masters, 2 in float32)
        >>> scaler = gradscale.GradScaler("cpu")
        >>> scaler.scale(model(torch.ones(2, 4)).square().mean()).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()
        >>> model[0].weight.dtype, optimizer.param_groups[0]["params"][0].dtype
        (torch.float16, torch.float32)
    """
    check_switch("half_precision", "saturate", saturate)
    format, gradients = _dtype("format", format), _dtype("gradients", gradients)
    if format not in HALVES:
        raise ValueError(
            f"`half_precision(format={format})` must be torch.float16 or torch.bfloat16."
        )
    if gradients not in (None, format, torch.float32):
        raise ValueError(
            f"`half_precision(gradients={gradients})` must be {format} or torch.float32."
        )
    optimizers = check_kinds(model, optimizer)
    # What `torch.compile` returns holds the model itself, whose modules are converted.
    model = cast(nn.Module, getattr(model, "_orig_mod", model))
    check_model(model, optimizers)
    kept = kept_of(model, keep)
    check_gradients(optimizers)
    check_fits(model, format, kept.tensors, saturate=saturate)
    check_sharding(model, format, kept.tensors)
    return HalfPrecision(model, optimizers, format, keep, kept, gradients or format, saturate)


@overload
def _dtype(name: str, format: torch.dtype | str) -> torch.dtype: ...
@overload
def _dtype(name: str, format: None) -> None: ...
@overload
def _dtype(name: str, format: torch.dtype | str | None) -> torch.dtype | None: ...
def _dtype(name: str, format: torch.dtype | str | None) -> torch.dtype | None:
    """What a name stands for; an 8-bit one for a dtype that is refused."""
    if not isinstance(format, str):
        return format
    return format_given("half_precision", name, format).dtype
