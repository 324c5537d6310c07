"""The ordinary scaler inside a function of the user's own that is given to `torch.compile`."""

import pytest
import torch
from torch import nn

from assertions import assert_same_bits
from captured.steps import HUGE, MODELS, batches
from gradscale import GradScaler

# Dynamo's own, of how it looks at a loss.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def training(compile_it):
    """Weights, scales and graphs after a few steps, one of which overflows."""
    torch.manual_seed(0)
    model = MODELS["mlp"][0]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    def step(x, target, weight):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target) * weight
        scaler.scale(loss).backward()
        scaler.clip_grad_norm_(optimizer, 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss

    run = torch.compile(step, backend=backend) if compile_it else step
    scales = []
    for batch in batches(MODELS["mlp"][1], (1.0, 0.5, HUGE, 1.0, 1.0)):
        run(*batch)
        scales.append(scaler.get_scale())
    return [p.detach() for p in model.parameters()], scales, graphs


def test_it_has_the_bits_of_the_uncompiled_function():
    weights, scales, _ = training(False)
    compiled_weights, compiled_scales, graphs = training(True)
    assert scales == compiled_scales
    assert 2.0**10 in scales
    for a, b in zip(weights, compiled_weights, strict=True):
        assert_same_bits(a, b)
    # The scaler's methods run between the graphs: forward and loss are what is compiled.
    assert len(graphs) == 1
    assert any("cross_entropy" in str(node.target) for node in graphs[0].graph.nodes)
