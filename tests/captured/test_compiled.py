"""A compiled step is the eager loop, bit for bit, in one graph and without a host read."""

import pytest
import torch

from assertions import assert_same_bits
from captured.steps import MODELS, batches, build, tensors_of
from gradscale import Dynamic

# Torch imports a deprecated module of its own while it traces an optimizer.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")

HUGE = 2.0**120
WEIGHTS = (1.0, 0.5, HUGE, 1.0, HUGE, HUGE, 2.0, float("nan"), 1.0)


@pytest.fixture
def tensors_as_compiled(monkeypatch):
    """Adam's arithmetic as it is traced: on step counters as tensors, not as Python numbers."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def run(step, data):
    trace = []
    for batch in data:
        loss = step.step(batch)
        trace.append((loss, step.last_found_inf, step.scale.clone(), step.last_norm))
    return trace


def assert_equal_traces(left, right):
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x is None and y is None) or torch.equal(x.nan_to_num(-1), y.nan_to_num(-1))


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize(("model", "optimizer"), [("mlp", "sgd"), ("mlp", "momentum")])
def test_a_compiled_step_has_the_bits_of_the_eager_one(model, optimizer, max_norm):
    policy = Dynamic(init_scale=2.0**10, growth_interval=2)
    options = {"policy": policy, "max_norm": max_norm, "backend": "aot_eager"}
    eager = build(model, optimizer, mode="eager", **options)
    compiled = build(model, optimizer, mode="compile", **options)
    data = batches(MODELS[model][1], WEIGHTS)
    assert_equal_traces(run(eager, data), run(compiled, data))
    assert compiled.captured
    for a, b in zip(tensors_of(eager), tensors_of(compiled), strict=True):
        assert_same_bits(a, b)
    assert compiled.skipped_steps.item() == eager.skipped_steps.item() == 4
