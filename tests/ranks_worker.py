"""What each rank of `test_ranks.py` does, in a module that spawned processes can import."""

import torch
import torch.distributed as dist

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.5, fused=True),
}


def build_scaler(kind, **settings):
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    from gradscale.scaler import GradScaler

    settings = {"init_scale": 8.0, **settings}
    if kind == "torch":
        return torch.amp.GradScaler("cpu", **settings)
    if kind == "sharded":
        return ShardedGradScaler("cpu", process_group=dist.group.WORLD, **settings)
    return GradScaler("cpu", process_group=dist.group.WORLD if kind == "ours" else None, **settings)


def inf_on_rank_one(rank, kind, name, unscale_first):
    """(parameter moved, scale) after a step in which only rank 1 has an infinite gradient."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = OPTIMIZERS[name]([parameter])
    scaler = build_scaler(kind)
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.full((2,), float("inf") if rank == 1 else 1.0)
    if unscale_first:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    return bool((parameter != 1).any()), scaler.get_scale()


def reasons(rank, kind, bad_loss):
    """(skipped, reason, scale): gradients overflow on rank 1, the loss is bad on rank 0 or not."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = OPTIMIZERS["sgd"]([parameter])
    scaler = build_scaler(kind)
    scaler.scale(torch.tensor(float("nan") if bad_loss and rank == 0 else 1.0))
    parameter.grad = torch.full((2,), float("inf") if rank == 1 or bad_loss else 1.0)
    scaler.step(optimizer)
    scaler.update()
    return scaler.last_step.skipped, scaler.last_step.reason, scaler.get_scale()


def quotient(rank, name):
    """(parameter moved, scale): only rank 1 has a quotient that overflows."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = OPTIMIZERS[name]([parameter])
    scaler = build_scaler("ours", init_scale=2.0**-126)
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.full((2,), 1e30 if rank == 1 else 0.5)
    scaler.step(optimizer)
    scaler.update()
    return bool((parameter != 1).any()), scaler.get_scale()


def data_parallel(rank, name):
    """Parameters and scale of a DistributedDataParallel run in which one rank's batch overflows."""
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 2))
    optimizer = OPTIMIZERS[name](model.parameters())
    scaler = build_scaler("ours", growth_interval=2)
    for step in range(5):
        torch.manual_seed(10 * step + rank)
        inputs = torch.randn(4, 3)
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        if step == 2 and rank == 1:
            loss = loss * float("nan")
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    scaler.check_ranks()
    return (
        [p.detach().tolist() for p in model.parameters()],
        scaler.get_scale(),
        scaler.counters.reasons,
    )


def divergence(rank):
    """What `check_ranks` says before and after one rank's scale is moved."""
    return _said_of_a_moved_scale(build_scaler("ours"), rank)


def _said_of_a_moved_scale(scaler, rank):
    scaler.scale(torch.zeros(()))
    scaler.check_ranks()
    if rank == 1:
        scaler.update(2.0)
    try:
        scaler.check_ranks()
    except RuntimeError as error:
        return [str(error)]
    return []


def sharded_parameters(rank, name):
    """A DTensor parameter, one shard of whose gradient is infinite; no process group given."""
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

    from gradscale.scaler import GradScaler

    mesh = init_device_mesh("cpu", (2,))
    whole = torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    optimizer = OPTIMIZERS[name]([whole])
    scaler = GradScaler("cpu", init_scale=8.0)
    moved = []
    for local in (4.0, float("inf") if rank == 1 else 4.0):
        scaler.scale(torch.zeros(()))
        whole.grad = DTensor.from_local(torch.full((2,), local), mesh, [Shard(0)])
        before = whole.to_local().detach().clone()
        scaler.step(optimizer)
        moved.append(not torch.equal(before, whole.to_local()))
        scaler.update()
    return moved, scaler.get_scale(), scaler.last_step.reason


def sharded_module(rank, name):
    """FSDP2: parameters after steps with the scaler, and without one."""
    from torch.distributed.fsdp import fully_shard

    from gradscale.scaler import GradScaler

    results = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
        optimizer = OPTIMIZERS[name](model.parameters())
        scaler = GradScaler("cpu", enabled=scaled)
        for step in range(3):
            torch.manual_seed(10 * step + rank)
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(2, 4)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append([p.full_tensor().tolist() for p in model.parameters()])
    return results


def divergence_within_a_mesh(rank):
    """What `check_ranks` says of a scaler whose ranks are those of a mesh."""
    from torch.distributed.tensor import init_device_mesh

    from gradscale.scaler import GradScaler

    mesh = init_device_mesh("cpu", (2,))
    return _said_of_a_moved_scale(GradScaler("cpu", init_scale=8.0, process_group=mesh), rank)
