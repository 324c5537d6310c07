"""What cannot be captured, said before the first step."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch

from gradscale.captured.compiled import can_compile_backward
from gradscale.half.registry import masters_of

Mode = Literal["cuda_graph", "compile", "eager"]


def check_mode(mode: Any) -> None:
    """Refuses an unknown mode.

    Raises:
        ValueError: if it is none of the three.
    """
    if mode not in get_args(Mode):
        raise ValueError(
            f"`CapturedStep(mode={mode!r})` must be 'cuda_graph', 'compile' or 'eager'. On a CPU "
            "use 'compile'; 'eager' captures nothing."
        )


def check_numbers(max_norm: float | None, micro_batches: int, warmup: int) -> None:
    """Refuses numbers that mean nothing.

    Raises:
        ValueError: if one is out of range.
    """
    if max_norm is not None and not max_norm >= 0:
        raise ValueError(
            f"`CapturedStep(max_norm={max_norm})` must be 0 or more; it bounds the unscaled "
            "gradients. Pass None to clip nothing."
        )
    for name, value in (("micro_batches", micro_batches), ("warmup", warmup)):
        if value < 1:
            raise ValueError(
                f"`CapturedStep({name}={value})` must be at least 1. Leave it out for the default."
            )


def check_cuda_graph(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Refuses what a CUDA graph cannot hold.

    Raises:
        RuntimeError: if the parameters are not on a CUDA device.
        ValueError: if the optimizer counts its steps on the host.
    """
    if device.type != "cuda":
        raise RuntimeError(
            f"`CapturedStep(mode='cuda_graph')`: the parameters are on {str(device)!r}. Move the "
            "model to a CUDA device before building the optimizer, or pass `mode='compile'`."
        )
    _check_counts("cuda_graph", optimizer)


def check_compile(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> None:
    """Refuses what one compiled graph cannot hold.

    Raises:
        RuntimeError: if this torch cannot compile a backward pass.
        ValueError: if the optimizer or the model does something outside of the graph.
    """
    call, name = "`CapturedStep(mode='compile')`", type(optimizer).__name__
    if not can_compile_backward():
        raise RuntimeError(
            f"{call}: torch {torch.__version__} does not compile backward passes; 2.13 does. "
            "Upgrade it, or pass `mode='cuda_graph'`."
        )
    if any(group.get("fused") for group in optimizer.param_groups):
        raise ValueError(
            f"{call}: torch.compile leaves fused optimizers out of its graphs. Build "
            f"`{name}(…, foreach=True)`: the compiler fuses it."
        )
    if device.type != "cpu":
        _check_counts("compile", optimizer)
    if masters_of(optimizer) is not None:
        raise ValueError(
            f"{call}: this {name} trains float32 masters of a half-precision model, outside of "
            "the graph. Pass `mode='cuda_graph'`, or train under autocast."
        )
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise ValueError(
            f"{call}: this {name} has step hooks, which would not run in the graph. Remove them, "
            "or pass `mode='cuda_graph'`, which records what they do on the device."
        )
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        raise ValueError(
            f"{call}: DistributedDataParallel reduces gradients in hooks of `backward()`, which "
            "this graph takes the place of. Pass `mode='cuda_graph'`."
        )


def check_outside_autocast(device: torch.device) -> None:
    """Refuses a step within autocast: weights cast before the capture would never change again.

    Raises:
        RuntimeError: if autocast is on.
    """
    if torch.is_autocast_enabled(device.type):
        raise RuntimeError(
            "`step(batch)` was called within `torch.autocast`, whose cache of cast weights "
            "outlives the capture. Enter autocast inside `loss_fn`."
        )


def _check_counts(mode: Mode, optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        if "capturable" in group and not (group["capturable"] or group.get("fused")):
            name = type(optimizer).__name__
            fused = " or with `fused=True`" if mode == "cuda_graph" else ""
            raise ValueError(
                f"`CapturedStep(mode={mode!r})`: this {name} counts its steps on the host. Build "
                f"it as `{name}(…, capturable=True)`{fused}."
            )
