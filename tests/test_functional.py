"""A whole step as one graph, with the bits of `GradScaler`."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from assertions import assert_same_bits
from gradscale import Dynamic, GradScaler, LastMaximum, TwoSided, functional
from gradscale.gradients.unscale import collect_from, exponent_counts, finite_amax

POLICY = Dynamic(init_scale=2.0**10, growth_interval=2)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def batches():
    torch.manual_seed(1)
    data = [torch.randn(6, 4) for _ in range(7)]
    data[4][0, 0] = math.nan
    weights = [torch.tensor(1e37 if index == 2 else 1.0) for index in range(7)]
    return list(zip(data, weights, strict=True))


def step(parameters, momentum, state, x, weight, model=None, clip=0.5):
    """SGD with momentum and a clipped gradient: forward, backward, policy and all."""

    def scaled_loss(parameters):
        loss = torch.func.functional_call(model, parameters, (x,)).square().mean() * weight
        return loss * state.scale, loss

    grads, loss = torch.func.grad(scaled_loss, has_aux=True)(parameters)
    coefficient, _ = functional.clipping(grads, state.scale, clip)
    grads, found_inf = functional.unscale(grads, state.scale, coefficient)
    moved = {k: 0.9 * momentum[k] + grads[k] for k in parameters}
    new = {k: p - 0.1 * moved[k] for k, p in parameters.items()}
    parameters, momentum = functional.select(found_inf, (parameters, momentum), (new, moved))
    return parameters, momentum, functional.next_state(POLICY, state, found_inf, loss)


def run(compiled):
    model = network()
    parameters = {k: p.detach().clone() for k, p in model.named_parameters()}
    momentum = {k: torch.zeros_like(p) for k, p in parameters.items()}
    state = POLICY.init()
    whole = step if compiled is None else torch.compile(step, fullgraph=True, backend=compiled)
    for x, weight in batches():
        parameters, momentum, state = whole(parameters, momentum, state, x, weight, model=model)
    return [*parameters.values(), state.scale]


def eager():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = GradScaler("cpu", policy=POLICY)
    skipped = []
    for x, weight in batches():
        optimizer.zero_grad()
        scaler.scale(model(x).square().mean() * weight).backward()
        scaler.clip_grad_norm_(optimizer, 0.5)
        scaler.step(optimizer)
        scaler.update()
        skipped.append(scaler.last_step.skipped)
    assert skipped == [False, False, True, False, True, False, False]
    return [*(p.detach() for p in model.parameters()), scaler._scale]


def test_the_pure_step_gives_the_bits_of_the_scaler():
    for a, b in zip(run(None), eager(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert_same_bits(run(None)[-1], eager()[-1])


@pytest.mark.parametrize("scale", [2.0**10, 3.0])
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clipped_gradients_have_the_bits_of_the_scaler(scale, max_norm):
    model, (x, _) = network(), batches()[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=scale)
    scaler.scale(model(x).square().mean()).backward()
    scaled, scale = [p.grad.clone() for p in model.parameters()], scaler._scale.clone()
    norm = scaler.clip_grad_norm_(optimizer, max_norm)
    coefficient, ours = functional.clipping(scaled, scale, max_norm)
    quotients, found_inf = functional.unscale(scaled, scale, coefficient)
    assert_same_bits(ours, norm)
    for quotient, parameter in zip(quotients, model.parameters(), strict=True):
        assert_same_bits(quotient, parameter.grad)
    assert found_inf.item() == 0.0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_into_one_graph_with_the_same_bits(backend):
    torch._dynamo.reset()
    for a, b in zip(run(backend), run(None), strict=True):
        assert_same_bits(a, b)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_inductor_agrees_to_rounding():
    torch._dynamo.reset()
    for a, b in zip(run("inductor"), run(None), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_nothing_is_read_on_the_host():
    with FakeTensorMode():
        grads = [torch.ones(3), torch.ones(2, dtype=torch.float16)]
        grads, found_inf = functional.unscale(grads, torch.ones(()))
        assert grads[1].dtype is torch.float32
        grads, _ = functional.clip_by_norm(grads, 1.0)
        functional.select(found_inf, grads, grads)
        functional.next_state(POLICY, POLICY.init(), found_inf, torch.ones(()))


@pytest.mark.parametrize(
    ("gradient", "scale"), [(math.inf, 1.0), (math.nan, 4.0), (1e30, 2.0**-120)]
)
def test_gradient_and_quotient_are_checked(gradient, scale):
    _, found_inf = functional.unscale((torch.tensor([1.0, gradient]),), torch.tensor(scale))
    assert found_inf.item() == 1.0


def test_float16_gradients_below_its_minimum_survive_the_division():
    grads, _ = functional.unscale([torch.tensor([2.0**-24]).half()], torch.tensor(2.0**20))
    assert grads[0].item() == 2.0**-44


@pytest.mark.parametrize("order", [2.0, float("inf")])
def test_norms_of_half_precision_and_empty_gradients_are_those_of_float32(order):
    leaves = [torch.full((4,), 60000.0, dtype=torch.float16), torch.ones(0), torch.ones(1)]
    clipped, norm = functional.clip_by_norm(leaves, 1000.0, order)
    whole = torch.cat([leaf.double() for leaf in leaves])
    assert norm.item() == pytest.approx(torch.linalg.vector_norm(whole, order).item())
    assert clipped[0].isfinite().all() and 0 < clipped[0][0] <= 1000


def test_finite_gradients_whose_squares_overflow_are_clipped():
    (clipped,), norm = functional.clip_by_norm([torch.tensor([3e20, 4e20])], 1.0)
    assert norm.item() == pytest.approx(5e20)
    assert clipped.tolist() == pytest.approx([0.6, 0.8])


def test_complex_gradients_are_measured_part_by_part():
    parameters = [torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.tensor([3.0 + 4.0j, 0.25 + 0j])
    grads = [parameter.grad for parameter in parameters]
    _, amax, counts = functional.observe(torch.zeros(()), grads, {"amax", "exponents"})
    groups = collect_from(parameters)
    assert amax == finite_amax(groups, torch.device("cpu")) == 4.0
    assert torch.equal(counts, exponent_counts(groups, torch.device("cpu")))


@pytest.mark.parametrize("policy", [LastMaximum(), TwoSided()])
def test_a_policy_that_measures_moves_the_scale_as_in_the_scaler(policy):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scaler = GradScaler("cpu", policy=policy)
    state = policy.init()
    for value in (1.0, 3e-5, math.inf, 7.0):
        gradients = [torch.tensor([value, 0.5, 1e-4])]
        scaler.scale((parameter * gradients[0]).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scaled = [gradients[0] * state.scale]
        quotients, found_inf = functional.unscale(scaled, state.scale)
        seen = functional.observe(found_inf, quotients, policy.needs)
        loss = (parameter.detach() * gradients[0]).sum()
        state = functional.next_state(policy, state, seen, loss)
        assert state.scale.item() == scaler.get_scale()


def test_quotients_that_keep_their_dtype_are_checked_as_they_are_stored():
    gradient, scale = torch.tensor([60000.0]).half(), torch.tensor(0.5)
    (wide,), found_inf = functional.unscale([gradient], scale)
    assert (wide.dtype, found_inf.item()) == (torch.float32, 0.0)
    (kept,), found_inf = functional.unscale([gradient], scale, keep_dtype=True)
    assert (kept.dtype, found_inf.item()) == (torch.float16, 1.0)
