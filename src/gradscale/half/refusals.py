"""What `half_precision` cannot do right, said before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradscale.gradients.master_weights import masters_of
from gradscale.half.link import link_of
from gradscale.half.rounding import floating, local
from gradscale.half.under_ddp import wrapped_before
from gradscale.optimizer_parameters import parameters_of


def check_kinds(model: object, optimizer: object) -> list[Optimizer]:
    """The optimizers; refuses what is no model or no optimizer, and the two in the wrong order."""
    optimizers = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    wrong = [o for o in optimizers if not isinstance(o, Optimizer)]
    if not wrong and isinstance(model, nn.Module):
        checked = cast("list[Optimizer]", optimizers)
        _check_hooks(checked)
        return checked
    said = type(wrong[0] if wrong else optimizer).__name__
    call = f"`half_precision({type(model).__name__}, {said})`"
    if isinstance(model, Optimizer):
        raise TypeError(f"{call}: the model comes first, then the optimizer.")
    if not isinstance(model, nn.Module):
        raise TypeError(f"{call}: the model is a `torch.nn.Module`.")
    raise TypeError(
        f"{call}: the optimizer is a `torch.optim.Optimizer` of the model's parameters, or a list "
        "of them: it is what holds the float32 masters. To compute in half precision without "
        "training, `model.to(torch.float16)` or `torch.autocast` is enough."
    )


def _check_hooks(optimizers: Sequence[Optimizer]) -> None:
    """Refuses wrappers, such as Lookahead's many copies, that are an optimizer by class alone."""
    for optimizer in optimizers:
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            name = type(optimizer).__name__
            raise TypeError(
                f"`half_precision(model, {name})`: this {name} has never called "
                "`Optimizer.__init__`, and so has no step hooks, by which gradients reach the "
                "float32 masters and weights the model. Let its `__init__` call "
                "`super().__init__(wrapped.param_groups, wrapped.defaults)`."
            )


def check_model(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Refuses wrapped models, and models and optimizers that were converted before."""
    wrapper = type(model).__name__
    if wrapper == "DistributedDataParallel":
        raise wrapped_before("DistributedDataParallel(model)")
    if wrapper == "FullyShardedDataParallel":
        raise RuntimeError(
            "`half_precision(FullyShardedDataParallel(model), optimizer)`: FSDP1 keeps float32 "
            "masters itself. Pass it `mixed_precision=MixedPrecision(param_dtype=torch.float16)`, "
            "or use `fully_shard` (FSDP2)."
        )
    if not optimizers:
        raise ValueError("`half_precision(model, [])` needs an optimizer to hold the masters.")
    for optimizer in optimizers:
        if any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(optimizer).__mro__):
            raise RuntimeError(
                "`half_precision(model, ZeroRedundancyOptimizer)`: it has divided the model's own "
                "parameters among optimizers inside of it, which would never see the masters. "
                "FSDP2 shards masters and state: `fully_shard(model)`, then a plain optimizer, "
                "then `half_precision`."
            )
        if masters_of(optimizer) is not None:
            raise RuntimeError(
                f"`half_precision(model, {type(optimizer).__name__})` was called before with this "
                "optimizer. Call it once; `optimizer.add_param_group` takes in new parameters."
            )
    _check_parameters(model, optimizers)


def _check_parameters(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    owned = set(map(id, parameters_of(*optimizers)))
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise RuntimeError(
                f"`half_precision(model, optimizer)`: {name} has no shape yet. Run the lazy "
                "module's first forward pass before."
            )
        if link_of(parameter) is not None:
            raise RuntimeError(
                f"`half_precision(model, optimizer)`: {name} has a master in another optimizer. "
                "Pass all optimizers of a model together: `half_precision(model, [first, second])`."
            )
    if not any(id(parameter) in owned for parameter in model.parameters()):
        raise ValueError(
            "`half_precision(model, optimizer)`: the optimizer has none of the model's parameters. "
            "Build it from `model.parameters()`, after anything that replaces them."
        )


def check_gradients(optimizers: Sequence[Optimizer]) -> None:
    """Refuses parameters that are to be converted while they hold a gradient."""
    for optimizer in optimizers:
        masters = masters_of(optimizer)
        own = set() if masters is None else {id(link.master) for link in masters.links}
        for parameter in parameters_of(optimizer):
            if parameter.grad is not None and id(parameter) not in own:
                raise RuntimeError(
                    "`half_precision(model, optimizer)`: a parameter holds a gradient, which "
                    "cannot change its dtype. Call `optimizer.zero_grad()` before."
                )


def check_fits(
    model: nn.Module, format: torch.dtype, kept: Collection[int], *, saturate: bool = False
) -> None:
    """Refuses finite weights and buffers that would become infinite. Reads the host.

    Weights that saturate do not; buffers are no weights, and a mask of -1e9 clamped is another.
    """
    limit = torch.finfo(format).max
    for kind, tensors in (
        ("parameter", () if saturate else model.named_parameters()),
        ("buffer", model.named_buffers()),
    ):
        for name, tensor in tensors:
            if id(tensor) in kept or not floating(tensor) or tensor.dtype == format:
                continue
            values = local(tensor.detach())
            if values.is_meta or not values.numel():
                continue
            beyond = torch.isfinite(values) & ~torch.isfinite(values.to(format))
            if bool(beyond.any()):
                worst = values[beyond].abs().max().item()
                short = str(format).removeprefix("torch.")
                raise ValueError(
                    f"`half_precision(format={format})`: {kind} {name} holds {worst:g}, and "
                    f"{short} ends at {limit:g}. Keep it in float32 with `keep={name!r}`, or use "
                    "torch.bfloat16."
                )


def check_sharding(model: nn.Module, format: torch.dtype, kept: Collection[int]) -> None:
    """Refuses a group of `fully_shard` in which some parameters would be half and others not."""
    for name, module in model.named_modules():
        for group in _sharded_groups(module):
            trained = [p for p in group if p.requires_grad and floating(p)]
            if len({id(p) in kept for p in trained}) > 1:
                short = str(format).removeprefix("torch.")
                raise ValueError(
                    f"`half_precision(model, optimizer)`: FSDP gathers the parameters of "
                    f"{name or 'the model'} together, and needs them in one dtype, but some stay "
                    "in float32. Apply `fully_shard` to each normalisation layer (and what `keep` "
                    "names) first, or leave the masters to FSDP: `fully_shard(model, mp_policy="
                    f"MixedPrecisionPolicy(param_dtype=torch.{short}, "
                    "reduce_dtype=torch.float32))`, without `half_precision`."
                )


def _sharded_groups(module: nn.Module) -> list[list[Tensor]]:
    state: Any = getattr(module, "_get_fsdp_state", lambda: None)()
    if state is None:
        return []
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:
        groups = [state._fsdp_param_group]
    return [[p.sharded_param for p in group.fsdp_params] for group in groups if group is not None]
