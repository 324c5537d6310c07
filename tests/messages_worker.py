"""What a step sends, counted: each all-reduce of ours, by its bytes."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fading import Fading, fading_batch
from gradscale import GradScaler
from gradscale.layerwise import Layerwise

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
}


def messages(
    rank: int, optimizer: str, layerwise: bool, width: int, bad: int | None
) -> list[list[int]]:
    """For each of six steps the bytes of the all-reduces between `step` and the end of `update`.

    Steps 0, 1, 2 and 4 measure, if it is layer-wise; the loss of step `bad` is not finite.
    """
    sent: list[int] = []
    reduce = dist.all_reduce

    def counted(tensor: Tensor, *arguments: Any, **settings: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        return reduce(tensor, *arguments, **settings)

    model = nn.parallel.DistributedDataParallel(Fading(width=width))
    trained = OPTIMIZERS[optimizer](model.parameters())
    planned = Layerwise(measure_every=100) if layerwise else False
    scaler = GradScaler("cpu", layerwise=planned, process_group=dist.group.WORLD)
    steps: list[list[int]] = []
    dist.all_reduce = counted
    try:
        for step in range(6):
            x, y = fading_batch(step)
            trained.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = nn.functional.cross_entropy(model(x.repeat(1, width // 16)).float(), y)
            scaler.scale(loss * (torch.nan if step == bad else 1.0)).backward()
            scaler.step(trained)
            scaler.update()
            steps.append(sent.copy())
            sent.clear()
    finally:
        dist.all_reduce = reduce
    return steps


def all_messages(rank: int) -> dict[Any, list[list[int]]]:
    """Of every kind."""
    kinds = [*product(OPTIMIZERS, (False, True), (16, 64), (None, 3))]
    return {kind: messages(rank, *kind) for kind in kinds}
