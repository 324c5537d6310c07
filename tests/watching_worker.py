"""What each rank of `watching/test_ranks.py` does, in a module that spawned processes import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import gradscale
from layerwise_worker import Build, local, network


def train(
    model: nn.Module, rank: int, watch: gradscale.watching.Watch | None, half: bool, steps: int = 5
) -> list[list[float]]:
    """Parameters after some steps on this rank's own data."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch if watch is not None else torch.enable_grad():
        for step in range(steps):
            torch.manual_seed(10 * step + rank)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16, enabled=half):
                out = model(torch.randn(3 + rank, 8))
            (out.float().square().mean() * 2.0**-16).backward()
            optimizer.step()
    return [local(parameter) for parameter in model.parameters()]


def with_and_without(rank: int, build: Build, half: bool, activations: bool) -> Any:
    """Parameters without and with watching, and the report as plain data."""
    plain = train(build(network()), rank, None, half)
    model = build(network())
    watch = gradscale.watch(model, every=2, activations=activations)
    watched = train(model, rank, watch, half)
    return plain, watched, watch.report(format=None if half else "fp16").to_dict()


def alone(rank: int, half: bool) -> Any:
    """What every rank's data give on one rank, one after the other: the oracle of the sum."""
    reports: list[Any] = []
    for data in (0, 1):
        model = network()
        watch = gradscale.watch(model, every=1, process_group=_Nobody())
        train(model, data, watch, half, steps=1)
        reports.append(watch.report(format=None if half else "fp16").to_dict())
    return reports


class _Nobody:
    """A process group of no dimension: nobody to share a report with."""

    mesh = None

    def get_all_groups(self) -> list[Any]:
        return []


def first_step(rank: int, build: Build, half: bool) -> Any:
    model = build(network())
    watch = gradscale.watch(model, every=1)
    train(model, rank, watch, half, steps=1)
    return watch.report(format=None if half else "fp16").to_dict()


class Branching(nn.Module):
    """Runs another layer on every rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one, self.two, self.rank = nn.Linear(8, 8), nn.Linear(8, 8), rank

    def forward(self, x: Tensor) -> Tensor:
        return self.two(x).tanh() if self.rank else self.two(self.one(x))


def different_graphs(rank: int) -> Any:
    """Ranks that run different graphs: the report of each is its own."""
    model = Branching(rank)
    watch = gradscale.watch(model, every=1)
    train(model, rank, watch, half=False, steps=3)
    report = watch.report("fp16")
    return report.alone, sorted({row.name for row in report}), str(report).split("\n")[:4]


def no_pass_on_rank_one(rank: int) -> Any:
    """A rank without a backward pass in some steps still takes part."""
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscale.watch(model, every=1) as watch:
        for step in range(3):
            for micro in range(2 if step == 1 and rank == 0 else 1):
                torch.manual_seed(micro)
                model(torch.randn(3, 8)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return watch.report("fp16").steps, watch.report("fp16").alone


def interrupted(rank: int, where: Callable[[int], bool]) -> Any:
    """An exception on one rank must not leave the other one waiting in the watch."""
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        with gradscale.watch(model, every=1) as watch:
            model(torch.randn(3, 8)).sum().backward()
            optimizer.step()
            raise ZeroDivisionError
    except ZeroDivisionError:
        return len(watch.report("fp16"))
