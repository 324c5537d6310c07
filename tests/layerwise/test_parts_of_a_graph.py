"""What users' functions add is right in `autograd.grad` and `backward(inputs=)`, too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscale import GradScaler
from gradscale.plans import ScalePlan
from user_functions import ADDITIONS, AuxLossAutoScaler, Experts


@pytest.fixture(autouse=True)
def untold():
    AuxLossAutoScaler.set_loss_scale(torch.tensor(1.0))


def batch(seed):
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))


def model_of(family):
    torch.manual_seed(0)
    return Experts(ADDITIONS[family])


def any_plan(graph, measurements):
    del measurements
    return ScalePlan.random(graph, torch.Generator().manual_seed(4))


PLANS = {"one": False, "windows": True, "any": any_plan}


def by_grad(model, scaler, seed, names):
    wanted = [model.get_parameter(name) for name in names]
    loss = model(batch(seed))
    if scaler is None:
        return torch.autograd.grad(loss, wanted)
    found = torch.autograd.grad(scaler.scale(loss), wanted)
    return [gradient / scaler.get_scale() for gradient in found]


def by_inputs(model, scaler, seed, names):
    model.zero_grad()
    wanted = [model.get_parameter(name) for name in names]
    loss = model(batch(seed))
    (loss if scaler is None else scaler.scale(loss)).backward(inputs=wanted)
    size = 1.0 if scaler is None else scaler.get_scale()
    assert all((p.grad is not None) == any(p is w for w in wanted) for p in model.parameters())
    return [parameter.grad / size for parameter in wanted]


@given(
    names=st.sets(
        st.sampled_from(["router.weight", "router.bias", "up.weight", "experts.1.bias"]),
        min_size=1,
    ),
    family=st.sampled_from(sorted(ADDITIONS)),
    log2_scale=st.integers(-8, 24),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("ask", [by_grad, by_inputs])
@pytest.mark.parametrize("plan", PLANS)
@settings(max_examples=10, deadline=None)
def test_a_pass_to_some_of_the_leaves_is_corrected_as_a_whole_one(
    ask, plan, names, family, log2_scale, seed
):
    scaler = GradScaler("cpu", init_scale=2.0**log2_scale, layerwise=PLANS[plan], injected="scale")
    names = sorted(names)
    model = model_of(family)
    scaled = ask(model, scaler, seed, names)
    for one, other in zip(ask(model, None, seed, names), scaled, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("plan", PLANS)
def test_the_leaves_one_after_the_other_are_the_whole_pass(plan):
    """Parts of a step, each through a graph of its own, then the step itself."""
    scaler = GradScaler("cpu", layerwise=PLANS[plan], injected="scale")
    model, plain = model_of("DeepSeek"), model_of("DeepSeek")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for seed in range(3):
        optimizer.zero_grad()
        for parameter in model.parameters():
            scaler.scale(model(batch(seed))).backward(inputs=[parameter])
        scaler.step(optimizer)
        scaler.update()
        plain.zero_grad()
        plain(batch(seed)).backward()
        for one, other in zip(plain.parameters(), model.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("layerwise", [False, True])
def test_what_is_differentiated_again_cannot_be_asked_and_is_said_once(layerwise):
    scaler = GradScaler("cpu", layerwise=layerwise, injected="scale")
    model = model_of("DeepSeek")
    words = r"cannot look at `AddAuxiliaryLoss.backward`, because its gradient is being different"
    with pytest.warns(UserWarning, match=words) as caught:
        for seed in range(3):
            loss = scaler.scale(model(batch(seed)))
            torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    assert len(caught) == 1
    # In an ordinary pass through the same graph it is corrected all the same.
    (found,) = by_grad(model, scaler, 7, ["router.weight"])
    assert torch.equal(found, by_grad(model, None, 7, ["router.weight"])[0])


class Adds(torch.autograd.Function):
    @staticmethod
    def forward(x, loss):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad, torch.ones(())


@pytest.mark.parametrize("layerwise", [False, True])
def test_inside_torch_func_nothing_is_corrected_which_is_said_once(layerwise):
    scaler = GradScaler("cpu", init_scale=8.0, layerwise=layerwise, injected="scale")

    def loss(w):
        return scaler.scale(Adds.apply(w * 2, (w * w).sum()).sum())

    words = r"cannot look at `Adds.backward`, because it is differentiated by `torch.func`"
    with pytest.warns(UserWarning, match=words) as caught:
        for _ in range(2):
            gradient = torch.func.grad(loss)(torch.ones(3))
    assert len(caught) == 1 and torch.equal(gradient, torch.full((3,), 18.0))
