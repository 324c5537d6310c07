"""DDP on ranks under a communication hook: ours, torch's, or none."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

from fading import Fading, fading_batch
from gradscale import GradScaler
from gradscale.communication import CompressGradients

Gradients = list[list[float]]


def register(model: nn.parallel.DistributedDataParallel, hook: str | None) -> None:
    if hook == "fp16_compress_hook":
        model.register_comm_hook(dist.group.WORLD, fp16_compress_hook)
    elif hook is not None:
        model.register_comm_hook(None, CompressGradients(getattr(torch, hook)))


def reduced(rank: int, hook: str | None, log2_scale: int, spoil: bool) -> Gradients:
    """Gradients after one backward pass, at their true value; of rank 1 one may be infinite."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8, bias=False) for _ in range(3)]
    model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers))
    register(model, hook)
    torch.manual_seed(1 + rank)
    # Gradients of the layers lie 30 octaves apart.
    x = torch.randn(4, 8)
    loss = sum(
        layer(x).square().mean() * 2.0 ** (-15 * number) for number, layer in enumerate(layers)
    )
    loss = loss + 0 * model(x).sum()
    if spoil and rank == 1:
        loss = loss + torch.inf * layers[1].weight[0, 0]
    (loss * 2.0**log2_scale).backward()
    return [(p.grad.double() * 2.0**-log2_scale).flatten().tolist() for p in model.parameters()]


def all_reduced(rank: int, hooks: list[str | None]) -> dict[Any, Gradients]:
    """Of each hook at two scales, and with an infinity."""
    asked = [(hook, *it) for hook in hooks for it in ((0, False), (39, False), (0, True))]
    return {it: reduced(rank, *it) for it in asked}


def all_overflows(rank: int, hooks: list[str]) -> dict[str, tuple[int, list[Any]]]:
    """Of each hook."""
    return {hook: overflows(rank, hook) for hook in hooks}


def overflows(rank: int, hook: str) -> tuple[int, list[Any]]:
    """Skipped steps of 30 under a plan, and the last parameters' sizes."""
    model = nn.parallel.DistributedDataParallel(Fading())
    register(model, hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = GradScaler("cpu", layerwise=True)
    for step in range(30):
        x, y = fading_batch(2 * step + rank)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = nn.functional.cross_entropy(model(x).float(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return scaler.counters.skipped, [p.detach().norm().item() for p in model.parameters()]
