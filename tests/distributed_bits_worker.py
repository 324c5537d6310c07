"""What a rank does in test_distributed_bits.py."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fsdp1 import under_fsdp1
from gradscale.backward import BackwardGraph, LossEntry, ScalePlan, Walk, rescale
from gradscale.backward.names import module_places


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)
    )


def ddp() -> nn.Module:
    return DistributedDataParallel(model(), bucket_cap_mb=1)


def ddp_with_unused() -> nn.Module:
    return DistributedDataParallel(model(), find_unused_parameters=True)


def fsdp2() -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, sharded = init_device_mesh("cpu", (2,)), model()
    for layer in (sharded[0], sharded[3]):
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    return sharded


def fsdp1_original() -> nn.Module:
    return under_fsdp1(model(), use_orig_params=True)


def fsdp1() -> nn.Module:
    return under_fsdp1(model(), use_orig_params=False)


def gradients(net: nn.Module, plan_seed: int | None) -> tuple[list[Tensor], int]:
    hooked: list[int] = []
    graphs: list[BackwardGraph] = []

    def begin(walk: Walk) -> None:
        graphs.append(walk.graph)
        assert module_places(walk.graph, net).count(None) == 1  # the leaf that `watch` added
        if plan_seed is not None:
            plan = ScalePlan.random(walk.graph, torch.Generator().manual_seed(plan_seed))
            hooked.append(rescale(walk, plan).edges)

    entry = LossEntry(begin)
    torch.manual_seed(7 + dist.get_rank())
    for _ in range(2):
        x = torch.randn(3, 8)
        (entry.watch(net(x).square().mean()) * 1024.0).backward()
    assert graphs and not graphs[-1].hidden(net.parameters())
    found = [p.grad for p in net.parameters() if p.grad is not None]
    net.zero_grad(set_to_none=True)
    return [getattr(grad, "_local_tensor", grad).clone() for grad in found], sum(hooked)


MODELS = {make.__name__: make for make in (ddp, ddp_with_unused, fsdp2, fsdp1, fsdp1_original)}


def compare(rank: int, name: str) -> int:
    """How many edges random plans multiplied on this rank, all without changing a bit."""
    del rank
    net, multiplied = MODELS[name](), 0
    expected, _ = gradients(net, None)
    assert expected and any(bool(grad.any()) for grad in expected)
    for seed in range(3):
        found, hooked = gradients(net, seed)
        assert hooked > 0
        assert len(found) == len(expected)
        for one, two in zip(found, expected, strict=True):
            assert torch.equal(one.view(torch.int32), two.view(torch.int32))
        multiplied += hooked
    return multiplied
