"""Where the first infinity or NaN was made."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradscale
from gradscale.truth import find_nonfinite


class Odd(nn.Module):
    """Two layers with a trap between them."""

    def __init__(self, trap) -> None:
        super().__init__()
        self.a, self.b, self.trap = nn.Linear(4, 4), nn.Linear(4, 4), trap

    def forward(self, x):
        return self.b(self.trap(self.a(x)))


def wrapped(trap):
    return nn.Sequential(nn.Linear(4, 4), Odd(trap), nn.Linear(4, 1))


def run(model, how):
    x = torch.linspace(-1, 1, 12).reshape(3, 4)
    if how == "autocast":
        with torch.autocast("cpu", torch.float16):
            return model(x).float().sum()
    if how in ("checkpoint", "reentrant"):
        hidden = model[0](x)
        hidden = checkpoint(model[1], hidden, use_reentrant=how == "reentrant")
        return model[2](hidden).sum()
    return model(x).sum()


HOW = ("plain", "autocast", "checkpoint", "reentrant")
BACKWARD = {
    "sqrt at zero": (lambda h: (h * 0).sqrt(), "SqrtBackward0"),
    "the other side of a where": (
        lambda h: torch.where(h > 1e9, (h.float() * 1e30).exp(), h.float()),
        "MulBackward0",
    ),
    "a norm to a power below one": (lambda h: (h * 0).abs() ** 0.5, "PowBackward0"),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("trap", BACKWARD)
def test_a_nan_of_the_backward_pass_leads_to_its_operation_and_module(trap, how):
    function, operation = BACKWARD[trap]
    found = find_nonfinite(wrapped(function), lambda m: run(m, how))
    assert torch.isfinite(torch.tensor(found.loss))
    assert found.forward is None or trap == "the other side of a where"
    assert found.backward.module == "1"
    if trap != "the other side of a where":
        assert found.backward.operation == operation
    assert "0.weight" in found.gradients and "2.weight" not in found.gradients


@pytest.mark.parametrize("how", HOW)
def test_a_nan_between_two_children_leads_to_their_parent(how):
    found = find_nonfinite(wrapped(lambda h: h / 0), lambda m: run(m, how))
    assert (found.forward.module, found.forward.operation) == ("1", "Odd")
    assert found.forward.before == "1.b"
    assert "in 1 (Odd), before 1.b" in str(found)


@pytest.mark.parametrize("how", HOW)
def test_a_nan_of_a_layer_leads_to_the_innermost_module(how):
    model = wrapped(lambda h: h)
    with torch.no_grad():
        model[0].weight.mul_(100)
        model[1].a.weight.copy_(torch.eye(4) * 3e38)
    found = find_nonfinite(model, lambda m: run(m, how))
    assert (found.forward.module, found.forward.operation) == ("1.a", "Linear")
    assert found.parameters == ()


def test_a_forward_pass_that_overflows_in_float16_only_is_found_under_autocast():
    model = wrapped(lambda h: h)
    with torch.no_grad():
        model[1].b.weight.mul_(1e6)
    assert not find_nonfinite(model, lambda m: run(m, "plain"))
    assert find_nonfinite(model, lambda m: run(m, "autocast")).forward.module == "1.b"


def deep():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(4)]
    return nn.Sequential(*layers, nn.Linear(16, 1))


def test_an_overflow_is_found_at_the_scale_of_the_skipped_step():
    model, x = deep(), torch.randn(8, 16)
    with torch.no_grad():
        model[2][0].weight.mul_(3e4)

    def loss(m):
        with torch.autocast("cpu", torch.float16):
            return m(x).float().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**15)
    scaler.scale(loss(model)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.last_step.reason == "overflow"
    found = find_nonfinite(model, loss, scaler)
    assert found.scale == 2.0**15 and found.forward is None
    # Layer 4 multiplies its gradient by the large activations of layer 2.
    assert (found.backward.module, found.backward.operation) == ("4", "AddmmBackward0")
    assert "4.weight" in found.gradients and "4.bias" not in found.gradients
    assert not find_nonfinite(model, loss, 1.0), "at scale 1 nothing overflows"
    assert "backward at scale 32768, first in 4" in str(found)


def test_a_loss_that_overflows_when_scaled_is_after_the_model():
    found = find_nonfinite(deep(), lambda m: m(torch.ones(2, 16)).mean() * 1e30, 2.0**60)
    assert found.backward.module == "after Sequential"


def test_bad_batches_and_bad_parameters_are_named_first():
    model = deep()
    bad = torch.full((2, 16), torch.nan)
    found = find_nonfinite(model, lambda m: m(bad).mean())
    assert found.inputs and found.forward is None
    assert str(found).startswith("the model was handed a batch that is not finite\nthe loss is nan")
    with torch.no_grad():
        model[3][0].bias[2] = torch.inf
    found = find_nonfinite(model, lambda m: m(torch.ones(2, 16)).mean())
    assert found.parameters == ("3.0.bias",)
    assert "not finite to begin with: 3.0.bias" in str(found)


def test_a_mask_of_minus_infinity_is_no_alarm():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    x = torch.randn(2, 5, 8)
    found = find_nonfinite(model, lambda m: m(x, src_mask=mask).pow(2).mean(), 2.0**16)
    assert not found
    assert str(found).startswith("everything is finite: loss")


def test_it_leaves_the_model_alone_and_takes_its_hooks_away():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    x = torch.randn(6, 4)
    model(x).sum().backward()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    grads = [p.grad.clone() for p in model.parameters()]
    find_nonfinite(model, lambda m: (m(x) * 0).sqrt().sum())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_was_found_can_be_written_as_json():
    import json

    found = find_nonfinite(wrapped(lambda h: (h * 0).sqrt()), lambda m: run(m, "plain"))
    state = json.loads(json.dumps(found.to_dict()))
    assert state["backward"]["module"] == "1" and state["forward"] is None
