"""What each rank of `compiled/test_compiled_ranks.py` does, as spawned processes import it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradscale.backward.plan import ScalePlan
from gradscale.layerwise import Layerwise
from gradscale.plans.planner import UserGiven
from gradscale.scaler import GradScaler
from layerwise_worker import local

Build = Callable[[Any], nn.Module]
compile: Any = torch.compile


class Block(nn.Module):
    """Torch compiles no frame of its own containers under DDP and FSDP, so these are ours."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.linear(x))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def blocks() -> Blocks:
    torch.manual_seed(1)
    return Blocks()


def eager_ddp(model: Blocks) -> nn.Module:
    return DistributedDataParallel(model)


def compiled_ddp(model: Blocks) -> nn.Module:
    """Buckets of one layer each, at whose ends torch splits the graph."""
    torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 64
    return compile(DistributedDataParallel(model, bucket_cap_mb=3e-4), backend="aot_eager")


def ddp_of_compiled(model: Blocks) -> nn.Module:
    return DistributedDataParallel(compile(model, backend="aot_eager"))


def eager_fsdp2(model: Blocks) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp2_of_compiled_blocks(model: Blocks) -> nn.Module:
    for block in model.blocks:
        block.compile(backend="aot_eager")
    return eager_fsdp2(model)


def train(rank: int, build: Build) -> tuple[list[list[float]], int, set[str]]:
    """Parameters after four steps of random plans, inner nodes of the last, what stayed closed."""
    generator = torch.Generator().manual_seed(3)
    planner = UserGiven(lambda graph, _: ScalePlan.random(graph, generator))
    scaler = GradScaler("cpu", layerwise=Layerwise(planner, measure_every=1), init_scale=2.0**6)
    model = build(blocks())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        torch.manual_seed(10 * step + rank)
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(3, 8)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    structure = scaler.layerwise.tracks.latest.graph.structure
    closed = {structure.names[node] for node in structure.closed}
    inner = sum(len(span.nodes) for span in structure.spans)
    return [local(p) for p in model.parameters()], inner, closed
