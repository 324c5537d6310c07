"""What each rank of `half/test_ranks.py` does, in a module that spawned processes can import."""

import io

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))


def data(step, rank):
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(4, 4, generator=generator), torch.randn(4, 2, generator=generator)


def optimizer_of(net, name):
    if name == "SGD":
        return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return torch.optim.AdamW(net.parameters(), lr=1e-2, fused=name == "fused")


def plain(values):
    return [v.full_tensor().tolist() if hasattr(v, "full_tensor") else v.tolist() for v in values]


def train(forward, optimizer, scaler, rank, steps, no_sync=None, inf_at=None):
    skipped = []
    for step in steps:
        optimizer.zero_grad()
        if no_sync is not None:
            with no_sync():
                x, y = data(step + 50, rank)
                scaler.scale(F.mse_loss(forward(x), y)).backward()
        x, y = data(step, rank)
        loss = F.mse_loss(forward(x), y)
        scale = 2.0**20 if step == inf_at and rank == 1 else 1.0  # overflows float16 here only
        scaler.scale(loss * scale).backward()
        scaler.step(optimizer)
        skipped.append(scaler.last_step.skipped)
        scaler.update()
    return skipped


def data_parallel(rank, name, views, accumulate, format):
    """Masters and parameters after some steps of DDP, one of which overflows on one rank."""
    from gradscale import GradScaler, half_precision

    net = model()
    optimizer = optimizer_of(net, name)
    half = half_precision(net, optimizer, getattr(torch, format))
    wrapped = DistributedDataParallel(net, gradient_as_bucket_view=views)
    scaler = GradScaler("cpu", init_scale=2.0**8)
    inf_at = 2 if format == "float16" else None
    no_sync = wrapped.no_sync if accumulate else None
    skipped = train(wrapped, optimizer, scaler, rank, range(4), no_sync, inf_at)
    return plain(half.parameters()), plain(net.parameters()), skipped


def alone(name, format, inf_at=None):
    """What `data_parallel` computes, in one process: both ranks' half gradients averaged."""
    from gradscale import GradScaler, half_precision

    net = model()
    optimizer = optimizer_of(net, name)
    half = half_precision(net, optimizer, getattr(torch, format))
    scaler = GradScaler("cpu", init_scale=2.0**8)
    for step in range(4):
        optimizer.zero_grad()
        sums = []
        for rank in range(2):
            x, y = data(step, rank)
            loss = F.mse_loss(net(x), y) * (2.0**20 if step == inf_at and rank == 1 else 1.0)
            scaler.scale(loss).backward()
            sums.append([p.grad / 2 for p in net.parameters()])
            net.zero_grad()
        for parameter, one, other in zip(net.parameters(), *sums, strict=True):
            parameter.grad = one + other
        scaler.step(optimizer)
        scaler.update()
    return plain(half.parameters()), plain(net.parameters())


def seeds(rank, broadcast):
    """Ranks that begin with different weights: masters after two steps, or what is said."""
    from gradscale import GradScaler, half_precision

    net = model(seed=rank)
    optimizer = optimizer_of(net, "SGD")
    half = half_precision(net, optimizer)
    wrapped = DistributedDataParallel(net)
    if broadcast:
        half.broadcast()
    scaler = GradScaler("cpu", init_scale=2.0**4)
    try:
        train(wrapped, optimizer, scaler, rank, range(2 if broadcast else 1))
    except RuntimeError as error:
        return [str(error)]
    return plain(half.parameters())


def wrapped_inside_before(rank, outer):
    """What is said of a model whose DDP was made for float32."""
    from gradscale import half_precision

    net = model()
    optimizer = optimizer_of(net, "SGD")
    wrapped = DistributedDataParallel(net)
    half_precision(wrapped.module if outer else net, optimizer)
    try:
        wrapped(data(0, rank)[0])
    except RuntimeError as error:
        return [str(error)]
    return []


def divided_among_ranks(rank):
    """What is said of ZeroRedundancyOptimizer."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    from gradscale import half_precision

    del rank
    net = model()
    try:
        half_precision(net, ZeroRedundancyOptimizer(net.parameters(), torch.optim.SGD, lr=0.1))
    except RuntimeError as error:
        return [str(error)]
    return []


def wide_gradients(rank):
    """What is said of float32 gradients under DDP."""
    from gradscale import half_precision

    del rank
    net = model()
    half_precision(net, optimizer_of(net, "SGD"), gradients=torch.float32)
    try:
        DistributedDataParallel(net)(data(0, 0)[0])
    except RuntimeError as error:
        return [str(error)]
    return []


def wrapped_before(rank):
    """What is said of a model in DDP."""
    from gradscale import half_precision

    del rank
    net = DistributedDataParallel(model())
    try:
        half_precision(net, optimizer_of(net, "SGD"))
    except RuntimeError as error:
        return [str(error)]
    return []


def sharded_model(parts=(0, 1, 3)):
    from torch.distributed.fsdp import fully_shard

    net, mesh = model(), dist.device_mesh.init_device_mesh("cpu", (2,))
    for part in parts:
        fully_shard(net[part], mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def fully_sharded(rank, name):
    """Masters after steps of FSDP2, after an overflow on one rank, and after a resume."""
    from gradscale import GradScaler, half_precision

    def build():
        net = sharded_model()
        optimizer = optimizer_of(net, name)
        return net, optimizer, half_precision(net, optimizer)

    net, optimizer, half = build()
    scaler = GradScaler("cpu", init_scale=2.0**8)
    skipped = train(net, optimizer, scaler, rank, range(2), inf_at=1)
    file = io.BytesIO()
    states = [net.state_dict(), optimizer.state_dict(), scaler.state_dict()]
    torch.save(states, file)
    skipped += train(net, optimizer, scaler, rank, range(2, 4))
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    net2, optimizer2, half2 = build()
    scaler2 = GradScaler("cpu")
    for target, state in zip((net2, optimizer2, scaler2), loaded, strict=True):
        target.load_state_dict(state)
    train(net2, optimizer2, scaler2, rank, range(2, 4))
    norm = float(nn.utils.get_total_norm([p for p in half.parameters()]).full_tensor())
    exported = plain(half.float_state_dict().values())
    dtypes = [str(p.dtype) for p in net.parameters()]
    return plain(half.parameters()), plain(half2.parameters()), exported, skipped, dtypes, norm


def sharded_wrongly(rank):
    """What is said of one FSDP group with two dtypes, and of sharding afterwards."""
    from torch.distributed.fsdp import fully_shard

    from gradscale import half_precision

    del rank
    said = []
    net = sharded_model(parts=())
    try:
        half_precision(net, optimizer_of(net, "SGD"))
    except ValueError as error:
        said.append(str(error))
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = optimizer_of(net, "SGD")
    half_precision(net, optimizer)
    fully_shard(net, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
    net(torch.ones(2, 4)).sum().backward()
    try:
        optimizer.step()
    except RuntimeError as error:
        said.append(str(error))
    return said


def planned(rank):
    """DDP under a plan: masters and exponents of leaves, on two ranks with different data."""
    from gradscale import GradScaler, half_precision

    torch.manual_seed(0)
    parts = [part for _ in range(16) for part in (nn.Linear(8, 8), nn.GELU())]
    net = nn.Sequential(*parts, nn.Linear(8, 2))
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(rank))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    half = half_precision(net, optimizer)
    wrapped = DistributedDataParallel(net, gradient_as_bucket_view=True)
    scaler = GradScaler("cpu", layerwise=True)
    for _ in range(5):
        optimizer.zero_grad()
        with wrapped.no_sync():
            scaler.scale(wrapped(x).square().mean() * 2.0**-6).backward()
        scaler.scale(wrapped(x + 1).square().mean() * 2.0**-6).backward()
        scaler.step(optimizer)
        scaler.update()
    track = scaler.layerwise.tracks.latest
    leaves = sorted({track.plan.exponents[leaf] for leaf in track.graph.freed})
    zeros = int((net[0].weight.grad == 0).sum())
    return plain(half.parameters()), leaves, zeros, scaler.last_step.skipped
