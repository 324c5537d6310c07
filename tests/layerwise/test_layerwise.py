"""`GradScaler(layerwise=…)` through whole training steps: bits, overflow, bad data, resume."""

import copy
import random
import re
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradscale.backward.plan import ScalePlan
from gradscale.emulation import emulate
from gradscale.layerwise import Layerwise
from gradscale.plans.excluding import Excluding
from gradscale.plans.windows import Windows
from gradscale.scaler import GradScaler
from zoo import ZOO

pytestmark = [
    # Torch's own: dynamo looks at `.grad` of what it traces.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


def random_plans(seed):
    """A planner that draws a new plan at every measurement."""
    generator = torch.Generator().manual_seed(seed)

    def decide(graph, measurements):
        return ScalePlan.random(graph, generator)

    return decide


def steps(trial, scaler, count):
    """The gradients of `count` training steps, each step changing the parameters a little."""
    optimizer = torch.optim.SGD([p for p in trial.parameters if p.is_leaf], lr=0.01)
    history = []
    for _ in range(count):
        optimizer.zero_grad()
        losses = trial.losses()
        for loss in losses:
            # A compiled block refuses to keep its graph for a pass that never comes.
            scaler.scale(loss).backward(retain_graph=loss is not losses[-1])
        scaler.unscale_(optimizer)
        history.append([None if p.grad is None else p.grad.clone() for p in trial.parameters])
        scaler.step(optimizer)
        scaler.update()
    return history


@pytest.mark.parametrize("name", sorted(ZOO))
def test_random_plans_leave_every_gradient_of_the_zoo_bitwise_alike(name):
    histories = []
    for layerwise in (
        False,
        Layerwise(random_plans(3), measure_every=1),
    ):
        torch.manual_seed(1)
        random.seed(1)
        trial = ZOO[name](torch.float32, 4)
        scaler = GradScaler("cpu", init_scale=2.0**4, layerwise=layerwise)
        torch.manual_seed(2)
        histories.append(steps(trial, scaler, 3))
    for plain, planned in zip(*histories, strict=True):
        for one, other in zip(plain, planned, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                same = (one.to_dense() == other.to_dense()) if one.is_sparse else (one == other)
                assert bool(same.all()), name


def deep(attenuation, depth=20, width=32, seed=0):
    torch.manual_seed(seed)
    layers = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=attenuation * (2 / width) ** 0.5)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


def half_step(model, optimizer, scaler, x, y, weight=1.0):
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss = nn.functional.cross_entropy(model(x).float(), y) * weight
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    gradients = [p.grad.clone() for p in model.parameters()]
    scaler.step(optimizer)
    scaler.update()
    return gradients


@pytest.fixture
def batch():
    torch.manual_seed(5)
    return torch.randn(16, 32), torch.randint(4, (16,))


def train(scaler, batch, count, *, model=None, attenuation=0.25, spoil=None):
    model = deep(attenuation) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    gradients = []
    with emulate(forward=torch.float16, backward=torch.float16):
        for step in range(count):
            x, y = batch
            weight = 1.0
            if spoil is not None:
                x, weight = spoil(step, x)
            gradients.append(half_step(model, optimizer, scaler, x, y, weight))
    return model, gradients


def true_gradients(batch, attenuation=0.25):
    model = deep(attenuation).double()
    nn.functional.cross_entropy(model(batch[0].double()), batch[1]).backward()
    return [p.grad for p in model.parameters()]


def test_gradients_that_one_scale_flushes_survive_under_a_plan(batch):
    truth = true_gradients(batch)
    _, single = train(GradScaler("cpu", init_scale=2.0**15), batch, 8)
    scaler = GradScaler("cpu", init_scale=2.0**15, layerwise=True)
    _, layered = train(scaler, batch, 8)
    assert single[-1][0].count_nonzero() == 0
    for name, got, true in zip(range(99), layered[-1], truth, strict=False):
        one, other = got.double().flatten(), true.flatten()
        assert one @ other > 0.98 * one.norm() * other.norm(), name
    assert scaler.counters.skipped == 0


def test_a_network_that_fits_one_scale_gets_one_and_is_not_walked_any_more(batch):
    scaler = GradScaler("cpu", layerwise=True)
    train(scaler, batch, 4, attenuation=1.0)
    (track,) = scaler.layerwise.tracks
    assert track.plan.is_uniform
    assert "one loss scale is enough" in str(scaler.layerwise.report())
    loss = torch.ones((), requires_grad=True) * 2
    scaler.layerwise.timing.now = False
    assert scaler.layerwise.attach(loss) is loss


def test_bad_data_never_moves_a_plan(batch):
    scaler = GradScaler("cpu", init_scale=2.0**15, layerwise=True)
    model, _ = train(scaler, batch, 8)
    (track,) = scaler.layerwise.tracks
    plan, scale = track.plan, scaler.get_scale()
    assert not plan.is_uniform

    def spoil(step, x):
        return x.clone().fill_(float("nan")), 1.0

    train(scaler, batch, 12, model=model, spoil=spoil)
    assert track.plan == plan and scaler.get_scale() == scale
    assert scaler.last_step.reason == "nonfinite_loss"


def test_an_overflow_lowers_the_plan_and_training_recovers(batch):
    scaler = GradScaler("cpu", init_scale=2.0**15, layerwise=True)
    model, _ = train(scaler, batch, 8)
    skipped = scaler.counters.skipped

    def spoil(step, x):
        return x, 2.0**9  # the loss suddenly weighs 512 times as much

    train(scaler, batch, 12, model=model, spoil=spoil)
    assert skipped < scaler.counters.skipped < 12
    assert not scaler.last_step.skipped
    assert set(scaler.counters.reasons) == {"overflow"}


def fifth_power_of_two(graph, measurements):
    """A plan that raises all but the loss: what it lets through depends on the scale alone."""
    return {node: 5 for node in range(len(graph))}


@pytest.mark.parametrize("planner", [fifth_power_of_two, lambda graph, measurements: {}])
def test_under_a_plan_of_ones_own_the_scale_falls_after_an_overflow(batch, planner):
    scaler = GradScaler("cpu", init_scale=2.0**24, layerwise=planner)
    train(scaler, batch, 30)
    assert 0 < scaler.counters.skipped < 20 and not scaler.last_step.skipped
    assert scaler.get_scale() < 2.0**24


def test_a_scale_that_grew_too_far_falls_under_a_plan_of_ones_own(batch):
    scaler = GradScaler("cpu", growth_interval=8, layerwise=fifth_power_of_two)
    model, _ = train(scaler, batch, 120)
    before = scaler.counters.skipped
    train(scaler, batch, 80, model=model)
    # Of nine steps one is too high, as under any dynamic scale.
    assert 0 < scaler.counters.skipped - before <= 12
    (track,) = scaler.layerwise.tracks
    assert set(track.plan.exponents) == {0, 5}


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(batch):
    whole = GradScaler("cpu", init_scale=2.0**15, layerwise=Layerwise(measure_every=4))
    model, _ = train(whole, batch, 5)
    saved, weights = copy.deepcopy(whole.state_dict()), copy.deepcopy(model.state_dict())
    _, rest = train(whole, batch, 7, model=model)

    resumed = GradScaler("cpu", init_scale=2.0**15, layerwise=Layerwise(measure_every=4))
    resumed.load_state_dict(saved)
    again = deep(0.25)
    again.load_state_dict(weights)
    _, other = train(resumed, batch, 7, model=again)
    for one, two in zip(rest, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert whole.state_dict()["scale"] == resumed.state_dict()["scale"]
    assert whole.layerwise.state_dict() == resumed.layerwise.state_dict()


def test_the_state_is_plain_and_survives_a_file(batch, tmp_path):
    scaler = GradScaler("cpu", init_scale=2.0**15, layerwise=True)
    train(scaler, batch, 3)
    torch.save(scaler.state_dict(), tmp_path / "scaler.pt")
    loaded = torch.load(tmp_path / "scaler.pt", weights_only=True)
    assert loaded["gradscale"]["layerwise"]["steps"] == 3


def test_a_new_structure_starts_uniform_and_only_so_many_are_kept():
    scaler = GradScaler("cpu", layerwise=Layerwise(keep=2, measure_every=1))
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for length in range(1, 6):
        optimizer.zero_grad()
        hidden = weight
        for _ in range(length):
            hidden = hidden.sin()
        scaler.scale(hidden.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert len(scaler.layerwise.tracks) == 2


class HidesItsLeaf(torch.autograd.Function):
    """Runs a backward pass of its own, as reentrant checkpointing does."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        ctx.save_for_backward(x)
        with torch.no_grad():
            return module(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            torch.autograd.backward(ctx.module(inner), grad)
        return inner.grad, None


def test_leaves_hidden_in_a_custom_function_come_at_the_loss_scale():
    results = []
    for layerwise in (
        False,
        Layerwise(random_plans(7), measure_every=1),
    ):
        torch.manual_seed(0)
        first, hidden, last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        parameters = [p for m in (first, hidden, last) for p in m.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.01)
        scaler = GradScaler("cpu", init_scale=16.0, layerwise=layerwise)
        for _ in range(4):
            optimizer.zero_grad()
            loss = last(HidesItsLeaf.apply(first(torch.ones(2, 4)), hidden).relu()).sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append([p.detach().clone() for p in parameters])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_reentrant_checkpointing_is_reported_once_and_right():
    from torch.utils.checkpoint import checkpoint

    block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    head = nn.Linear(4, 1)
    optimizer = torch.optim.SGD([*block.parameters(), *head.parameters()], lr=0.01)
    layerwise = Layerwise(random_plans(7), measure_every=1)
    scaler = GradScaler("cpu", layerwise=layerwise)
    x = torch.randn(2, 4, requires_grad=True)
    with pytest.warns(UserWarning, match="use_reentrant=False") as caught:
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(head(checkpoint(block, x, use_reentrant=True)).sum()).backward()
            scaler.unscale_(optimizer)
            scaled = block[0].weight.grad.clone()
            scaler.step(optimizer)
            scaler.update()
    assert len(caught) == 1
    assert bool(torch.isfinite(scaled).all())


def test_a_deep_recurrence_does_not_hit_the_recursion_limit():
    weight = torch.full((4,), 0.999, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaler = GradScaler("cpu", layerwise=True)
    hidden = torch.ones(4)
    for _ in range(5 * sys.getrecursionlimit()):
        hidden = hidden * weight
    scaler.scale(hidden.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not scaler.last_step.skipped


@pytest.mark.parametrize(
    ("take", "call"),
    [
        (lambda given: GradScaler("cpu", layerwise=given), "GradScaler(layerwise={})"),
        (Layerwise, "Layerwise(planner={})"),
        (lambda given: Excluding(given, ["0"]), "Excluding(planner={})"),
    ],
)
def test_what_plans_is_checked_wherever_it_is_given(take, call):
    for wrong in ("windows", 3):
        words = f"`{call.format(repr(wrong))}` must be True, a planner such as `Windows()`"
        with pytest.raises(TypeError, match=re.escape(words)):
            take(wrong)
    words = f"`{call.format('Windows')}` is a class. Pass an instance: `Windows()`."
    with pytest.raises(TypeError, match=re.escape(words)):
        take(Windows)


def test_names_of_excluded_modules_are_no_string():
    with pytest.raises(TypeError, match=r"modules='head'.*Pass `modules=\['head'\]`"):
        Excluding(Windows(), "head")


def test_settings_are_checked():
    with pytest.raises(ValueError, match="measure_every=0"):
        Layerwise(measure_every=0)
    for keep in (0, 2.5, True, "all"):
        with pytest.raises(ValueError, match=f"keep={keep!r}.*must be a whole number"):
            Layerwise(Windows(), keep=keep)
    for linear in ("Double", torch.autograd.Function, ["Double", 3], [torch.nn.Linear], None):
        with pytest.raises(TypeError, match=r"`Layerwise\(linear=.*must be several"):
            Layerwise(linear=linear)
    assert Layerwise(linear=["Double", torch.autograd.Function]).linear[0] == "Double"


def test_gradients_read_in_eight_bits_are_planned_for_eight_bits(batch):
    truth = true_gradients(batch, 0.6)
    worst = {}
    for layerwise in (False, True):
        scaler = GradScaler("cpu", layerwise=layerwise)
        model = deep(0.6)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with emulate(forward=torch.float16, backward="e4m3"):
            for _ in range(6):
                got = half_step(model, optimizer, scaler, *batch)
        worst[layerwise] = min(
            float(a.double().flatten() @ b.flatten() / (a.norm() * b.norm() + 1e-30))
            for a, b in zip(got, truth, strict=True)
        )
    assert worst[True] > 0.9 > worst[False]


def test_attention_reads_nothing_beyond_an_eight_bit_format(monkeypatch):
    # e4m3 saturates: a gradient above 448 is cut silently, and no infinity tells of it.
    import gradscale.emulation.attention as attention

    arrived = []
    attend_backward = attention.attend_backward

    def noted(mode, grad, saved, options):
        arrived.append(float(grad.abs().max()))
        return attend_backward(mode, grad, saved, options)

    monkeypatch.setattr(attention, "attend_backward", noted)
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0) for _ in range(6)]
    for layer in layers:  # so that attention receives more than what its neighbours read
        layer.self_attn.out_proj.weight.data.mul_(64)
    model = nn.Sequential(*layers, nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = GradScaler("cpu", layerwise=True)
    x, target = torch.randn(5, 8, 16), torch.randint(4, (5, 8))
    for _ in range(4):
        arrived.clear()
        optimizer.zero_grad()
        with emulate(forward=torch.float16, backward="e4m3"):
            with torch.autocast("cpu", torch.float16):
                loss = nn.functional.cross_entropy(model(x).float().flatten(0, 1), target.flatten())
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert len(arrived) == 6 and max(arrived) < 448
    assert len(scaler.layerwise.tracks.latest.decision.scales) > 1


def test_a_report_names_the_modules_and_excluded_ones_stay_at_the_loss_scale(batch):
    scaler = GradScaler("cpu", init_scale=2.0**15, layerwise=Excluding(Windows(), ["0", "2"]))
    model = deep(0.25)
    scaler.name_parameters(model)
    train(scaler, batch, 8, model=model)
    (track,) = scaler.layerwise.tracks
    names = scaler.layerwise.naming.of(track)
    assert any(name == "40" for name in names.values())
    outside = [track.plan.exponents[n] for n, name in names.items() if name in ("0", "2")]
    assert outside and not any(outside) and not track.plan.is_uniform
    assert "loss scales are needed" in str(scaler.layerwise.report())
    assert "after " in str(scaler.layerwise.report())


class NoOperator(TorchDispatchMode):
    """Refuses every operator, a read of the host included."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(func)


def test_its_repr_tells_planner_plan_and_next_measurement_in_a_line_without_an_operator():
    def tilted(graph, measurements):
        return {node: 3 for node in range(1, len(graph))}

    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)), torch.ones(2, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = []
    for planner in (True, tilted):
        scaler = GradScaler("cpu", layerwise=Layerwise(planner, measure_every=6))
        for _ in range(8):
            with NoOperator():
                found.append(repr(scaler.layerwise))
            scaler.scale(model(x).mean()).backward()
            with NoOperator():
                assert "\n" not in repr(scaler.layerwise)
            scaler.step(optimizer)
            scaler.update()
    assert found[0] == "Layerwise(Windows: no plan yet, measures in this step, 0)"
    assert found[3] == "Layerwise(Windows: one loss scale, measures in step 4)"
    assert found[4] == "Layerwise(Windows: one loss scale, measures in this step, 4)"
    edges = scaler.layerwise.tracks.latest.factors(scaler.layerwise.tracks.latest.graph)[1]
    told = f"2 loss scales, {edges.multiplied} edges multiplied"
    assert found[15] == f"Layerwise(UserGiven: {told}, measures in step 12)"
    assert repr(scaler.layerwise.planner).endswith(".tilted)")
    plan = scaler.layerwise.tracks.latest.plan
    assert repr(Layerwise(plan).planner) == f"UserGiven(always {plan})"
    scaler.layerwise.tracks.latest.freeze("ranks run different graphs")
    assert "one loss scale, as ranks run different graphs" in repr(scaler.layerwise)
