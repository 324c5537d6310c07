"""Layer-wise scaling when things go wrong or are done in an unusual way."""

import math

import pytest
import torch
from torch import nn

from gradscale.backward.plan import ScalePlan
from gradscale.emulation import emulate
from gradscale.layerwise import Layerwise
from gradscale.layerwise.timing import EndedStep
from gradscale.plans.groups import connected
from gradscale.plans.planner import UserGiven
from gradscale.plans.windows import Windows
from gradscale.scaler import GradScaler

START = 2.0**15


def random_layerwise(seed=3, measure_every=1):
    """A new random plan at every measurement."""
    generator = torch.Generator().manual_seed(seed)
    planner = UserGiven(lambda graph, measurements: ScalePlan.random(graph, generator))
    return Layerwise(planner, measure_every=measure_every)


class Burst(torch.autograd.Function):
    """The identity, whose gradient overflows where `Fading.burst` says so."""

    @staticmethod
    def forward(ctx, x, model):
        ctx.model = model
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.model.burst, None


class Fading(nn.Module):
    """Gradients fade from layer to layer: float16 needs several scales. One place may overflow."""

    def __init__(self, depth=12, width=16, burst_before=4):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=0.2 * (2 / width) ** 0.5)
        self.head = nn.Linear(width, 4)
        self.burst_before, self.burst = burst_before, 1.0

    def forward(self, x):
        for number, layer in enumerate(self.layers):
            if number == self.burst_before:
                x = Burst.apply(x.half(), self).float()
            x = layer(x).relu()
        return self.head(x)


class Trial:
    """A float16 training run that can be spoiled at any step."""

    def __init__(self, scaler, build=torch.optim.SGD, **settings):
        torch.manual_seed(0)
        self.model = Fading(**settings)
        self.optimizer = build(self.model.parameters(), lr=1e-4)
        self.scaler = scaler
        torch.manual_seed(5)
        self.x, self.y = torch.randn(8, 16), torch.randint(4, (8,))

    def step(self, burst=1.0, weight=1.0, x=None):
        """Returns whether the step measured."""
        self.model.burst = burst
        self.optimizer.zero_grad()
        with emulate(forward=torch.float16, backward=torch.float16):
            with torch.autocast("cpu", torch.float16):
                logits = self.model(self.x if x is None else x)
                loss = nn.functional.cross_entropy(logits.float(), self.y) * weight
            scaled = self.scaler.scale(loss)
            measured = self.scaler.layerwise.timing.now
            scaled.backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return measured

    def absolute(self):
        """The base-2 exponent at which every node will hold its gradient in the next step."""
        layerwise = self.scaler.layerwise
        layerwise.begin_step(self.scaler._scale)
        (track,) = layerwise.tracks
        log2_scale = round(torch.log2(self.scaler._scale).item())
        return [log2_scale + k for k in track.plan.exponents]


def trained(count=9, measure_every=100, **settings):
    trial = Trial(
        GradScaler("cpu", init_scale=START, layerwise=Layerwise(measure_every=measure_every)),
        **settings,
    )
    for _ in range(count):
        trial.step()
    (track,) = trial.scaler.layerwise.tracks
    assert not track.plan.is_uniform and trial.scaler.counters.skipped == 0
    return trial, track


# Eight steps are 0 to 7, so the next one, 8, measures; after nine the next one does not.
@pytest.mark.parametrize("steps", [8, 9])
@pytest.mark.parametrize("burst_before", [1, 8])
def test_an_overflow_lowers_what_it_spoilt_and_the_others_keep_their_exponents(steps, burst_before):
    trial, track = trained(steps, burst_before=burst_before)
    graph, groups = track.graph, connected(track.graph, track.plan)
    before = trial.absolute()
    assert trial.step(burst=float("inf")) == (steps == 8)
    after = trial.absolute()
    assert trial.scaler.last_step.skipped and trial.scaler.last_step.reason == "overflow"
    octaves = 2 if steps == 8 else 4  # measured, or judged by the gradients that are not finite
    burst = graph.names.index("BurstBackward")
    spoilt = {burst}
    for edge in graph.edges:
        if edge.source in spoilt:
            spoilt.add(edge.target)
    if steps == 9:  # whatever hands it its gradient may have been to blame
        spoilt |= {edge.source for edge in graph.edges if edge.target == burst}
    hit = {groups[node] for node in spoilt.difference(graph.leaves)}
    assert groups[burst] in hit and len(set(groups)) > 2
    assert (hit < set(groups) - {-1}) == (burst_before == 1)
    changes = {(group, b - a) for group, b, a in zip(groups, before, after, strict=True)}
    assert changes == {(group, octaves if group in hit else 0) for group in groups}
    assert trial.step()  # the next step measures again
    assert not trial.scaler.last_step.skipped


@pytest.mark.parametrize(
    "build", [torch.optim.SGD, lambda p, lr: torch.optim.AdamW(p, lr, fused=True)]
)
def test_the_steps_behind_an_overflow_measure(build):
    trial, _ = trained(10, build=build)
    parameters = [p.detach().clone() for p in trial.model.parameters()]
    assert not trial.step(burst=float("inf"))
    # Measuring so small a network costs steps: once behind the overflow, then in the 16th step.
    assert trial.scaler.layerwise.timing.calendar.cost >= 4
    assert [step for step in range(20) if trial.step()] == [0, 5]
    assert trial.scaler.counters.skipped == 1
    assert not all(map(torch.equal, parameters, trial.model.parameters()))


def test_no_weight_stays_dead_after_many_overflows_in_a_row():
    trial, _ = trained(10, burst_before=1)
    for _ in range(7):
        trial.step(burst=float("inf"))
    trial.step()  # too low everywhere: it measures, and says what was flushed
    for _ in range(3):
        trial.step()
        assert all(p.grad.any() for p in trial.model.parameters() if p.dim() == 2)


def test_a_plan_that_somebody_gave_measures_no_more_often_after_an_overflow():
    scaler = GradScaler("cpu", init_scale=START, layerwise=UserGiven(given))
    trial = Trial(scaler)
    measured = [step for step in range(40) if trial.step(burst=math.inf if step == 20 else 1.0)]
    assert trial.scaler.counters.skipped == 1
    assert measured[-2:] == [21, 32]


def given(graph, measurements):
    return ScalePlan.uniform(graph)


def test_an_overflow_that_the_host_hears_of_late_is_measured_all_the_same():
    trial, _ = trained(9)
    layerwise = trial.scaler.layerwise
    trial.step()
    outcome = next(iter(trial.scaler.last_step))
    late = type(outcome)(
        trial.optimizer, [torch.ones(())], torch.tensor(START), trial.scaler._step.evidence
    )
    step = type(trial.scaler.last_step)()
    step.add(late)
    layerwise.timing._unsettled.append(EndedStep(step, 9, None))
    assert not trial.step()
    assert not layerwise.timing.now
    late.arrive(True)
    trial.step()
    assert layerwise.timing.now


def spoiled_loss(trial):
    trial.step(weight=float("nan"))


def spoiled_input(trial):
    trial.step(x=torch.full_like(trial.x, float("inf")))


def spoiled_parameter(trial):
    bias = trial.model.layers[3].bias.data
    kept = bias.clone()
    bias[0] = float("nan")
    trial.step()
    bias.copy_(kept)


@pytest.mark.parametrize("steps", [8, 9])
@pytest.mark.parametrize("spoil", [spoiled_loss, spoiled_input, spoiled_parameter])
def test_bad_data_for_many_steps_moves_neither_plan_nor_scale(spoil, steps):
    trial, track = trained(steps, measure_every=4)
    before, plan = trial.absolute(), track.plan
    for _ in range(15):
        spoil(trial)
        assert trial.scaler.last_step.skipped
        assert trial.scaler.last_step.reason != "overflow"
        assert trial.absolute() == before and track.plan == plan
    trial.step()
    assert not trial.scaler.last_step.skipped and trial.absolute() == before


def plain_and_planned(train, init_scale=2.0**4, layerwise=random_layerwise):
    """What `train(scaler)` returns without a plan and under random ones: tensors, compared."""
    results = []
    for planned in (False, True):
        torch.manual_seed(1)
        scaler = GradScaler(
            "cpu", init_scale=init_scale, layerwise=layerwise() if planned else False
        )
        results.append(train(scaler))
    plain, planned = results
    assert len(plain) == len(planned) > 0
    for one, other in zip(plain, planned, strict=True):
        assert torch.equal(one, other)
    assert any(bool(tensor.any()) for tensor in plain)
    assert any(not track.plan.is_uniform for track in scaler.layerwise.tracks)


def small():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 2))


def test_a_hook_that_raises_leaves_nothing_behind():
    def train(scaler):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seen = []
        for step in range(6):
            optimizer.zero_grad()
            hidden = model[:3](torch.randn(3, 4))
            loss = model[3:](hidden).square().sum()
            if step in (2, 4):

                def fail(grad):
                    raise OSError("no space left")

                handle = hidden.register_hook(fail)
                with pytest.raises(OSError, match="no space left"):
                    scaler.scale(loss).backward(retain_graph=True)
                handle.remove()
                inner = torch.autograd.grad(scaler.scale(loss), hidden, retain_graph=True)
                seen += [*inner]
                optimizer.zero_grad()
            # The same graph once more, after a failed pass.
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            seen += [p.grad.clone() for p in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
        return seen

    plain_and_planned(train)


def test_what_a_user_reads_of_inner_tensors_is_at_the_loss_scale():
    def train(scaler):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seen = []
        for _ in range(5):
            optimizer.zero_grad()
            first = model[:2](torch.randn(3, 4))
            second = model[2](first)
            loss = model[3:](second).square().sum()
            loss.retain_grad()
            first.retain_grad()
            second.register_hook(lambda grad, seen=seen: seen.append(grad.clone()))
            scaled = scaler.scale(loss)
            scaled.retain_grad()
            scaled.backward()
            seen += [first.grad, loss.grad, scaled.grad]
            scaler.step(optimizer)
            scaler.update()
        return [*seen, *(p.detach() for p in model.parameters())]

    plain_and_planned(train)


def test_partial_passes_show_what_plain_scaling_shows():
    def train(scaler):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seen = []
        for _ in range(5):
            optimizer.zero_grad()
            hidden = model[:3](torch.randn(3, 4))
            scaled = scaler.scale(model[3:](hidden).square().sum())
            seen += torch.autograd.grad(scaled, [hidden, model[0].weight], retain_graph=True)
            scaled.backward(inputs=[hidden, model[4].weight], retain_graph=True)
            seen += [hidden.grad.clone(), model[4].weight.grad.clone()]
            scaled.backward(inputs=[hidden, *model.parameters()], retain_graph=True)
            seen += [hidden.grad.clone(), model[4].weight.grad.clone()]
            model.zero_grad()
            scaled.backward()
            scaler.step(optimizer)
            scaler.update()
        return [*seen, *(p.detach() for p in model.parameters())]

    plain_and_planned(train)


@pytest.mark.parametrize("measure_every", [1, 2])
def test_micro_batches_add_up(measure_every):
    def train(scaler):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seen = []
        for _ in range(5):
            optimizer.zero_grad()
            for _ in range(3):
                scaler.scale(model(torch.randn(3, 4)).square().mean() / 3).backward()
            scaler.unscale_(optimizer)
            seen += [p.grad.clone() for p in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
        return seen

    plain_and_planned(train, layerwise=lambda: random_layerwise(measure_every=measure_every))


@pytest.mark.parametrize("together", [False, True])
def test_two_losses_of_one_step_add_up(together):
    def train(scaler):
        trunk, one, other = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 3)
        parameters = [p for m in (trunk, one, other) for p in m.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        seen = []
        for _ in range(5):
            optimizer.zero_grad()
            hidden = trunk(torch.randn(3, 4)).tanh()
            losses = scaler.scale([one(hidden).square().mean(), other(hidden).sin().mean()])
            if together:
                torch.autograd.backward(losses)
            else:
                losses[0].backward(retain_graph=True)
                losses[1].backward()
            scaler.unscale_(optimizer)
            seen += [p.grad.clone() for p in parameters]
            scaler.step(optimizer)
            scaler.update()
        return seen

    plain_and_planned(train)


def test_two_optimizers_train_as_without_a_plan():
    def train(scaler):
        maker, judge = small(), nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        first = torch.optim.SGD(maker.parameters(), lr=0.1)
        second = torch.optim.AdamW(judge.parameters(), lr=0.1)
        for _ in range(5):
            made = maker(torch.randn(3, 4))
            second.zero_grad()
            scaler.scale(judge(made.detach()).sin().mean()).backward()
            scaler.step(second)
            first.zero_grad()
            scaler.scale(judge(made).cos().mean()).backward()
            scaler.step(first)
            scaler.update()
        return [p.detach() for m in (maker, judge) for p in m.parameters()]

    plain_and_planned(train)


@pytest.mark.parametrize("scaled_penalty", [False, True])
def test_a_gradient_penalty_is_differentiated_right(scaled_penalty):
    def train(scaler):
        model = small()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seen = []
        for _ in range(5):
            optimizer.zero_grad()
            x = torch.randn(3, 4, requires_grad=True)
            loss = model(x).square().mean()
            if scaled_penalty:
                (slope,) = torch.autograd.grad(scaler.scale(loss), x, create_graph=True)
                slope = slope / scaler.get_scale()
            else:
                (slope,) = torch.autograd.grad(loss, x, create_graph=True)
            scaler.scale(loss + slope.square().sum()).backward()
            scaler.unscale_(optimizer)
            seen += [p.grad.clone() for p in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
        return seen

    plain_and_planned(train)


def test_an_overflow_in_one_of_two_losses_lowers_nothing_of_the_other():
    scaler = GradScaler("cpu", init_scale=2.0**10, layerwise=Layerwise(Windows()))
    weight = torch.ones(4, requires_grad=True)
    other = torch.ones(4, requires_grad=True)
    optimizer = torch.optim.SGD([weight, other], lr=0.0)

    def step(burst):
        optimizer.zero_grad()
        model = type("Model", (), {"burst": burst})
        scaler.scale(Burst.apply(weight.half() * 2, model).float().sum()).backward()
        scaler.scale((other.half().sin() + weight.half()).float().sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    for _ in range(5):
        step(1.0)
    assert not scaler.layerwise.timing.now
    _, second = scaler.layerwise.tracks
    # Any plan will do; a planner has no reason to make one for numbers as tame as these.
    generator = torch.Generator().manual_seed(0)
    second.plan = ScalePlan.random(second.graph, generator, low=-2, high=2)
    plan = second.plan
    assert not plan.is_uniform
    step(2.0**20)
    assert scaler.last_step.reason == "overflow"
    scaler.layerwise.begin_step(scaler._scale)
    assert second.plan == plan
