"""What ranks do in `scaler/test_witnesses_on_ranks.py`: one has trouble, all are told."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gradscale import GradScaler

Steps = list[tuple[float, list[str | None]]]
"""Of each step the scale after it, and each optimizer's reason."""


def scaler_of(sync_free: bool, scale: float = 2.0**16, **more: Any) -> GradScaler:
    settings = {"init_scale": scale, "sync_free": sync_free, "process_group": dist.group.WORLD}
    return GradScaler("cpu", **settings, **more)


class Run:
    """Some optimizers of one parameter each, whose gradients no wrapper averages."""

    def __init__(self, scaler: GradScaler, count: int = 1) -> None:
        self.scaler = scaler
        self.parameters = [nn.Parameter(torch.ones(2)) for _ in range(count)]
        self.optimizers = [torch.optim.SGD([p], lr=0.0) for p in self.parameters]
        self.seen: Steps = []

    def step(self, *factors: float, inner: bool = False, clear: bool = True) -> None:
        for parameter, optimizer, factor in zip(
            self.parameters, self.optimizers, factors, strict=True
        ):
            if clear:
                optimizer.zero_grad()
            if inner:
                scaled = self.scaler.scale(parameter.square().sum())
                torch.autograd.grad(scaled, parameter, create_graph=True)
            self.scaler.scale((parameter * factor).sum()).backward()
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.seen.append((self.scaler.get_scale(), [one.reason for one in self.scaler.last_step]))


def each_by_its_own_loss(rank: int, sync_free: bool) -> Steps:
    """Loss A is NaN on rank 0, loss B overflows on rank 1."""
    run = Run(scaler_of(sync_free, 4.0), 2)
    run.step(1.0, 1.0)
    run.step(math.nan if rank == 0 else 1.0, 1e38 if rank == 1 else 1.0)
    return run.seen


def left_over(rank: int, sync_free: bool) -> Steps:
    """Rank 1 has NaN gradients that it never clears."""
    run = Run(scaler_of(sync_free))
    run.step(1.0)
    for step in range(4):
        run.step(math.nan if rank == 1 and step == 0 else 1.0, clear=rank == 0)
    return run.seen


def bad_data(rank: int, sync_free: bool, inner: bool, steps: int) -> Steps:
    """Rank 1 has a NaN in every step, which may look as if it came from the scale."""
    run = Run(scaler_of(sync_free))
    run.step(1.0)
    for _ in range(steps):
        run.step(math.nan if rank == 1 else 1.0, inner=inner)
    return run.seen


def depends_on_the_scale(rank: int, sync_free: bool, steps: int) -> Steps:
    """On rank 1 the loss is infinite above a scale of 2^12, and nothing shows why."""
    run = Run(scaler_of(sync_free))
    run.step(1.0)
    for _ in range(steps):
        high = run.scaler.get_scale() > 2.0**12
        run.step(math.inf if rank == 1 and high else 1.0)
    return run.seen


def penalty(rank: int, sync_free: bool, layerwise: bool) -> tuple[Steps, list[float]]:
    """torch's recipe of a gradient penalty, which overflows on rank 1 only."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    scaler = scaler_of(sync_free, layerwise=layerwise)
    seen: Steps = []
    for step in range(6):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(2 * step + rank)
        x = torch.randn(16, 32, generator=generator).requires_grad_()
        with torch.autocast("cpu", torch.float16):
            out = net(x).float() * (4.0 if rank == 1 else 2.0**-6)
        (slope,) = torch.autograd.grad(scaler.scale(out.sum()), x, create_graph=True)
        loss = out.square().mean() + (slope / scaler.get_scale()).square().sum(1).mean()
        scaler.scale(loss).backward()
        for parameter in net.parameters():
            dist.all_reduce(parameter.grad)
        scaler.step(optimizer)
        scaler.update()
        seen.append((scaler.get_scale(), [scaler.last_step.reason]))
    return seen, torch.cat([p.detach().flatten() for p in net.parameters()]).tolist()
