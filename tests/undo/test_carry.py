"""Every way to undo the scale makes the steps that dividing the gradients makes."""

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assertions import assert_same_bits
from gradscale import Degrees, GradScaler
from gradscale.undo.carry import multiply_

LINEAR = {
    "sgd": lambda p, **k: torch.optim.SGD(p, lr=0.1, **k),
    "sgd-momentum": lambda p, **k: torch.optim.SGD(p, lr=0.1, momentum=0.9, **k),
    "sgd-nesterov": lambda p, **k: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True, **k),
    "sgd-dampening": lambda p, **k: torch.optim.SGD(p, lr=0.1, momentum=0.7, dampening=0.3, **k),
    "sgd-tensor-lr": lambda p, **k: torch.optim.SGD(p, lr=torch.tensor(0.1), momentum=0.9, **k),
}
SCALE_FREE = {
    "adam": lambda p, **k: torch.optim.Adam(p, lr=0.05, **k),
    "adam-eps": lambda p, **k: torch.optim.Adam(p, lr=0.05, eps=0.1, **k),
    "adam-amsgrad": lambda p, **k: torch.optim.Adam(p, lr=0.05, amsgrad=True, **k),
    "adamw": lambda p, **k: torch.optim.AdamW(p, lr=0.05, **k),
    "nadam": lambda p, **k: torch.optim.NAdam(p, lr=0.05, **k),
    "nadamw": lambda p, **k: torch.optim.NAdam(p, lr=0.05, decoupled_weight_decay=True, **k),
    "adamax": lambda p, **k: torch.optim.Adamax(p, lr=0.05, eps=0.1, **k),
    "adagrad": lambda p, **k: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.3, **k),
    "rmsprop": lambda p, **k: torch.optim.RMSprop(p, lr=0.05, momentum=0.5, **k),
    "rmsprop-centered": lambda p, **k: torch.optim.RMSprop(p, lr=0.05, centered=True, **k),
}
BUILDERS = {**LINEAR, **SCALE_FREE}
MUON = {"muon": lambda p, **k: torch.optim.Muon(p, lr=0.05, eps=0.1)}


def way_of(name):
    return "learning_rate" if name in LINEAR else "moments"


def train(build, undo, scales, *, seed=0, bad=(), visit=None, **settings):
    """Parameters and unscaled optimizer state after every step; `scales` change between steps."""
    torch.manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(2, 2))]
    optimizer = build(parameters, **settings)
    scaler = GradScaler("cpu", init_scale=scales[0], undo=undo)
    trajectory = []
    for index in range(len(scales)):
        optimizer.zero_grad()
        scaler.scale(torch.zeros(()))
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter) * scaler.get_scale()
        if index in bad:
            parameters[1].grad.view(-1)[0] = math.inf
        if visit is not None:
            optimizer = visit(index, optimizer, scaler, parameters) or optimizer
        scaler.step(optimizer)
        scaler.update(scales[(index + 1) % len(scales)])
        values = [p.detach().clone() for p in parameters]
        for state in optimizer.state_dict()["state"].values():
            values += [v.clone() for v in state.values() if isinstance(v, torch.Tensor)]
        trajectory.append(values)
    return trajectory


def assert_same_run(left, right, same=assert_same_bits):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)


EXPONENTS = st.lists(st.integers(0, 24), min_size=1, max_size=6)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(sorted(BUILDERS)),
    exponents=EXPONENTS,
    bad=st.sets(st.integers(0, 5), max_size=3),
    seed=st.integers(0, 1000),
    weight_decay=st.sampled_from([0.0, 0.01, 0.3]),
    foreach=st.booleans(),
    maximize=st.booleans(),
)
def test_powers_of_two_give_the_same_bits(name, exponents, bad, seed, **options):
    build, scales = BUILDERS[name], [2.0**e for e in exponents]
    default = train(build, "gradient", scales, seed=seed, bad=bad, **options)
    assert_same_run(default, train(build, way_of(name), scales, seed=seed, bad=bad, **options))


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(BUILDERS)),
    scales=st.lists(st.floats(0.5, 2.0**20), min_size=1, max_size=6),
    bad=st.sets(st.integers(0, 5), max_size=2),
    seed=st.integers(0, 1000),
    weight_decay=st.sampled_from([0.0, 0.1]),
)
@pytest.mark.filterwarnings("ignore:.*not a power of two")
def test_any_scales_agree_to_float32_rounding(name, scales, bad, seed, weight_decay):
    build = BUILDERS[name]
    options = {"seed": seed, "bad": bad, "weight_decay": weight_decay}

    def close(a, b):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)

    default = train(build, "gradient", scales, **options)
    assert_same_run(default, train(build, way_of(name), scales, **options), close)


def test_muon_follows_too():
    scales = [2.0**e for e in (3, 9, 0, 5, 5)]
    default = train(MUON["muon"], "gradient", scales, bad={2})
    assert_same_run(default, train(MUON["muon"], "moments", scales, bad={2}))


@pytest.mark.parametrize("name", ["sgd-momentum", "adamw", "rmsprop-centered"])
def test_either_way_is_found_for_the_optimizer(name):
    scales = [4.0, 2.0**10, 1.0]
    default = train(BUILDERS[name], "gradient", scales)
    assert_same_run(default, train(BUILDERS[name], "optimizer", scales))


@pytest.mark.parametrize("name", ["sgd-momentum", "adam"])
def test_scales_at_both_ends_of_float32(name):
    scales = [1.0, 2.0**100, 2.0**-20, 2.0**90] if name == "sgd-momentum" else [2.0**30, 1.0]
    default = train(BUILDERS[name], "gradient", scales)
    assert_same_run(default, train(BUILDERS[name], way_of(name), scales))


def test_multiplying_by_more_than_float32_holds_goes_in_steps():
    tensor = torch.tensor([2.0**-100])
    multiply_(tensor, 2.0**100, 2)
    assert tensor.item() == 2.0**100
    multiply_(tensor, 2.0**-200, 1)
    assert tensor.item() == 2.0**-100


def lars(parameters, **options):
    return Lars(parameters, **options)


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rates: lr * |w| / (|g| + decay |w|), with a momentum of its own."""

    def __init__(self, parameters, lr=0.1, momentum=0.9, weight_decay=0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                decay = group["weight_decay"]
                trust = p.norm() / (p.grad.norm() + decay * p.norm())
                update = (p.grad + decay * p) * trust * group["lr"]
                state = self.state[p]
                velocity = state.setdefault("velocity", torch.zeros_like(p))
                velocity.mul_(group["momentum"]).add_(update)
                p.sub_(velocity)


def test_the_trust_ratio_of_an_optimizer_of_your_own():
    degrees = Degrees(settings={"weight_decay": 1})
    scales = [2.0**e for e in (3, 12, 0, 7)]
    default = train(lars, "gradient", scales, bad={1})
    assert_same_run(default, train(lars, degrees, scales, bad={1}))


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_a_run_resumed_from_a_checkpoint_goes_on_bit_for_bit(name):
    """Through `torch.save`, into a new optimizer: its state was saved unscaled."""

    def resume(index, optimizer, scaler, parameters):
        if index != 2:
            return None
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        new = BUILDERS[name](parameters)
        new.load_state_dict(torch.load(file, weights_only=True))
        return new

    scales = [2.0**e for e in (3, 9, 9, 5)]
    straight = train(BUILDERS[name], way_of(name), scales)
    assert_same_run(straight, train(BUILDERS[name], way_of(name), scales, visit=resume))


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_what_is_saved_is_what_an_optimizer_without_a_scaler_saves(name):
    saved = []
    for undo in ("gradient", way_of(name)):
        parameter = torch.nn.Parameter(torch.ones(2, 2))
        optimizer = BUILDERS[name]([parameter])
        scaler = GradScaler("cpu", undo=undo)
        for _ in range(2):
            scaler.scale(torch.zeros(()))
            parameter.grad = torch.full((2, 2), 2.0**16)
            scaler.step(optimizer)
            scaler.update()
        saved.append(optimizer.state_dict())
    assert saved[0]["param_groups"] == saved[1]["param_groups"]
    for key, value in saved[0]["state"].get(0, {}).items():
        other = saved[1]["state"][0][key]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_saving_leaves_the_live_state_alone():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = LINEAR["sgd-momentum"]([parameter])
    scaler = GradScaler("cpu", init_scale=8.0, undo="learning_rate")
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.full((2,), 8.0)
    scaler.step(optimizer)
    live = optimizer.state[parameter]["momentum_buffer"]
    assert live.tolist() == [8.0, 8.0]
    assert optimizer.state_dict()["state"][0]["momentum_buffer"].tolist() == [1.0, 1.0]
    assert live.tolist() == [8.0, 8.0] and optimizer.param_groups[0]["lr"] == 0.1


def test_a_step_without_the_scaler_finds_unscaled_state():
    results = []
    for undo in ("gradient", "learning_rate"):

        def alone(index, optimizer, scaler, parameters):
            if index == 2:
                scale = scaler.get_scale()
                for parameter in parameters:
                    parameter.grad /= scale
                optimizer.step()
                for parameter in parameters:
                    parameter.grad *= scale

        results.append(train(LINEAR["sgd-momentum"], undo, [8.0, 2.0, 32.0, 4.0], visit=alone))
    assert_same_run(*results)


def test_a_copied_optimizer_knows_the_scale_of_its_state():
    def copied(index, optimizer, scaler, parameters):
        if index != 1:
            return None
        twin = LINEAR["sgd-momentum"](parameters)
        twin.__setstate__(copy.copy(optimizer.__getstate__()))
        return twin

    scales = [8.0, 2.0, 32.0]
    straight = train(LINEAR["sgd-momentum"], "learning_rate", scales)
    assert_same_run(straight, train(LINEAR["sgd-momentum"], "learning_rate", scales, visit=copied))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_needs_no_scaler_to_go_on(duplicate):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    scaler = GradScaler("cpu", init_scale=64.0, undo="moments")
    scaler.scale(parameter.square().sum()).backward()
    scaler.step(optimizer)
    twin = duplicate(optimizer)
    assert_same_bits(twin.state_dict()["state"][0]["exp_avg_sq"], torch.full((2,), 0.004))
    (copied,) = twin.param_groups[0]["params"]
    copied.grad = parameter.grad / 64
    twin.step()
    optimizer.zero_grad()
    parameter.grad = copied.grad * 64
    scaler.update()
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    torch.testing.assert_close(copied, parameter)


@pytest.mark.parametrize("name", ["sgd-momentum", "adam"])
def test_an_explicit_unscale_divides_and_the_state_follows(name):
    def unscale(index, optimizer, scaler, parameters):
        if index % 2:
            scaler.unscale_(optimizer)

    scales = [8.0, 2.0, 32.0, 4.0]
    default = train(BUILDERS[name], "gradient", scales)
    assert_same_run(default, train(BUILDERS[name], way_of(name), scales, visit=unscale))


def test_gradients_left_after_the_step_are_known_to_be_scaled():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scaler = GradScaler("cpu", init_scale=4.0, undo="learning_rate")
    scaler.scale(parameter.sum()).backward()
    scaler.step(optimizer)
    assert parameter.grad.item() == 4.0
    scaler.update(16.0)
    scaler.scale(parameter.sum()).backward()
    scaler.unscale_(optimizer)
    assert parameter.grad.item() == 2.0


def test_the_gradient_is_read_once_and_never_written():
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scaler = GradScaler("cpu", undo="learning_rate")
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.ones(4)
    version = parameter.grad._version
    scaler.step(optimizer)
    # Torch's check multiplies by 1, which bumps the version on the CPU; the bits are the same.
    assert parameter.grad.tolist() == [1.0] * 4 and parameter.grad._version <= version + 1


@pytest.mark.parametrize("clip", [False, True])
def test_gradients_whose_sums_overflow_in_momentum_are_an_overflow(clip):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-3, momentum=0.9)
    scaler = GradScaler("cpu", init_scale=2.0**120, undo="learning_rate", growth_interval=10**6)
    for _ in range(60):
        scaler.scale(torch.zeros(()))
        parameter.grad = 100.0 * scaler._scale.clone().reshape(1)
        if clip:
            scaler.clip_grad_norm_(optimizer, 1e6)
        scaler.step(optimizer)
        scaler.update()
    assert torch.isfinite(parameter).all() and scaler.get_scale() * 100 < 2.0**104
    assert 0 < scaler.counters.skipped < 30


def test_gradients_whose_squares_overflow_are_an_overflow():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([parameter])
    scaler = GradScaler("cpu", init_scale=2.0**40, undo="moments")
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.full((1,), 2.0**64)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.last_step.skipped and scaler.get_scale() == 2.0**39


@pytest.mark.parametrize(
    ("build", "undo", "words"),
    [
        (LINEAR["sgd"], "moments", r"undo='moments'.*with SGD.*pass `undo='learning_rate'`"),
        (SCALE_FREE["adam"], "learning_rate", r"with Adam: no learning rate.*`undo='moments'`"),
        (torch.optim.RAdam, "moments", r"with RAdam: nothing is known.*gradscale\.Degrees"),
        (torch.optim.Adadelta, "optimizer", r"with Adadelta.*`undo='gradient'`, which works"),
        (lars, "optimizer", "with Lars: nothing is known"),
    ],
)
def test_an_optimizer_that_cannot_is_refused_before_anything_changes(build, undo, words):
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = build([parameter])
    scaler = GradScaler("cpu", undo=undo)
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match=words):
        scaler.step(optimizer)
    assert parameter.tolist() == [[1.0, 1.0]] * 2 and parameter.grad.tolist() == [[1.0, 1.0]] * 2


def test_a_subclass_with_a_step_of_its_own_is_not_taken_for_its_parent():
    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    parameter = torch.nn.Parameter(torch.ones(1))
    scaler = GradScaler("cpu", undo="learning_rate")
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.ones(1)
    with pytest.raises(ValueError, match="nothing is known of how its numbers"):
        scaler.step(Mine([parameter], lr=0.1))


def test_a_setting_that_leaves_float32_is_refused():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    scaler = GradScaler("cpu", init_scale=2.0**120, undo="learning_rate")
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.ones(1)
    with pytest.raises(ValueError, match=r"SGD\(lr=0\.001\)` becomes .* Lower the scale"):
        scaler.step(optimizer)
    assert optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"undo": "lr"}, ValueError, r"undo='lr'\)` must be one of 'gradient', 'learning_rate'"),
        ({"undo": 3}, TypeError, r"undo=3\)` must be a name"),
        ({"undo": "moments", "sync_free": True}, ValueError, "Leave one of the two out"),
    ],
)
def test_what_the_constructor_takes_is_checked(arguments, error, words):
    with pytest.raises(error, match=words):
        GradScaler("cpu", **arguments)


class Own(torch.optim.Optimizer):
    """An optimizer of one's own: it makes `m`, and on request more."""

    def __init__(self, parameters, squares=False, trust=False, number=False):
        super().__init__(parameters, {"eta": 0.1, "betas": (0.9, 0.99), "nesterov": False})
        self.squares, self.trust, self.number = squares, trust, number

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("step", torch.zeros(())).add_(1)
                state.setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(p.grad)
                if self.squares:
                    state.setdefault("v", torch.zeros_like(p)).add_(p.grad.square())
                if self.trust:
                    state["trust"] = torch.ones(())
                if self.number:
                    state["norm"] = float(p.grad.norm())
                with torch.no_grad():
                    p.sub_(state["m"], alpha=group["eta"])


def own_step(optimizer, degrees, scale=256.0):
    scaler = GradScaler("cpu", init_scale=scale, undo=degrees)
    scaler.scale(torch.zeros(()))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, scale)
    scaler.step(optimizer)
    scaler.update()


def own(**options):
    return Own([torch.nn.Parameter(torch.ones(2))], **options)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"lr": -1}, r"settings=\{'lr': …\}\)`: no parameter group of Own has .* are 'eta'\.$"),
        (
            {"betas": 1},
            r"settings=\{'betas': …\}\)`: with Own it is \(0\.9, 0\.99\), and only a num",
        ),
        ({"nesterov": 1}, r"with Own it is False, and only a number can follow.*Leave it out"),
    ],
)
def test_a_setting_that_no_group_has_is_refused_before_the_step(settings_, words):
    optimizer = own()
    with pytest.raises(ValueError, match=words):
        own_step(optimizer, Degrees(settings=settings_))
    (parameter,) = optimizer.param_groups[0]["params"]
    assert parameter.tolist() == [1.0, 1.0] and not optimizer.state


@pytest.mark.parametrize(
    ("state", "options", "words"),
    [
        ({"momentun": 1}, {}, r"with Own: no state has the key 'momentun', and 'm' has no degree"),
        ({"m": 1, "v": 2}, {"trust": True}, r"key 'v', and 'trust' .* `state=\{…, 'trust': 0\}`"),
        ({"n": 1}, {"squares": True}, r"no state has the key 'n', and 'm', 'v' have no degree"),
        ({"m": 1, "norm": 1}, {"number": True}, r"\['norm'\]` is .*, and only tensors can follow"),
    ],
)
def test_a_state_whose_name_is_wrong_is_refused_after_the_first_step(state, options, words):
    with pytest.raises(ValueError, match=words):
        own_step(own(**options), Degrees(state=state, settings={"eta": -1}))


def test_a_wrong_name_of_a_loaded_state_is_refused_before_it_is_used():
    optimizer = own()
    own_step(optimizer, Degrees(state={"m": 1}, settings={"eta": -1}))
    twin = own()
    twin.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="no state has the key 'momentum', and 'm' has no degree"):
        own_step(twin, Degrees(state={"momentum": 1}, settings={"eta": -1}))
    assert twin.param_groups[0]["params"][0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("state", "options"),
    [
        ({"m": 1, "v": 2}, {}),
        ({"m": 1, "v": 2}, {"squares": True}),
        ({"m": 1, "v": 2, "trust": 0}, {"trust": True}),
        ({"m": 1}, {"trust": True}),
    ],
)
def test_a_state_that_is_made_with_some_settings_only_may_be_missing(state, options):
    optimizer = own(**options)
    for scale in (256.0, 16.0):
        own_step(optimizer, Degrees(state=state, settings={"eta": -1}), scale)
    saved = optimizer.state_dict()["state"][0]
    assert_same_bits(saved["m"], torch.full((2,), 1.9))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"state": {"m": "x"}},
            r"Degrees\(state=\{'m': 'x'\}\)`: a degree is an integer",
        ),
        ({"state": {"m": 0.5}}, r"\{'m': 0\.5\}\)`: a degree is an integer"),
        ({"settings": {"lr": True}}, r"settings=\{'lr': True\}\)`: a degree is .*\{'lr': -1\}`"),
        ({"settings": {1: 1}}, r"settings=\{1: 1\}\)`: a degree is an integer"),
        ({"state": ["m"]}, r"state=\['m'\]\)` must be a dictionary from names to degrees"),
    ],
)
def test_degrees_are_integers_by_name(arguments, words):
    with pytest.raises(TypeError, match=words):
        Degrees(**arguments)


def test_a_schedule_sees_the_learning_rate_that_was_set():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    scaler = GradScaler("cpu", init_scale=4.0, undo="learning_rate")
    for _ in range(2):
        scaler.scale(torch.zeros(()))
        parameter.grad = torch.full((1,), 4.0)
        scaler.step(optimizer)
        scaler.update()
        scaler.step_scheduler(schedule)
    assert parameter.item() == 1.0 - 0.5 - 0.25 and schedule.get_last_lr() == [0.125]


def with_hooks(undo, kind):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=kind(1.0), weight_decay=0.25)
    (group,) = optimizer.param_groups
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    seen = []

    def before(*_):
        seen.append(group["lr"] * 1.0)
        group["weight_decay"] *= 0.5

    def after(*_):
        seen.append(optimizer.state_dict()["param_groups"][0]["weight_decay"])
        schedule.step()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    scaler = GradScaler("cpu", init_scale=64.0, undo=undo)
    for _ in range(3):
        scaler.scale(torch.zeros(()))
        parameter.grad = torch.full((2,), scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    return parameter.tolist(), float(group["lr"]), seen


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_hooks_of_a_step_see_the_settings_and_may_change_them(kind):
    assert with_hooks("gradient", kind) == with_hooks("learning_rate", kind)


def test_settings_come_back_when_the_step_raises():
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise OSError

    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = Failing([parameter], lr=0.5)
    scaler = GradScaler("cpu", undo=Degrees(settings={"lr": -1}))
    scaler.scale(parameter.sum()).backward()
    with pytest.raises(OSError):
        scaler.step(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not optimizer._optimizer_step_post_hooks


def test_fused_optimizers_undo_it_themselves():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([parameter], fused=True)
    scaler = GradScaler("cpu", init_scale=4.0, undo="moments")
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.full((1,), 4.0)
    scaler.step(optimizer)
    assert optimizer.state[parameter]["exp_avg_sq"].item() == pytest.approx(0.001)


@pytest.mark.parametrize("name", ["sgd-momentum", "adam"])
def test_float16_state_is_refused_before_anything_changes(name):
    """A momentum of float16 gradients at 2^15 is infinite in three steps, the gradient is not."""
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.float16))
    optimizer = BUILDERS[name]([parameter])
    scaler = GradScaler("cpu", init_scale=2.0**15, undo=way_of(name))
    scaler.scale(parameter.sum()).backward()
    with pytest.raises(ValueError, match=r"float16 parameters.*`gradscale.half_precision"):
        scaler.step(optimizer)
    assert parameter.item() == 1.0 and not optimizer.state[parameter]


def test_bfloat16_state_and_float16_without_state_are_not():
    for dtype, settings_ in ((torch.bfloat16, {"momentum": 0.5}), (torch.float16, {})):
        parameter = torch.nn.Parameter(torch.ones(1, dtype=dtype))
        optimizer = torch.optim.SGD([parameter], lr=0.5, **settings_)
        undo = "learning_rate" if settings_ else Degrees(settings={"lr": -1})
        scaler = GradScaler("cpu", init_scale=2.0**8, undo=undo)
        scaler.scale(parameter.float().sum()).backward()
        scaler.step(optimizer)
        assert parameter.item() == 0.5
