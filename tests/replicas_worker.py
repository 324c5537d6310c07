"""What each rank of `test_replicas.py` does: DDP whose gradients somebody spoils on one rank."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gradscale import GradScaler

STEPS = 360


class Quiet:
    """All collectives that are ours, counted while a scaler ends a step."""

    def __init__(self) -> None:
        self.sent = 0

    def __enter__(self) -> Quiet:
        self._before = {name: getattr(dist, name) for name in ("all_reduce", "all_gather")}
        for name, call in self._before.items():

            def counted(*arguments: Any, call: Any = call, **settings: Any) -> Any:
                self.sent += 1
                return call(*arguments, **settings)

            setattr(dist, name, counted)
        return self

    def __exit__(self, *error: object) -> None:
        for name, call in self._before.items():
            setattr(dist, name, call)


def run(
    rank: int, kind: str, bad: int | None, settings: dict[str, Any]
) -> tuple[list[str], int, float]:
    """(warnings, collectives of ours, scale) of a run in which rank 1 meets an infinity alone.

    Args:
        rank: this one.
        kind: ``"replicas"``; ``"strangers"``, networks of their own; ``"own data"``, the same
            network on data of their own, which nobody averages.
        bad: the step in which rank 1 does, after the reduction.
        settings: of the scaler.
    """
    torch.manual_seed(rank if kind == "strangers" else 0)
    plain = nn.Linear(4, 1)
    model = nn.parallel.DistributedDataParallel(plain) if kind == "replicas" else plain
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    given = {"process_group": dist.group.WORLD} if settings.get("process_group") else {}
    scaler = GradScaler("cpu", **{"init_scale": 8.0, **settings, **given})
    torch.manual_seed(rank)
    with warnings.catch_warnings(record=True) as said, Quiet() as quiet:
        warnings.simplefilter("always")
        for step in range(STEPS):
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(8, 4)).square().mean()).backward()
            if rank == 1 and step == bad:
                plain.weight.grad.fill_(torch.inf)
            scaler.step(optimizer)
            scaler.update()
    messages = [str(it.message) for it in said if "parted" in str(it.message)]
    return messages, quiet.sent, scaler.get_scale()


def static_skips(rank: int) -> list[str]:
    """A scale that never moves hides nothing: the steps skipped differ."""
    from gradscale import Static

    return run(rank, "replicas", 120, {"policy": Static(8.0), "init_scale": 65536.0})[0]


def afterwards(rank: int) -> list[bool]:
    """Whether a step still ends where the process group has gone, and where there was none."""
    messages, _, _ = run(rank, "replicas", None, {})
    dist.destroy_process_group()
    left = [not messages, not run(rank, "own data", 3, {})[0]]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return left
