"""A pipeline of two stages: only the last rank has a loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from fading import fading_batch
from gradscale import GradScaler

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
}
STEPS, OVERFLOW, BAD = 6, 1, 3


def network() -> list[nn.Module]:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
    return [first, nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))]


def loss_of(step: int, logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels) * (torch.nan if step == BAD else 1.0)


def piped(rank: int, optimizer: str, settings: dict[str, Any], clip: float | None) -> Any:
    """What became of each step, and this stage's weights."""
    stage_of = network()[rank]
    stage = PipelineStage(stage_of, rank, 2, torch.device("cpu"))
    trained = OPTIMIZERS[optimizer](stage_of.parameters())
    scaler = GradScaler("cpu", init_scale=2.0**8, process_group=dist.group.WORLD, **settings)
    seen: list[Any] = []
    for step in range(STEPS):

        def scaled(logits: Tensor, labels: Tensor, step: int = step) -> Tensor:
            return scaler.scale(loss_of(step, logits, labels))

        schedule = Schedule1F1B(stage, n_microbatches=2, loss_fn=scaled)
        trained.zero_grad()
        x, y = fading_batch(step)
        schedule.step(x) if rank == 0 else schedule.step(target=y)
        if step == OVERFLOW and rank == 0:
            next(stage_of.parameters()).grad.fill_(torch.inf)
        if clip is not None:
            scaler.clip_grad_norm_(trained, clip)
        scaler.step(trained)
        scaler.update()
        seen.append((scaler.last_step.skipped, scaler.last_step.reason, scaler.get_scale()))
    return seen, [p.detach().flatten().tolist() for p in stage_of.parameters()]


def every_kind(rank: int) -> dict[Any, Any]:
    kinds = [{}, {"sync_free": True}, {"layerwise": True}]
    asked = [(name, kind, clip) for name in OPTIMIZERS for kind in kinds for clip in (None, 1.0)]
    return {repr(it): piped(rank, *it) for it in asked}


def whole(optimizer: str) -> list[Any]:
    """The weights of the first stage after the same steps in one process."""
    stages = network()
    model = nn.Sequential(*stages)
    trained = OPTIMIZERS[optimizer](model.parameters())
    for step in range(STEPS):
        if step in (OVERFLOW, BAD):
            continue
        trained.zero_grad()
        x, y = fading_batch(step)
        for inputs, labels in zip(x.chunk(2), y.chunk(2), strict=True):
            (loss_of(step, model(inputs), labels) / 2).backward()
        trained.step()
    return [p.detach() for p in stages[0].parameters()]
