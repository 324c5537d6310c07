"""The step as written reads nothing on the host either, so that a graph can record it.

There is no CUDA device where these run. The meta device stands in for it: the scaler treats it as
an accelerator, and whatever reads a value of a tensor there raises.
"""

import pytest
import torch
from torch import nn

from gradscale import Dynamic, GradScaler, LogNormal
from gradscale.captured.eager_step import EagerStep
from gradscale.captured.step_count import StepCount


def loss_fn(model, batch):
    return model(batch).square().mean()


def step_on_meta(policy, max_norm, sync_free=True):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to("meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    scaler = GradScaler("meta", policy=policy, sync_free=sync_free)
    return EagerStep(model, loss_fn, optimizer, scaler, max_norm, StepCount("meta"))


def test_on_the_meta_device_a_read_raises():
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros((), device="meta").item()


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("policy", [Dynamic(), Dynamic(hysteresis=2), LogNormal()])
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_step_on_an_accelerator_reads_nothing(policy, max_norm, pieces):
    step = step_on_meta(policy, max_norm)
    for _ in range(3):
        result = step([torch.empty(5, 4, device="meta") for _ in range(pieces)])
    assert result.loss.device.type == result.found_inf.device.type == "meta"


def test_without_sync_free_the_step_reads_its_flag():
    step = step_on_meta(Dynamic(), None, sync_free=False)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step([torch.empty(5, 4, device="meta")])
