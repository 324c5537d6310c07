"""State that lies deeper than `optimizer.state[parameter]`: taken back, or refused."""

from __future__ import annotations

import pytest
import torch

import gradscale


class Deep(torch.optim.Optimizer):
    """Momentum as some optimizers keep it: in a dictionary within the state, beside a list."""

    def __init__(self, parameters, lr=0.1, replaced=False, apart=False):
        super().__init__(parameters, {"lr": lr})
        self.replaced, self.apart = replaced, apart

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state["all" if self.apart else parameter]
                if not state:
                    state["inner"] = {"m": torch.zeros_like(parameter)}
                    state["sums"] = [torch.zeros(())]
                momentum = state["inner"]["m"].mul(0.9).add(parameter.grad)
                if self.replaced:
                    state["inner"] = {"m": momentum}
                else:
                    state["inner"]["m"].copy_(momentum)
                state["sums"][0] += parameter.grad.sum()
                parameter.add_(momentum, alpha=-group["lr"])


class Around(torch.optim.Optimizer):
    """Steps another optimizer in its place."""

    def __init__(self, parameters):
        parameters = list(parameters)
        super().__init__(parameters, {})
        self.inner = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    def step(self, closure=None):
        self.inner.step()


def train(build, sync_free, bad):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build([parameter])
    scaler = gradscale.GradScaler("cpu", init_scale=2.0, sync_free=sync_free)
    for step in range(5):
        optimizer.zero_grad()
        loss = (parameter * (step + 1.0)).square().sum()
        scaler.scale(loss * (torch.inf if step in bad else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    return parameter.detach(), optimizer


@pytest.mark.parametrize("bad", [(), (0,), (2,), (1, 3)], ids=str)
@pytest.mark.parametrize("settings", [{}, {"replaced": True}, {"apart": True}], ids=str)
def test_state_at_any_depth_is_taken_back(settings, bad):
    def build(parameters):
        return Deep(parameters, **settings)

    host, one = train(build, False, bad)
    device, other = train(build, True, bad)
    assert bool(device.isfinite().all())
    assert torch.equal(host, device)
    for mine, theirs in zip(one.state.values(), other.state.values(), strict=True):
        assert torch.equal(mine["inner"]["m"], theirs["inner"]["m"])
        assert torch.equal(mine["sums"][0], theirs["sums"][0])


def test_an_optimizer_around_another_is_refused():
    with pytest.raises(ValueError, match=r"Around steps another optimizer \(SGD\)"):
        train(Around, True, ())


def test_state_that_cannot_be_copied_is_refused():
    class Quantized(torch.Tensor):
        def clone(self):
            raise NotImplementedError("aten.clone")

    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.state[parameter]["m"] = torch.zeros(1).as_subclass(Quantized)
    scaler = gradscale.GradScaler("cpu", sync_free=True)
    scaler.scale(parameter.sum()).backward()
    with pytest.raises(ValueError, match=r"state of SGD cannot be copied \(aten.clone\)"):
        scaler.step(optimizer)


def test_degrees_of_what_lies_deeper_are_refused():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = Deep([parameter])
    degrees = gradscale.Degrees(settings={"lr": -1}, state={"m": 1})
    scaler = gradscale.GradScaler("cpu", undo=degrees)
    scaler.scale(parameter.sum()).backward()
    with pytest.raises(ValueError, match=r"'m' lies deeper, in `optimizer.state\[parameter\]"):
        scaler.step(optimizer)
        scaler.update()
