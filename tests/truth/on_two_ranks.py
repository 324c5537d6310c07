"""What each rank of `test_ranks.py` does, in a module that spawned processes can import."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def wrapped(kind: str) -> nn.Module:
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(net(), gradient_as_bucket_view=True)
    from torch.distributed.fsdp import fully_shard

    model, mesh = net(), dist.device_mesh.init_device_mesh("cpu", (2,))
    for layer in (model[0], model[3]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def differences(rank: int, kind: str) -> dict[str, Any]:
    """Whether gradients survived, and how far the reference is from one without wrappers."""
    from gradscale.truth import find_nonfinite, measure_lost, reference

    model, plain = wrapped(kind), net()
    torch.manual_seed(rank)
    x = torch.randn(8, 4)

    def loss(m: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return m(x).float().pow(2).mean()

    loss(model).backward()
    before = [local(p.grad).clone() for p in model.parameters()]
    found = reference(model, loss)
    kept = all(
        torch.equal(a, local(p.grad)) for a, p in zip(before, model.parameters(), strict=True)
    )
    far = 0.0
    for name, grad in reference(plain, loss).parameters.items():
        mean = grad.clone()
        dist.all_reduce(mean)
        mean /= 2
        mine = found.parameters[f"module.{name}" if kind == "ddp" else name]
        expected = mean if kind == "ddp" else mean.chunk(2)[rank]
        far = max(far, float((mine - expected).abs().max()))
    lost = measure_lost(model, loss, format="bf16").lost_share
    return {"kept": kept, "far": far, "lost": lost, "bad": bool(find_nonfinite(model, loss))}
