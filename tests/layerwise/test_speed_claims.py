"""What the page on layer-wise scaling says of its cost, as far as it can be counted, not timed."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradscale.backward import BackwardGraph
from gradscale.backward.graph import walk
from gradscale.backward.measure import measure
from gradscale.layerwise import Layerwise
from gradscale.layerwise import layerwise as module
from gradscale.scaler import GradScaler


class Dispatched(TorchDispatchMode):
    """Counts the operations that a mode such as `emulate` must handle."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def half_chain():
    x = torch.ones(4, dtype=torch.float16, requires_grad=True)
    return (x * 2).exp().float().sum()


@pytest.mark.parametrize("moments", [False, True])
def test_counting_shows_no_operation_to_a_dispatch_mode(moments):
    counts = []
    for measured in (False, True):
        loss = half_chain()
        measuring = measure(walk(loss), moments=moments) if measured else None
        with Dispatched() as mode:
            loss.backward()
        counts.append(mode.count)
        assert measuring is None or measuring.result().records
    assert counts[0] == counts[1]


def step(scaler, model, optimizer):
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.ones(2, 8)).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def test_only_measuring_steps_of_a_uniform_plan_walk_the_graph(monkeypatch):
    begun = []
    begin = module.Layerwise._begin_pass

    def noted(self, walked):
        begun.append(self.timing.steps)
        begin(self, walked)

    monkeypatch.setattr(module.Layerwise, "_begin_pass", noted)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    scaler = GradScaler("cpu", layerwise=Layerwise(measure_every=5))
    for _ in range(12):
        step(scaler, model, optimizer)
    assert begun == [0, 1, 2, 4, 5, 10]


def test_a_plan_hooks_only_edges_whose_ends_differ():
    loss = half_chain()
    graph = BackwardGraph.of(loss)
    hooked = []
    rescale = module.rescale

    def noted(walked, plan, factors):
        handle = rescale(walked, plan, factors)
        hooked.append((handle.edges, plan, walked.graph))
        return handle

    scaler = GradScaler("cpu", layerwise=lambda graph, measurements: {1: 3})
    module.rescale, x = noted, None
    try:
        for _ in range(3):
            x = torch.ones(4, dtype=torch.float16, requires_grad=True)
            optimizer = torch.optim.SGD([x], lr=1e-4)
            scaler.scale((x * 2).exp().float().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    finally:
        module.rescale = rescale
    assert hooked and len(graph) > 2
    for edges, plan, seen in hooked:
        k = plan.exponents
        assert edges == sum(k[edge.source] != k[edge.target] for edge in seen.edges) == 2
