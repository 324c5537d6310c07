"""Closures: every evaluation is unscaled and checked, and an overflow leaves nothing behind."""

import math

import pytest
import torch

from assertions import assert_same_bits
from gradscale import GradScaler

INPUTS = torch.linspace(-1, 1, 24).reshape(8, 3)
TARGETS = INPUTS.prod(1, keepdim=True).tanh() + 0.3


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))


def loss_of(model):
    return torch.nn.functional.mse_loss(model(INPUTS), TARGETS)


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimization: up along the gradient, the gradient there, down from here."""

    def __init__(self, parameters, base, rho=0.05):
        super().__init__(parameters, {"rho": rho})
        self.inner = base(self.param_groups)
        self.evaluations = 0

    @torch.no_grad()
    def step(self, closure):
        closure = torch.enable_grad()(closure)
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        for p in parameters:
            self.state[p]["here"] = p.clone()
            p.add_(p.grad * (self.param_groups[0]["rho"] / (norm + 1e-12)))
        self.zero_grad()
        loss = closure()
        self.evaluations += 1
        for p in parameters:
            p.copy_(self.state[p].pop("here"))
        self.inner.step()
        return loss


OPTIMIZERS = {
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=5),
    "lbfgs-wolfe": lambda p: torch.optim.LBFGS(p, max_iter=6, line_search_fn="strong_wolfe"),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
}


def minimize(build, steps=6, *, scaler=None, keyword=False, returns="loss", zero=True):
    """Parameters and losses after every step, in float32 without a scaler if there is none."""
    model = network()
    optimizer = build(model.parameters())
    trajectory = []

    def closure():
        if zero:
            optimizer.zero_grad()
        loss = loss_of(model)
        scaled = loss if scaler is None else scaler.scale(loss)
        scaled.backward()
        return {"loss": loss, "scaled": scaled, "number": loss.item()}[returns]

    for _ in range(steps):
        if scaler is None:
            loss = optimizer.step(closure)
        elif keyword:
            loss = scaler.step(optimizer, closure=closure)
            scaler.update()
        else:
            loss = scaler.step(optimizer, closure)
            scaler.update()
        trajectory.append([p.detach().clone() for p in model.parameters()])
        trajectory[-1].append(torch.as_tensor(loss).detach())
    return trajectory


def assert_same_run(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a, b, strict=True):
            assert_same_bits(x, y)


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("returns", ["loss", "scaled"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_bits_of_a_float32_run_without_a_scaler(name, keyword, returns):
    build = OPTIMIZERS[name]
    scaler = GradScaler("cpu", growth_interval=2)
    plain = minimize(build)
    assert_same_run(plain, minimize(build, scaler=scaler, keyword=keyword, returns=returns))
    assert scaler.get_scale() == 2.0**19 and scaler.counters.steps == 6
    assert plain[-1][-1] < plain[0][-1]


def test_a_loss_returned_as_a_number_is_passed_on():
    plain = minimize(OPTIMIZERS["lbfgs"], returns="number")
    scaled = minimize(OPTIMIZERS["lbfgs"], scaler=GradScaler("cpu"), returns="number")
    assert_same_run(plain, scaled)


def test_gradients_that_a_closure_does_not_clear_add_up_as_without_a_scaler():
    build = OPTIMIZERS["lbfgs"]
    scaler = GradScaler("cpu", init_scale=16.0, growth_interval=1)
    assert_same_run(minimize(build, 3, zero=False), minimize(build, 3, zero=False, scaler=scaler))


@pytest.mark.parametrize("base", ["sgd", "adam-fused"])
def test_sam_takes_both_gradients_unscaled(base):
    results = []
    for scaled in (False, True):
        model = network()
        optimizer = Sam(model.parameters(), OPTIMIZERS[base])
        scaler = GradScaler("cpu", enabled=scaled, growth_interval=2)

        def closure(optimizer=optimizer, model=model, scaler=scaler):
            optimizer.zero_grad()
            loss = loss_of(model)
            scaler.scale(loss).backward()
            return loss

        for _ in range(6):
            optimizer.zero_grad()
            scaler.scale(loss_of(model)).backward()
            scaler.step(optimizer, closure)
            scaler.update()
        results.append([p.detach() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


def test_an_overflow_before_sam_starts_skips_the_step_without_an_evaluation():
    model = network()
    optimizer = Sam(model.parameters(), OPTIMIZERS["sgd"])
    scaler = GradScaler("cpu", init_scale=8.0)
    scaler.scale(loss_of(model)).backward()
    model[0].weight.grad[0, 0] = math.inf
    assert scaler.step(optimizer, lambda: pytest.fail("evaluated")) is None
    scaler.update()
    assert scaler.last_step.skipped and scaler.get_scale() == 4.0


def overflowing(name, at, value=math.inf, poison="gradient"):
    """A run in which evaluation number `at` overflows; the model, optimizer and scaler."""
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    scaler = GradScaler("cpu", init_scale=2.0**10)
    count = 0

    def closure():
        nonlocal count
        optimizer.zero_grad()
        loss = loss_of(model)
        if count == at and poison == "loss":
            loss = loss * value
        scaler.scale(loss).backward()
        if count == at and poison == "gradient":
            model[0].weight.grad[0, 0] = value
        count += 1
        return loss

    return model, optimizer, scaler, closure


def contents(model, optimizer):
    values = [p.detach().clone() for p in model.parameters()]
    for state in optimizer.state.values():
        for value in state.values():
            items = value if isinstance(value, list) else [value]
            values += [torch.as_tensor(v).clone() for v in items if v is not None]
    return values


@pytest.mark.parametrize("name", ["lbfgs", "lbfgs-wolfe"])
@pytest.mark.parametrize("at", [0, 2, 8])
def test_an_overflow_inside_restores_everything_and_counts_as_skipped(name, at):
    model, optimizer, scaler, closure = overflowing(name, at)
    skipped = []
    for _ in range(4):
        before = contents(model, optimizer)
        result = scaler.step(optimizer, closure)
        scaler.update()
        skipped.append(scaler.last_step.skipped)
        if skipped[-1]:
            assert result is None and scaler.last_step.reason == "overflow"
            assert scaler.last_step.culprits[0].nonfinite == 1
            for a, b in zip(before, contents(model, optimizer), strict=True):
                assert_same_bits(a, b)
    assert sum(skipped) == 1 and scaler.get_scale() == 2.0**9
    assert scaler.counters.skipped == 1


def test_a_loss_that_is_not_finite_is_no_fault_of_the_scale():
    _, optimizer, scaler, closure = overflowing("lbfgs", 2, math.nan, poison="loss")
    scaler.step(optimizer, closure)
    scaler.update()
    assert scaler.last_step.reason == "nonfinite_loss" and scaler.get_scale() == 2.0**10


def test_after_a_skipped_step_training_goes_on_as_if_it_had_not_been():
    model, optimizer, scaler, closure = overflowing("lbfgs", 1)
    for _ in range(4):
        scaler.step(optimizer, closure)
        scaler.update()
    plain = minimize(OPTIMIZERS["lbfgs"], 3)
    for parameter, expected in zip(model.parameters(), plain[-1], strict=False):
        assert_same_bits(parameter.detach(), expected)


def test_a_closure_that_does_not_scale_is_refused_and_leaves_nothing():
    model = network()
    optimizer = OPTIMIZERS["lbfgs"](model.parameters())
    scaler = GradScaler("cpu")
    before = contents(model, optimizer)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for keyword in (False, True):
        with pytest.raises(RuntimeError, match=r"not scaled\. Write `scaler\.scale\(loss\)\.back"):
            if keyword:
                scaler.step(optimizer, closure=closure)
            else:
                scaler.step(optimizer, closure)
    for a, b in zip(before, contents(model, optimizer), strict=True):
        assert_same_bits(a, b)


def test_a_closure_may_evaluate_without_a_gradient():
    class Looking(torch.optim.SGD):
        def step(self, closure):
            with torch.enable_grad():
                closure()
            self.seen = float(closure().detach())
            return super().step()

    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = Looking([parameter], lr=0.5)
    scaler = GradScaler("cpu")
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        loss = parameter.square().sum()
        if calls == 1:
            optimizer.zero_grad()
            scaler.scale(loss).backward()
        return loss

    scaler.step(optimizer, closure)
    assert parameter.item() == 0.0 and optimizer.seen == 1.0


def test_an_exception_in_the_closure_restores_and_passes_through():
    model, optimizer, scaler, closure = overflowing("lbfgs", None)
    count = 0

    def failing():
        nonlocal count
        count += 1
        if count == 3:
            raise KeyError("data")
        return closure()

    before = contents(model, optimizer)
    with pytest.raises(KeyError, match="data"):
        scaler.step(optimizer, failing)
    for a, b in zip(before, contents(model, optimizer), strict=True):
        assert_same_bits(a, b)
    scaler.step(optimizer, closure)
    scaler.update()
    assert not scaler.last_step.skipped


def test_another_optimizer_may_step_inside():
    model = network()
    other = torch.nn.Parameter(torch.ones(1))
    outer = OPTIMIZERS["lbfgs"](model.parameters())
    inner = torch.optim.SGD([other], lr=0.25)
    scaler = GradScaler("cpu")
    done = []

    def inner_closure():
        inner.zero_grad()
        loss = other.square().sum()
        scaler.scale(loss).backward()
        return loss

    def closure():
        if not done:
            done.append(scaler.step(inner, inner_closure))
        outer.zero_grad()
        loss = loss_of(model)
        scaler.scale(loss).backward()
        return loss

    scaler.step(outer, closure)
    scaler.update()
    assert other.item() == 0.5 and done[0].item() == 1.0
    plain = minimize(OPTIMIZERS["lbfgs"], 1)
    assert_same_bits(model[0].weight.detach(), plain[0][0])


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        (lambda s, o, c: s.step(o, c), "inside that optimizer's own closure"),
        (lambda s, o, c: s.update(), r"`update\(\)` was called inside a closure"),
    ],
)
def test_ending_the_step_inside_is_refused(inside, words):
    model = network()
    optimizer = OPTIMIZERS["lbfgs"](model.parameters())
    scaler = GradScaler("cpu")

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        scaler.scale(loss).backward()
        inside(scaler, optimizer, closure)
        return loss

    with pytest.raises(RuntimeError, match=words):
        scaler.step(optimizer, closure)


@pytest.mark.parametrize("explicit", [False, True])
def test_clipping_inside_the_closure(explicit):
    results = []
    for scaled in (False, True):
        model = network()
        optimizer = OPTIMIZERS["lbfgs"](model.parameters())
        scaler = GradScaler("cpu", enabled=scaled)

        def closure(optimizer=optimizer, model=model, scaler=scaler, scaled=scaled):
            optimizer.zero_grad()
            loss = loss_of(model)
            scaler.scale(loss).backward()
            if scaled and not explicit:
                scaler.clip_grad_norm_(optimizer, 0.1)
            else:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            return loss

        for _ in range(3):
            scaler.step(optimizer, closure)
            scaler.update()
        results.append([p.detach() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


def test_clipping_before_a_closure_that_leaves_the_gradients_scaled_is_refused():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([parameter], fused=True)
    scaler = GradScaler("cpu")
    scaler.scale(parameter.sum()).backward()
    scaler.clip_grad_norm_(optimizer, 1.0)
    with pytest.raises(RuntimeError, match="Clip inside the closure"):
        scaler.step(optimizer, lambda: None)


@pytest.mark.parametrize(("name", "undo"), [("sgd", "learning_rate")])
def test_inside_closures_the_gradient_is_divided_whatever_undo_says(name, undo):
    plain = minimize(OPTIMIZERS[name])
    scaler = GradScaler("cpu", undo=undo, growth_interval=2)
    assert_same_run(plain, minimize(OPTIMIZERS[name], scaler=scaler))


def test_a_layerwise_scaler_measures_every_evaluation():
    plain = minimize(OPTIMIZERS["lbfgs"])
    scaler = GradScaler("cpu", layerwise=True)
    assert_same_run(plain, minimize(OPTIMIZERS["lbfgs"], scaler=scaler))
    assert "loss scale" in str(scaler.layerwise.report())


def test_two_evaluations_of_a_scale_below_one_are_checked_as_quotients():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.LBFGS([parameter], max_iter=2)
    scaler = GradScaler("cpu", init_scale=2.0**-126)

    def closure():
        optimizer.zero_grad()
        scaler.scale((parameter * 1.0).sum()).backward()
        parameter.grad.fill_(1e30)
        return parameter.sum()

    scaler.step(optimizer, closure)
    assert scaler.last_step.skipped and parameter.item() == 1.0


def test_a_closure_of_none_is_an_ordinary_step():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    scaler = GradScaler("cpu")
    scaler.scale(parameter.sum()).backward()
    scaler.step(optimizer, closure=None)
    assert parameter.item() == 0.5


def test_half_precision_models_work_with_closures():
    from gradscale import half_precision

    model = network()
    optimizer = OPTIMIZERS["lbfgs"](model.parameters())
    half_precision(model, optimizer, format=torch.bfloat16)
    scaler = GradScaler("cpu")

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(INPUTS.bfloat16()).float(), TARGETS)
        scaler.scale(loss).backward()
        return loss

    first = scaler.step(optimizer, closure).item()
    scaler.update()
    last = scaler.step(optimizer, closure).item()
    assert last < first and not scaler.last_step.skipped


def test_what_another_optimizer_divided_is_scaled_again_by_the_next_evaluation():
    shared = torch.nn.Parameter(torch.ones(1))
    first = torch.optim.SGD([shared], lr=0.25)
    second = torch.optim.LBFGS([shared], max_iter=1)
    scaler = GradScaler("cpu", init_scale=8.0)
    scaler.scale(shared.square().sum()).backward()
    scaler.step(first)

    def closure():
        second.zero_grad()
        loss = shared.square().sum()
        scaler.scale(loss).backward()
        return loss

    scaler.step(second, closure)
    assert shared.grad.item() == 1.0
