"""What ranks do in tests of sharded engines: each builds one, and one rank meets an infinity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from fading import fading_batch
from fsdp1 import under_fsdp1
from gradscale import GradScaler

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.5, fused=True),
}
Result = list[tuple[bool, float]]


def build_scaler(kind: str, layerwise: bool = False) -> Any:
    """Torch's scaler, its sharded one, or ours, as one writes them: without a group."""
    if kind == "torch":
        return torch.amp.GradScaler("cpu", init_scale=8.0)
    if kind == "sharded":
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return ShardedGradScaler("cpu", init_scale=8.0, process_group=dist.group.WORLD)
    return GradScaler("cpu", init_scale=8.0, layerwise=layerwise)


def network(first: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4)]
    return nn.Sequential(first or nn.Identity(), *layers)


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def fsdp1(use_orig_params: bool = False) -> nn.Module:
    return under_fsdp1(network(), use_orig_params=use_orig_params)


def ddp() -> nn.Module:
    return nn.parallel.DistributedDataParallel(network())


def _sharded(model: nn.Sequential, mesh: DeviceMesh, **settings: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh, **settings)
    return fully_shard(model, mesh=mesh, **settings)


def fsdp2() -> nn.Module:
    return _sharded(network(), init_device_mesh("cpu", (dist.get_world_size(),)))


def offloaded() -> nn.Module:
    from torch.distributed.fsdp import CPUOffloadPolicy

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return _sharded(network(), mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))


def hsdp() -> nn.Module:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    return _sharded(network(), mesh)


def _tensor_parallel(model: nn.Sequential, mesh: DeviceMesh) -> nn.Module:
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    gathered = ColwiseParallel(output_layouts=Replicate())
    split = RowwiseParallel(input_layouts=Replicate())
    return parallelize_module(model, mesh, {"1": gathered, "4": split})


def tensor_parallel() -> nn.Module:
    """The norm outside the plan keeps plain parameters beside the DTensors."""
    return _tensor_parallel(network(), init_device_mesh("cpu", (dist.get_world_size(),)))


def fsdp2_tensor_parallel(first: nn.Module | None = None) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    return _sharded(_tensor_parallel(network(first), mesh["tp"]), mesh["dp"])


ENGINES: dict[str, Callable[[], nn.Module]] = {
    "DDP": ddp,
    "FSDP1": fsdp1,
    "FSDP1, use_orig_params": lambda: fsdp1(True),
    "FSDP2": fsdp2,
    "FSDP2, CPU offload": offloaded,
    "HSDP": hsdp,
    "TP": tensor_parallel,
    "FSDP2 with TP": fsdp2_tensor_parallel,
    "FSDP2 with TP, a norm first": lambda: fsdp2_tensor_parallel(nn.LayerNorm(16)),
}


@dataclass(frozen=True)
class Case:
    """What is trained, by which optimizer, under whose scaler."""

    engine: str
    optimizer: str
    scaler: str
    layerwise: bool = False


def overflow_on_last_rank(rank: int, cases: list[Case]) -> dict[Case, Result | str]:
    """For each case, after each of three steps whether a parameter moved, and the scale.

    In the second, the gradients of the last rank are infinite after all reductions, in one shard
    only: a rank that decides from what it holds decides otherwise than the rest.
    """
    return {case: _train(rank, case) for case in cases}


def _train(rank: int, case: Case) -> Result | str:
    if case.engine in ENGINES:
        model = ENGINES[case.engine]()
        trained = OPTIMIZERS[case.optimizer](model.parameters())
        loss = partial(_loss_of, model)
    else:
        parameters = parts(case.engine)
        trained = OPTIMIZERS[case.optimizer](parameters)
        loss = partial(_size_of, parameters)
    scaler = build_scaler(case.scaler, case.layerwise)
    found: Result = []
    for step in range(3):
        trained.zero_grad()
        scaler.scale(loss(step)).backward()
        parameters = [p for group in trained.param_groups for p in group["params"]]
        if step == 1 and rank == dist.get_world_size() - 1:
            spoil(parameters)
        before = [local(p).detach().clone() for p in parameters]
        try:
            scaler.step(trained)
        except RuntimeError as error:
            return str(error)
        after = [local(p).detach() for p in parameters]
        moved = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        scaler.update()
        found.append((moved, scaler.get_scale()))
    return found


def _loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = fading_batch(step)
    return nn.functional.cross_entropy(model(x), y)


def _size_of(parameters: list[Tensor], step: int) -> Tensor:
    return torch.stack([local(p).square().sum() for p in parameters]).sum()


def spoil(parameters: list[Tensor]) -> None:
    """Makes the last gradient that this rank holds infinite."""
    held = [p for p in parameters if p.grad is not None and local(p.grad).numel()]
    local(held[-1].grad).fill_(torch.inf)  # pyright: ignore


def parts(kind: str) -> list[Tensor]:
    """Parameters by hand: what stands first, on which meshes, plain ones in between."""
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    whole = torch.arange(1.0, 1.0 + 4 * world)
    split = nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
    if kind == "replicated first":
        return [nn.Parameter(distribute_tensor(torch.ones(3), mesh, [Replicate()])), split]
    if kind == "two meshes":
        small = init_device_mesh("cpu", (world, 1), mesh_dim_names=("outer", "alone"))["alone"]
        alone = nn.Parameter(DTensor.from_local(torch.ones(3), small, [Shard(0)]))
        return [alone, split]
    return [nn.Parameter(torch.ones(3)), split]
