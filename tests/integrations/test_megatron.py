"""Megatron-core's scaler class over our policies. Its optimizers need a GPU: they are imitated."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import gradscale
from hosts import host

grad_scaler = host("megatron.core.optimizer.grad_scaler")
ours = host("gradscale.integrations.megatron")


class MixedPrecisionOptimizer:
    """`scale_loss` and `prepare_grads` of Megatron's, on the CPU."""

    __module__ = "megatron.core.optimizer.optimizer"

    def __init__(self, scaler):
        self.grad_scaler = scaler
        self.parameter = torch.nn.Parameter(torch.ones(4))
        self.optimizer = torch.optim.SGD([self.parameter], lr=0.5)
        self.found_inf = torch.tensor([0.0])

    def train(self, gradient):
        loss = (self.parameter * gradient).sum()
        (self.grad_scaler.scale * loss).backward()
        self.found_inf.fill_(0.0)
        torch._amp_foreach_non_finite_check_and_unscale_(
            [self.parameter.grad], self.found_inf, self.grad_scaler.inv_scale
        )
        found = self.found_inf.item() > 0
        self.grad_scaler.update(found)
        if not found:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return not found


def plain(steps, **settings):
    """The scales that Megatron's own class computes, on the CPU."""
    scaler = object.__new__(grad_scaler.DynamicGradScaler)
    scaler._scale = torch.tensor([settings["initial_scale"]])
    scaler.min_scale = torch.tensor([settings["min_scale"]])
    scaler.growth_factor, scaler.backoff_factor = torch.tensor([2.0]), torch.tensor([0.5])
    scaler.growth_interval, scaler.hysteresis = settings["growth_interval"], settings["hysteresis"]
    scaler._growth_tracker, scaler._hysteresis_tracker = 0, settings["hysteresis"]
    scales = []
    for found in steps:
        scaler.update(found)
        scales.append(scaler.scale.item())
    return scales, scaler


STEPS = [False, True, True, False, False, False, True, False, True, True]


def test_it_moves_as_megatrons_own_with_the_same_settings():
    policy = gradscale.Dynamic(init_scale=2.0**12, growth_interval=3, min_scale=1.0, hysteresis=2)
    scaler = ours.PolicyGradScaler("cpu", policy=policy)
    scales = []
    for found in STEPS:
        scaler.update(found)
        scales.append(scaler.scale.item())
    settings = {"initial_scale": 2.0**12, "min_scale": 1.0, "growth_interval": 3, "hysteresis": 2}
    assert scales == plain(STEPS, **settings)[0]
    assert isinstance(scaler, grad_scaler.MegatronGradScaler) and scaler.scale.shape == (1,)


def test_a_run_steps_and_skips_with_it():
    host_ = MixedPrecisionOptimizer(SimpleNamespace())
    attachment = gradscale.attach(host_, policy=gradscale.Dynamic(init_scale=8.0))
    assert host_.train(torch.ones(4)) and not host_.train(torch.full((4,), torch.inf))
    assert host_.parameter.tolist() == [0.5] * 4
    assert attachment.scaler.counters.skipped == 1 and attachment.scaler.get_scale() == 4.0
    assert "Megatron" in str(attachment.scaler.last_step)
    attachment.detach()
    assert isinstance(host_.grad_scaler, SimpleNamespace)


def test_states_of_ours_and_of_megatrons_are_taken_over():
    policy = gradscale.Dynamic(init_scale=2.0**12, growth_interval=3, min_scale=1.0, hysteresis=2)
    first = ours.PolicyGradScaler("cpu", policy=policy)
    for found in STEPS:
        first.update(found)
    again = ours.PolicyGradScaler("cpu", policy=policy)
    again.load_state_dict(first.state_dict())
    assert again.scaler.counters == first.scaler.counters and again.scale == first.scale
    settings = {"initial_scale": 2.0**12, "min_scale": 1.0, "growth_interval": 3, "hysteresis": 2}
    _, theirs = plain(STEPS[:5], **settings)
    other = ours.PolicyGradScaler("cpu", policy=policy)
    other.load_state_dict(theirs.state_dict())
    for found in STEPS[5:]:
        other.update(found)
        theirs.update(found)
        assert other.scale.item() == theirs.scale.item()


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"Band\(…\).*needs amax.*Megatron tells only"):
        ours.PolicyGradScaler("cpu", policy=gradscale.Band())
    with pytest.raises(ValueError, match=r"layerwise=….*would never see it"):
        ours.PolicyGradScaler("cpu", layerwise=True)
    with pytest.raises(ValueError, match=r"MixedPrecisionOptimizer.*fp16=True"):
        gradscale.attach(MixedPrecisionOptimizer(None))
