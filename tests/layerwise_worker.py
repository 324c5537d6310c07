"""What each rank of `layerwise/test_ranks.py` does, in a module that spawned processes import."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fsdp1 import under_fsdp1
from gradscale.backward.plan import ScalePlan
from gradscale.emulation import emulate
from gradscale.layerwise import Layerwise
from gradscale.plans.planner import UserGiven
from gradscale.plans.windows import Windows
from gradscale.scaler import GradScaler

Build = Callable[[nn.Sequential], nn.Module]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4)
    )


def ddp(model: nn.Sequential) -> nn.Module:
    return DistributedDataParallel(model)


def fsdp2(model: nn.Sequential) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def fsdp1(model: nn.Sequential) -> nn.Module:
    return under_fsdp1(model, use_orig_params=True)


WRAPPERS = [ddp, fsdp2, fsdp1]


def local(tensor: Tensor) -> list[float]:
    return getattr(tensor, "_local_tensor", tensor).detach().flatten().tolist()


def plans_of(scaler: GradScaler) -> list[tuple[tuple[int, ...], str | None]]:
    layerwise = scaler.layerwise
    assert layerwise is not None
    return [(track.plan.exponents, track.frozen) for track in layerwise.tracks]


def train_at_random(rank: int, build: Build, planned: bool) -> tuple[list[list[float]], list[Any]]:
    """Parameters after five steps, under a new random plan at every step or under none."""
    generator = torch.Generator().manual_seed(3)
    planner = UserGiven(lambda graph, _: ScalePlan.random(graph, generator))
    layerwise = Layerwise(planner, measure_every=1) if planned else False
    model = build(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=2.0**6, layerwise=layerwise)
    seen: list[Any] = []
    for step in range(5):
        torch.manual_seed(10 * step + rank)
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(3, 8)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        if planned:
            seen.append((plans_of(scaler), scaler.get_scale()))
    return [local(p) for p in model.parameters()], seen


def with_and_without(rank: int, build: Build) -> tuple[Any, Any, Any]:
    plain, _ = train_at_random(rank, build, planned=False)
    planned, seen = train_at_random(rank, build, planned=True)
    return plain, planned, seen


def deep() -> nn.Sequential:
    """Gradients fade by an eighth a layer, so that one scale does not do for float16."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(8):
        linear = nn.Linear(16, 16)
        nn.init.normal_(linear.weight, std=0.12 * (2 / 16) ** 0.5)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 4))


class Half:
    """Half-precision training steps of one rank, on data of its own."""

    def __init__(self, rank: int, build: Build, **settings: Any) -> None:
        self.rank = rank
        self.model = build(deep())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.scaler = GradScaler("cpu", init_scale=2.0**15, **settings)
        self.losses = 0

    def step(self, size: float = 1.0, weight: float = 1.0) -> None:
        self.losses += 1
        torch.manual_seed(10 * self.losses + self.rank)
        x, y = torch.randn(8, 16), torch.randint(4, (8,))
        self.optimizer.zero_grad()
        with emulate(forward=torch.float16, backward=torch.float16):
            with torch.autocast("cpu", torch.float16):
                loss = nn.functional.cross_entropy(self.model(x).float(), y) * weight
            # Ranks may see data of very different size, and must plan for all of them.
            self.scaler.scale(loss * size).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state(self) -> Any:
        return plans_of(self.scaler), self.scaler.get_scale(), self.scaler.last_step.skipped


def plan_on_different_data(rank: int, build: Build) -> list[Any]:
    trial = Half(rank, build, layerwise=Layerwise(Windows(), measure_every=2))
    states: list[Any] = []
    for _ in range(8):
        trial.step(size=1.0 if rank else 2.0**-6)
        states.append(trial.state())
    return states


def spoiled_on_rank_one(
    rank: int, build: Build, at: int, weight: float, grouped: bool
) -> list[Any]:
    """Plan, scale and skips from step to step; the loss of step `at` is spoiled on rank 1 only."""
    group = dist.group.WORLD if grouped else None
    trial = Half(rank, build, layerwise=Layerwise(Windows(), measure_every=50), process_group=group)
    states: list[Any] = []
    for step in range(at + 4):
        trial.step(weight=weight if rank == 1 and step == at else 1.0)
        states.append(trial.state())
    layerwise = trial.scaler.layerwise
    assert layerwise is not None
    layerwise.begin_step(torch.tensor(trial.scaler.get_scale()))
    return [*states, [(track.outliers, track.frozen) for track in layerwise.tracks]]


class Branching(nn.Module):
    """Runs through one of two paths."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.trunk, self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, through_one: bool) -> Tensor:
        hidden = self.trunk(x)
        return self.one(hidden).tanh() if through_one else self.other(hidden).relu().sin()


def different_graphs(rank: int, apart: list[int], planned: bool) -> tuple[Any, Any, list[str]]:
    """Ranks part at the steps `apart`; parameters, plans and what was said."""
    generator = torch.Generator().manual_seed(3)
    planner = UserGiven(lambda graph, _: ScalePlan.random(graph, generator))
    layerwise = Layerwise(planner, measure_every=4) if planned else False
    model = DistributedDataParallel(Branching(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=2.0**6, layerwise=layerwise)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(10):
            torch.manual_seed(10 * step + rank)
            optimizer.zero_grad()
            loss = model(torch.randn(3, 4), rank == 0 or step not in apart).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    said = [str(w.message) for w in caught if "layer-wise" in str(w.message)]
    frozen = [track.frozen for track in scaler.layerwise.tracks] if scaler.layerwise else []
    return [local(p) for p in model.parameters()], (frozen, scaler.get_scale()), said


def no_loss_on_rank_one(rank: int) -> list[Any]:
    """Rank 1 has nothing to learn from at the measuring step 4."""
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = GradScaler("cpu", layerwise=Layerwise(measure_every=4), process_group=dist.group.WORLD)
    weight.grad = torch.zeros(3)
    for step in range(6):
        loss = scaler.scale(weight.sin().sum())
        if rank == 0 or step != 4:
            loss.backward()
        scaler.step(optimizer)
        scaler.update()
    return [frozen for _, frozen in plans_of(scaler)]
