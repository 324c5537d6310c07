"""What ranks do in `layerwise/test_injected_on_ranks.py`: a small mixture of experts under DDP."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gradscale import GradScaler
from gradscale.plans import ScalePlan
from user_functions import ADDITIONS, Experts


def any_plan(graph: Any, measurements: Any) -> ScalePlan:
    del measurements
    return ScalePlan.random(graph, torch.Generator().manual_seed(5))


PLANS: dict[str, Any] = {"one": False, "windows": True, "any": any_plan}


def batch(rank: int, number: int) -> Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(2 * number + rank))


def trained(
    rank: int, family: str, scaler: GradScaler | None, parts: int, sums: bool
) -> list[float]:
    """The parameters after a few steps, each of some micro-batches of which the last one syncs."""
    torch.manual_seed(0)
    model = DistributedDataParallel(Experts(ADDITIONS[family]))
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-3)
    for step in range(4):
        optimizer.zero_grad()
        means = [torch.zeros_like(p) for p in model.parameters()]
        for part in range(parts):
            last = part == parts - 1 or sums
            with contextlib.nullcontext() if last else model.no_sync():
                loss = model(batch(rank, step * parts + part))
                (loss if scaler is None else scaler.scale(loss)).backward()
            if sums and scaler is None:  # what `accumulate_` does
                for mean, parameter in zip(means, model.parameters(), strict=True):
                    mean += parameter.grad / parts
                    parameter.grad = mean if part == parts - 1 else None
            elif sums:
                scaler.accumulate_(optimizer)
                optimizer.zero_grad()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


def with_and_without(rank: int, family: str, plan: str, parts: int, sums: bool) -> Any:
    group = torch.distributed.group.WORLD
    scaler = GradScaler(
        "cpu", init_scale=2.0**10, layerwise=PLANS[plan], injected="scale", process_group=group
    )
    plain = trained(rank, family, None, parts, sums)
    return plain, trained(rank, family, scaler, parts, sums)


def told(rank: int, layerwise: bool) -> Any:
    """The warnings of a run, and what the scaler knows of functions afterwards."""
    group = torch.distributed.group.WORLD
    scaler = GradScaler("cpu", init_scale=2.0**10, layerwise=layerwise, process_group=group)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(rank, "DeepSeek", scaler, 2, False)
    said = [str(w.message) for w in caught if "gradient of its own" in str(w.message)]
    functions = scaler._held.functions
    return said, functions.state_dict(), functions.report()
