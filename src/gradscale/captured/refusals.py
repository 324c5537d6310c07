"""What cannot be captured, said before the first step."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import torch

from gradscale.argument_checks import check_whole
from gradscale.captured.compiled import can_compile_backward
from gradscale.gradients.master_weights import masters_of, trained_by
from gradscale.scaler.settings import check_real

Mode = Literal["cuda_graph", "compile", "eager"]


def check_mode(mode: object) -> None:
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
        TypeError: if `max_norm` is no number.
        ValueError: if one is out of range, or no whole number.
    """
    if max_norm is not None:
        check_real("CapturedStep", "max_norm", max_norm)
        if not max_norm >= 0:
            raise ValueError(
                f"`CapturedStep(max_norm={max_norm})` must be 0 or more; it bounds the unscaled "
                "gradients. Pass None to clip nothing."
            )
    for name, value in (("micro_batches", micro_batches), ("warmup", warmup)):
        check_whole("CapturedStep", name, value, 1, "Leave it out for the default.")


def check_arguments(model: object, loss_fn: object, optimizer: object) -> None:
    """Refuses what does not make one training step together.

    Raises:
        TypeError: if one of the three is something else.
        ValueError: if the optimizer evaluates the loss itself, or trains nothing of the model.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"`CapturedStep(model=…)` was given a {type(model).__name__}, and takes a "
            "`torch.nn.Module`. Put several modules into a `torch.nn.ModuleDict`."
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"`CapturedStep(optimizer=…)` was given a {type(optimizer).__name__}, and takes one "
            "`torch.optim.Optimizer`. Give one optimizer several parameter groups, or step several "
            "with `gradscale.GradScaler`."
        )
    if not callable(loss_fn):
        raise TypeError(
            f"`CapturedStep(loss_fn=…)` was given a {type(loss_fn).__name__}. Pass a function: "
            "`loss_fn(model, batch)` returns the loss."
        )
    name = type(optimizer).__name__
    if _needs_closure(optimizer):
        raise ValueError(
            f"`CapturedStep(optimizer={name}(…))`: its `step` needs a closure, to evaluate the "
            "loss as often as it likes, and a captured step evaluates it once. Use "
            "`gradscale.GradScaler` and `scaler.step(optimizer, closure)`."
        )
    trained = [p for p in trained_by(optimizer) if p.requires_grad]
    if not trained:
        raise ValueError(
            f"`CapturedStep(optimizer={name}(…))`: none of its parameters requires a gradient. "
            "Unfreeze one with `requires_grad_()`."
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for parameter in trained):
        raise ValueError(
            f"`CapturedStep(model, loss_fn, {name}(…))`: the optimizer trains none of the model's "
            "parameters. Build it from `model.parameters()`, after anything that replaces them."
        )


def check_cuda_graph(
    optimizer: torch.optim.Optimizer, device: torch.device, *, layerwise: bool = False
) -> None:
    """Refuses what a CUDA graph cannot hold.

    Raises:
        RuntimeError: if the parameters are not on a CUDA device.
        ValueError: if the optimizer counts its steps on the host, or a plan would give its
            parameters exponents of their own.
    """
    if layerwise and masters_of(optimizer) is not None:
        # The host divides them by exponents that change with the plan, and a graph keeps numbers.
        raise ValueError(
            "`CapturedStep(mode='cuda_graph', layerwise=…)`: this "
            f"{type(optimizer).__name__} trains float32 masters of a half-precision model, whose "
            "gradients keep exponents of their own. Train under autocast, or in a loop of your own "
            "with `GradScaler(layerwise=True)` and `torch.compile(model)`."
        )
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
    wrapper = _wrapper_in(model)
    if wrapper is not None:
        raise ValueError(
            f"{call}: {wrapper} reduces gradients in hooks of `backward()`, which this graph takes "
            "the place of. Pass `mode='cuda_graph'`, or use `gradscale.GradScaler` in a loop of "
            "your own."
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


def check_gradients_on() -> None:
    """Refuses a step that could run no backward pass.

    Raises:
        RuntimeError: under `torch.no_grad()` or `torch.inference_mode()`.
    """
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "`step(batch)` was called under `torch.no_grad()` or `torch.inference_mode()`, and "
            "runs a backward pass. Call it outside of them."
        )


def check_saved_step(state: object, parameters: int) -> None:
    """Refuses what was not saved by a captured step, before anything is loaded.

    Raises:
        ValueError: if it has other keys, or is of an optimizer with more or fewer parameters.
    """
    entries = cast(Mapping[str, Any], state) if isinstance(state, Mapping) else {}
    missing = [key for key in ("scaler", "steps", "trained", "requires_grad") if key not in entries]
    if missing and "scale" in entries:
        raise ValueError(
            "`load_state_dict(state)` was given the state of a scaler. Pass what "
            "`CapturedStep.state_dict()` returned, or load it with "
            "`step.scaler.load_state_dict(state)`."
        )
    if missing:
        raise ValueError(
            f"`load_state_dict(state)`: {', '.join(map(repr, missing))} missing. Pass what "
            "`CapturedStep.state_dict()` returned."
        )
    saved = len(entries["requires_grad"])
    if entries["trained"] is not None and saved != parameters:
        raise ValueError(
            f"`load_state_dict(state)`: the state is of an optimizer with {saved} parameters, this "
            f"one has {parameters}. Build both model and optimizer as they were when it was saved."
        )


def _wrapper_in(model: torch.nn.Module) -> str | None:
    """What of `torch.distributed` is at work in the model or in a part of it."""
    for module in model.modules():
        # By name: importing them takes long, and a torch without them has none.
        name = type(module).__name__
        if name in ("DistributedDataParallel", "FullyShardedDataParallel"):
            return name
        if hasattr(module, "_get_fsdp_state"):
            return "`fully_shard`"
    return None


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    step = inspect.signature(inspect.unwrap(type(optimizer).step))
    _, *arguments = step.parameters.values()
    return any(
        a.default is a.empty and a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD)
        for a in arguments
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
