"""`torch.compile(model)` and `GradScaler(layerwise=True)`: nothing else to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

import gradscale
from gradscale import GradScaler, Layerwise
from gradscale.backward import rescale, walk
from gradscale.plans import ScalePlan

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

Compile = Callable[[nn.Module], nn.Module]
compile: Any = torch.compile


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.linear(x))


class Deep(nn.Module):
    """Layers as torch initialises them: gradients shrink by an octave or two in each."""

    def __init__(self, depth: int, broken: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(64) for _ in range(depth))
        self.head = nn.Linear(64, 10)
        self.broken = broken

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = block(x)
            if self.broken and number == 5:
                torch._dynamo.graph_break()
        return self.head(x)


class Run:
    """Some steps of training, and what the scaler says of them."""

    def __init__(
        self,
        compiled: Compile,
        *,
        steps: int = 12,
        depth: int = 20,
        broken: bool = False,
        rows: Callable[[int], int] = lambda step: 32,
        layerwise: Any = True,
    ) -> None:
        torch.manual_seed(0)
        model = self.model = Deep(depth, broken)
        self.skipped = 0
        self.scaler = GradScaler("cpu", layerwise=layerwise)
        self.scaler.name_parameters(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        run = compiled(model)
        self.losses: list[float] = []
        self.dead: list[list[str]] = []
        counters.clear()
        for step in range(steps):
            x, y = torch.randn(rows(step), 64), torch.randint(10, (rows(step),))
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = F.cross_entropy(run(x).float(), y)
            self.scaler.scale(loss).backward()
            self.dead.append([n for n, p in model.named_parameters() if not bool(p.grad.any())])
            self.scaler.step(optimizer)
            self.scaler.update()
            self.skipped += self.scaler.last_step.skipped
            self.losses.append(loss.item())
        self.compiled = counters["stats"]["unique_graphs"]
        self.weights = [p.detach().clone() for p in model.parameters()]

    @property
    def report(self) -> str:
        return str(self.scaler.layerwise.report())


def whole(**settings: Any) -> Compile:
    return lambda model: compile(model, backend="aot_eager", **settings)


def by_block(model: nn.Module) -> nn.Module:
    for block in model.blocks:
        block.compile(backend="aot_eager")
    return model


def half_of_it(model: nn.Module) -> nn.Module:
    for block in model.blocks[::2]:
        block.compile(backend="aot_eager")
    return model


@pytest.fixture(scope="module")
def eager() -> Run:
    return Run(lambda model: model)


FORMS: dict[str, Compile] = {
    "whole": whole(),
    "fullgraph": whole(fullgraph=True),
    "dynamic": whole(dynamic=True),
    "by_block": by_block,
    "half_of_it": half_of_it,
}


SLOW = {"fullgraph", "half_of_it"}


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=[pytest.mark.slow] * (form in SLOW)) for form in FORMS]
)
def test_a_compiled_model_trains_and_reports_as_in_the_eager_run(form: str, eager: Run) -> None:
    run = Run(FORMS[form])
    assert "4 loss scales are needed" in eager.report
    assert run.report == eager.report
    assert run.losses == eager.losses
    assert run.dead == eager.dead
    assert run.compiled >= 1


def test_a_graph_break_leaves_one_plan_over_both_parts(eager: Run) -> None:
    run = Run(whole(), broken=True)
    assert run.compiled == 2
    assert run.report == eager.report
    assert run.losses == eager.losses


def test_no_gradient_is_dead_where_one_scale_leaves_dead_ones() -> None:
    assert Run(whole(), layerwise=False, depth=30).dead[0]
    assert Run(whole(), layerwise=True, depth=30).dead[-1] == []


class Wandering:
    """A planner that gives every twentieth part of training another random plan."""

    moments = products = False

    def __init__(self) -> None:
        self.plans = 0

    def __call__(self, graph: Any, measurements: Any) -> ScalePlan:
        self.plans += 1
        return ScalePlan.random(graph, torch.Generator().manual_seed(self.plans), -6, 6)


def test_two_hundred_steps_of_changing_plans_and_overflows_compile_once() -> None:
    planner = Wandering()
    layerwise = Layerwise(gradscale.plans.UserGiven(planner), measure_every=8)
    run = Run(whole(), steps=200, depth=4, layerwise=layerwise)
    assert planner.plans >= 20
    assert run.skipped > 0
    assert run.compiled == 1


def test_batches_of_all_sizes_keep_one_plan_in_a_dynamic_graph() -> None:
    expected = Run(lambda model: model, rows=lambda step: 16 + step)
    run = Run(whole(dynamic=True), rows=lambda step: 16 + step)
    assert run.compiled == 1
    assert len(run.scaler.layerwise.tracks) == 1
    assert "loss scales are needed" in run.report
    assert run.report == expected.report


def test_a_half_precision_model_keeps_the_exponents_of_its_parts_and_its_bits() -> None:
    def train(compiled: Compile) -> tuple[str, list[Tensor]]:
        torch.manual_seed(0)
        model = Deep(20, False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        gradscale.half_precision(model, optimizer, torch.float16)
        scaler = GradScaler("cpu", layerwise=True)
        run = compiled(model)
        for _ in range(6):
            optimizer.zero_grad()
            x, y = torch.randn(32, 64).half(), torch.randint(10, (32,))
            scaler.scale(F.cross_entropy(run(x).float(), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        return str(scaler.layerwise.report()), [p.detach() for p in model.parameters()]

    expected, weights = train(lambda model: model)
    report, found = train(whole())
    assert "parameters with float32 masters keep the scale of their group" in report
    assert report.splitlines()[0] == expected.splitlines()[0]
    assert all(torch.equal(one, two) for one, two in zip(found, weights, strict=True))


@pytest.mark.slow
def test_inductor_reports_the_scales_of_the_eager_run(eager: Run) -> None:
    run = Run(lambda model: compile(model))
    assert run.report.splitlines()[0] == eager.report.splitlines()[0]
    assert run.report.splitlines()[-1] == eager.report.splitlines()[-1]
    assert run.compiled == 1


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune-no-cudagraphs"])
def test_on_a_gpu_cuda_graphs_of_inductor_follow_plans_that_change(mode: str) -> None:
    def gradients(settings: dict[str, Any], seeds: list[int | None]) -> list[list[Tensor]]:
        torch.manual_seed(0)
        model = Deep(8, False).cuda()
        run = compile(model, **settings)
        x = torch.randn(16, 64, device="cuda")
        found: list[list[Tensor]] = []
        for seed in seeds:
            loss = run(x).square().mean()
            if seed is not None:
                walked = walk(loss)
                generator = torch.Generator().manual_seed(seed)
                rescale(walked, ScalePlan.random(walked.graph, generator))
            loss.backward()
            found.append([p.grad.clone() for p in model.parameters()])
            model.zero_grad()
        return found

    keeps = Layerwise()  # what is compiled while it lives is prepared
    found = gradients({"mode": mode}, [None, None, None, 0, 1, 2, None])
    assert keeps.tracks.keep == 8
    for each in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(each, found[0], strict=True))
