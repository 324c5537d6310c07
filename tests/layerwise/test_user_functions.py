"""Scalers and the backward functions that torch did not write: named, corrected, held."""

import copy
import pickle
import warnings

import pytest
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gradscale
from gradscale import GradScaler, Layerwise
from gradscale.plans import ScalePlan
from user_functions import (
    ADDITIONS,
    AddAuxiliaryLoss,
    AuxLossAutoScaler,
    Clamp,
    Decay,
    Experts,
    Reversal,
    Sign,
)


@pytest.fixture(autouse=True)
def untold():
    AuxLossAutoScaler.set_loss_scale(torch.tensor(1.0))


def batch(seed):
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))


def trained(make, add, steps=5, parts=1, lr=2.0**-3):
    """Parameters and gradients of every step."""
    torch.manual_seed(0)
    model = Experts(add)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    scaler, seen = make(), []
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(parts):
            loss = model(batch(step * parts + part))
            (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            scaler.unscale_(optimizer)
        seen.append(torch.cat([p.grad.flatten() for p in model.parameters()]).clone())
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return seen


def equal(one, other):
    return [torch.equal(a, b) for a, b in zip(one, other, strict=True)]


def random_plan(seed):
    def plan(graph, measurements):
        del measurements
        return ScalePlan.random(graph, torch.Generator().manual_seed(seed))

    return plan


@pytest.mark.parametrize("family", ADDITIONS)
@pytest.mark.parametrize("layerwise", [False, True, random_plan(3)], ids=["one", "windows", "any"])
@pytest.mark.parametrize("parts", [1, 3])
def test_what_a_router_adds_is_that_of_float32_without_a_scaler(family, layerwise, parts):
    add = ADDITIONS[family]
    scaled = trained(
        lambda: GradScaler("cpu", layerwise=layerwise, injected="scale"), add, 5, parts
    )
    assert all(equal(trained(lambda: None, add, 5, parts), scaled))


@given(seed=st.integers(0, 2**16), family=st.sampled_from(sorted(ADDITIONS)))
@settings(max_examples=12, deadline=None)
def test_it_is_so_under_random_plans_and_a_scale_that_moves(seed, family):
    policy = gradscale.Dynamic(init_scale=2.0**4, growth_interval=1, max_scale=2.0**30)

    def make():
        return GradScaler("cpu", policy=policy, layerwise=random_plan(seed), injected="scale")

    add = ADDITIONS[family]
    assert all(equal(trained(lambda: None, add), trained(make, add)))


@pytest.mark.parametrize(
    "policy", [gradscale.Static(2.0**20), gradscale.LastMaximum(), gradscale.TwoSided()]
)
def test_it_is_so_under_any_policy(policy):
    add = ADDITIONS["DeepSeek"]
    scaled = trained(lambda: GradScaler("cpu", policy=policy, injected="scale"), add)
    assert all(equal(trained(lambda: None, add), scaled))


def test_one_output_that_passes_on_and_adds_is_right_too():
    def add(hidden, loss):
        return Decay.apply(hidden) + 0 * loss

    for layerwise in (False, random_plan(1)):
        make = lambda layerwise=layerwise: GradScaler("cpu", layerwise=layerwise, injected="scale")  # noqa: E731
        assert all(equal(trained(lambda: None, add), trained(make, add)))


def test_in_half_precision_what_is_passed_on_is_not_flushed_to_correct_what_is_added():
    small = 2.0**-26

    def gradient(make):
        x = torch.ones(4, dtype=torch.float16, requires_grad=True)
        scaler = make()
        loss = (AddAuxiliaryLoss.apply(x, (x.float() * 0).sum()).float() * small).sum()
        mixed = (Decay.apply(x).float() * small).sum()
        total = loss + mixed
        (total if scaler is None else scaler.scale(total)).backward()
        return x.grad.float()

    scaled = gradient(lambda: GradScaler("cpu", init_scale=2.0**10, injected="scale"))
    # (3 + 1) small, and a quarter of x, at 2^10 in float16.
    assert torch.equal(scaled, torch.full((4,), 256.0))
    alone = torch.ones(4, dtype=torch.float16, requires_grad=True)
    scaler = GradScaler("cpu", init_scale=2.0**10, injected="scale")
    extra = torch.zeros((), requires_grad=True)
    scaler.scale((AddAuxiliaryLoss.apply(alone, extra).float() * small).sum()).backward()
    assert torch.equal(alone.grad.float() / 2.0**10, torch.full((4,), small))
    assert extra.grad == 2.0**10


def test_megatrons_functions_that_were_told_the_scale_are_left_alone():
    add = ADDITIONS["Megatron"]
    plain = trained(lambda: None, add)

    def telling(hidden, loss):
        AuxLossAutoScaler.set_loss_scale(torch.tensor(2.0**16))
        return add(hidden, loss)

    for injected in ("warn", "scale", "ignore"):
        scaled = trained(lambda injected=injected: GradScaler("cpu", injected=injected), telling)
        assert all(equal(plain, scaled))


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_function_that_adds_is_named_once_with_what_it_reaches_and_by_how_much(layerwise):
    model = Experts(ADDITIONS["DeepSeek"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = GradScaler("cpu", init_scale=2.0**12, layerwise=layerwise)
    scaler.name_parameters(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(6):
            optimizer.zero_grad()
            scaler.scale(model(batch(step))).backward()
            scaler.step(optimizer)
            scaler.update()
    (warning,) = [str(w.message) for w in caught]
    for words in (
        "`AddAuxiliaryLoss.backward`",
        "returns a gradient of its own, which reaches router.",
        "4,096 times too small",
        "`injected='scale'`",
    ):
        assert words in warning
    if layerwise:
        assert "AddAuxiliaryLoss stays at the loss scale" in str(scaler.layerwise.report())


def test_ignoring_looks_at_nothing_and_warns_of_nothing():
    add = ADDITIONS["DeepSeek"]
    trained(lambda: GradScaler("cpu", injected="ignore"), add)
    trained(lambda: GradScaler("cpu", layerwise=True, injected="ignore"), add)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match=r"injected='fix'.*must be 'warn', 'scale' or 'ignore'"):
        GradScaler("cpu", injected="fix")


def deep(make):
    """A chain that flushes at one scale, with a user's function near its beginning."""

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(24))

        def forward(self, x):
            for number, layer in enumerate(self.layers):
                x = nn.functional.gelu(layer(make(x) if number == 4 else x))
            return x

    torch.manual_seed(0)
    return Chain()


def planned(make, steps=4, layerwise=True):
    model = deep(make)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = GradScaler("cpu", layerwise=layerwise)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = model(x).float().square().sum() * 2.0**-18
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    scaler.layerwise.begin_step(scaler._scale)
    (track,) = scaler.layerwise.tracks
    names = track.graph.names
    (node,) = (n for n in track.graph.structure.custom if names[n] != "_LossEntryBackward")
    return scaler, track, node


def test_a_linear_function_follows_a_plan_once_it_was_seen_to_be_linear():
    scaler, track, node = planned(Reversal.apply)
    graph, exponents = track.graph, track.plan.exponents
    around = [graph.edges[edge].target for edge in graph.edges_from(node)]
    around += [graph.edges[edge].source for edge in graph.edges_into(node)]
    assert len(track.plan.groups) > 1 and not graph.unproven
    assert {exponents[other] for other in around} == {exponents[node]}
    assert "Reversal" not in str(scaler.layerwise.report())


@pytest.mark.parametrize("make", [Sign.apply, lambda x: Clamp.apply(x, 2.0**-20)])
def test_a_function_that_is_not_linear_stays_at_the_loss_scale_and_is_named(make):
    scaler, track, node = planned(make)
    assert track.plan.exponents[node] == 0
    assert "stays at the loss scale: it is not linear in its gradient" in str(
        scaler.layerwise.report()
    )


def test_a_function_that_cannot_be_probed_stays_too_unless_somebody_vouches_for_it():
    class Counts(torch.autograd.Function):
        counter = torch.zeros(())

        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            Counts.counter += 1
            return grad * 0.5

    scaler, track, node = planned(Counts.apply)
    assert track.plan.exponents[node] == 0
    assert "could not be probed, because it writes to a tensor" in str(scaler.layerwise.report())
    for name in (Counts, "Counts"):
        layerwise = Layerwise(linear=[name])
        scaler, track, node = planned(Counts.apply, layerwise=layerwise)
        assert track.plan.exponents[node] != 0 and "Counts" not in str(scaler.layerwise.report())


def test_what_was_seen_to_be_linear_is_saved_copied_and_pickled():
    scaler, track, node = planned(Reversal.apply)
    fresh = GradScaler("cpu", layerwise=True)
    fresh.load_state_dict(scaler.state_dict())
    for other in (fresh, copy.deepcopy(scaler), pickle.loads(pickle.dumps(scaler))):
        assert other.layerwise.functions.proven(track.graph.signature) == {node}
        assert other._held.functions is other.layerwise.functions


def test_a_loss_inside_torch_func_is_scaled_and_followed_by_nobody():
    for layerwise in (False, True):
        scaler = GradScaler("cpu", init_scale=2.0**3, layerwise=layerwise)
        gradient = torch.func.grad(lambda w, s=scaler: s.scale((w * 2).sum()))(torch.ones(3))
        assert torch.equal(gradient, torch.full((3,), 16.0))


def traced_frames(layerwise):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    policy = gradscale.Static(2.0**16)
    scaler = GradScaler("cpu", policy=policy, layerwise=layerwise)

    @torch.compile(backend="eager")
    def step(x):
        optimizer.zero_grad()
        scaler.scale(model(x).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()

    for _ in range(6):
        step(torch.randn(3, 4))
    return torch._dynamo.utils.counters["frames"]["total"]


# torch's, of its own doing, where a compiled step breaks its graph at `backward()`.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_dynamo_traces_no_callback_of_a_plan():
    plain = traced_frames(False)
    assert traced_frames(True) <= plain and traced_frames(random_plan(0)) <= plain
