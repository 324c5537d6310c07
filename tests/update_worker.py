"""What each rank does in the tests of the weight update on several ranks."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from gradscale import GradScaler

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
}


def sharded_model():
    """Three rows and an odd bias: the ranks' shards differ in size."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model


def whole(model):
    return [p.full_tensor().detach().tolist() for p in model.parameters()]


def sharded_run(rank, name, clip, bad, **arguments):
    """Norms, skips, scale and parameters of three steps under FSDP2; `bad`: inf on rank 1."""
    model = sharded_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    scaler = GradScaler("cpu", init_scale=2.0**8, growth_interval=2, **arguments)
    norms, skipped = [], []
    for step in range(4):
        torch.manual_seed(10 * step + rank)
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(5, 4)).square().mean()).backward()
        if bad and step == 2 and rank == 1:
            next(model.parameters()).grad.to_local().view(-1)[0] = float("inf")
        if clip == "ours":
            norms.append(float(scaler.clip_grad_norm_(optimizer, 0.1)))
        elif clip == "value":
            scaler.clip_grad_value_(optimizer, 0.05)
        elif clip == "torch":
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            norms.append(float(norm.full_tensor()))
        elif clip == "torch-value":
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_value_(model.parameters(), 0.05)
        scaler.step(optimizer)
        scaler.update()
        skipped.append(scaler.last_step.skipped)
    return norms, skipped, scaler.get_scale(), whole(model)


def norms_of_orders(rank):
    """Norms of one FSDP2 gradient by order, and those of the whole gradient in one piece."""
    from gradscale.gradients.norm import gradient_norm

    model = sharded_model()
    torch.manual_seed(1)
    model(torch.randn(5, 4)).square().mean().backward()
    full = [p.grad.full_tensor() for p in model.parameters()]
    return [
        (
            float(gradient_norm(model.parameters(), order).value),
            float(torch.linalg.vector_norm(torch.cat([g.reshape(-1) for g in full]), order)),
        )
        for order in (1.0, 2.0, 3.0, float("inf"))
    ]


def partial_and_replicated(rank):
    """The norm of a replicated, a partial and a sharded gradient together: that of (3, 4, 12)."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    from gradscale.gradients.norm import gradient_norm

    mesh = init_device_mesh("cpu", (2,))
    locals_and_placements = [
        (torch.tensor([3.0]), Replicate()),
        (torch.tensor([2.0]), Partial()),
        (torch.tensor([12.0 if rank == 0 else 0.0]), Shard(0)),
    ]
    parameters = []
    for local, placement in locals_and_placements:
        grad = DTensor.from_local(local, mesh, [placement])
        parameter = torch.nn.Parameter(torch.zeros_like(grad))
        parameter.grad = grad
        parameters.append(parameter)
    return float(gradient_norm(parameters).value)


def micro_batches(rank):
    """Rank 1's second micro-batch overflows: both drop it."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = GradScaler("cpu", init_scale=8.0, process_group=dist.group.WORLD)
    for index, value in enumerate((1.0, 2.0, 3.0)):
        scaler.scale(torch.zeros(()))
        overflows = rank == 1 and index == 1
        parameter.grad = torch.full((2,), float("inf") if overflows else 8.0 * value)
        scaler.accumulate_(optimizer, drop_overflow=True)
    scaler.step(optimizer)
    scaler.update()
    outcome = next(iter(scaler.last_step))
    return parameter.tolist(), outcome.dropped, outcome.skipped, scaler.get_scale()


def closures(rank):
    """Rank 1 overflows in the third evaluation of LBFGS: both abandon the step."""
    parameter = torch.nn.Parameter(torch.full((2,), 3.0))
    optimizer = torch.optim.LBFGS([parameter], lr=0.1, max_iter=5)
    scaler = GradScaler("cpu", init_scale=8.0, process_group=dist.group.WORLD)
    count = 0

    def closure():
        nonlocal count
        optimizer.zero_grad()
        loss = parameter.pow(4).sum()
        scaler.scale(loss).backward()
        count += 1
        if count == 3 and rank == 1:
            parameter.grad[0] = float("inf")
        return loss

    scaler.step(optimizer, closure)
    scaler.update()
    return parameter.tolist(), count, scaler.last_step.skipped, scaler.get_scale()


def sharded_with(rank, name, clip, bad, arguments):
    return sharded_run(rank, name, clip, bad, **arguments)
