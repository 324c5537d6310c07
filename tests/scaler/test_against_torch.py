"""Where torch's scaler is right, ours gives the same bits: random runs through both."""

import copy
import io
import itertools
import json
import random
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assertions import assert_same_bits, assert_same_trajectory
from gradscale.policies import presets
from gradscale.policies.dynamic import Dynamic
from gradscale.policies.policy import Policy
from gradscale.policies.static import Static
from gradscale.scaler import GradScaler

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=False),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, foreach=False),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adagrad-fused": lambda p: torch.optim.Adagrad(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
}


def model_for(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.GELU(), torch.nn.Linear(7, 3)
    )


def factors_for(seed, steps):
    """What each step's gradient is multiplied by: mostly 1, now and then inf."""
    chance = random.Random(seed)
    return [chance.choice([1.0, 1.0, 1.0, float("inf")]) for _ in range(steps)]


def poison_(parameters, factor):
    """Overflow that the loss does not show, as in a half-precision backward pass."""
    if factor != 1.0:
        for parameter in parameters:
            parameter.grad.view(-1)[0] = factor


def train(Scaler, build, seed, *, steps=12, clip=False, accumulate=1, growth_interval=3):
    model = model_for(seed)
    optimizer = build(model.parameters())
    scaler = Scaler("cpu", init_scale=2.0**20, growth_interval=growth_interval)
    trajectory = []
    for step, factor in enumerate(factors_for(seed, steps)):
        torch.manual_seed(1000 * seed + step)
        optimizer.zero_grad()
        for _ in range(accumulate):
            scaler.scale(model(torch.randn(4, 5)).square().mean()).backward()
        poison_(model.parameters(), factor)
        if clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        state = [p.detach().clone() for p in model.parameters()]
        moments = [
            value.clone()
            for entry in optimizer.state.values()
            for value in entry.values()
            if isinstance(value, torch.Tensor)
        ]
        trajectory.append([*state, *moments, scaler._scale.clone(), scaler._growth_tracker.clone()])
    return trajectory


@pytest.mark.parametrize("clip", [False, True], ids=["", "clip"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_bits_at_every_step(name, clip):
    build = OPTIMIZERS[name]
    theirs = train(torch.amp.GradScaler, build, 3, clip=clip)
    assert_same_trajectory(theirs, train(GradScaler, build, 3, clip=clip))


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(OPTIMIZERS)),
    seed=st.integers(0, 10_000),
    clip=st.booleans(),
    accumulate=st.integers(1, 3),
    growth_interval=st.integers(1, 5),
)
def test_the_same_bits_in_random_runs(name, seed, **kwargs):
    build = OPTIMIZERS[name]
    theirs = train(torch.amp.GradScaler, build, seed, steps=8, **kwargs)
    assert_same_trajectory(theirs, train(GradScaler, build, seed, steps=8, **kwargs))


def test_the_runs_above_do_skip_and_grow():
    scales = [step[-2].item() for step in train(GradScaler, OPTIMIZERS["adam"], 3)]
    assert min(scales) < 2.0**20 and any(b > a for a, b in itertools.pairwise(scales))


def train_two(Scaler, seed):
    one, two = model_for(seed), model_for(seed + 1)
    optimizers = [
        torch.optim.Adam(one.parameters()),
        torch.optim.SGD(two.parameters(), lr=0.1, fused=True),
    ]
    scaler = Scaler("cpu", init_scale=2.0**10, growth_interval=2)
    trajectory = []
    for step, factor in enumerate(factors_for(seed, 10)):
        torch.manual_seed(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        x = torch.randn(4, 5)
        losses = [one(x).square().mean(), (one(x) - two(x)).square().mean()]
        scaled = scaler.scale(losses)
        assert isinstance(scaled, list)
        for loss in scaled:
            loss.backward(retain_graph=True)
        poison_([next(one.parameters())], factor)
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        parameters = [*one.parameters(), *two.parameters()]
        trajectory.append([p.detach().clone() for p in parameters] + [scaler._scale.clone()])
    return trajectory


def test_two_optimizers_and_two_losses_give_the_same_bits():
    assert_same_trajectory(train_two(torch.amp.GradScaler, 5), train_two(GradScaler, 5))


def train_sparse(Scaler):
    torch.manual_seed(0)
    table = torch.nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters())
    scaler = Scaler("cpu", init_scale=8.0, growth_interval=2)
    trajectory = []
    for step in range(6):
        optimizer.zero_grad()
        scaler.scale(table(torch.tensor([1, 1, step])).square().mean()).backward()
        if step == 3:
            table.weight.grad._values()[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        trajectory.append([table.weight.detach().clone(), scaler._scale.clone()])
    return trajectory


def test_sparse_gradients_give_the_same_bits():
    assert_same_trajectory(train_sparse(torch.amp.GradScaler), train_sparse(GradScaler))


@pytest.mark.parametrize("outputs", [(1.0,), (1.0, 2.0)])
@pytest.mark.parametrize("kind", [list, tuple])
def test_nestings_are_scaled_as_torch_scales_them(kind, outputs):
    nested = kind([torch.tensor(x) for x in outputs])
    ours, theirs = GradScaler("cpu").scale([nested]), torch.amp.GradScaler("cpu").scale([nested])
    assert type(ours[0]) is type(theirs[0]) is kind
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert_same_bits(a, b)


def test_other_iterables_are_scaled_lazily():
    scaled = GradScaler("cpu", init_scale=2.0).scale(torch.tensor(x) for x in (1.0, 3.0))
    assert [x.item() for x in scaled] == [2.0, 6.0]


def test_what_is_no_tensor_is_refused():
    with pytest.raises(ValueError, match="must be a Tensor or an iterable"):
        GradScaler("cpu").scale(3.0)


def test_it_is_a_torch_scaler():
    assert isinstance(GradScaler("cpu"), torch.amp.GradScaler)


def test_a_disabled_scaler_passes_everything_through():
    ours = GradScaler("cpu", init_scale=-1.0, enabled=False)
    loss = torch.tensor(2.0)
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.LBFGS([parameter])
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        value = parameter.square().sum()
        value.backward()
        return value

    assert ours.scale(loss) is loss and not ours.is_enabled() and ours.get_scale() == 1.0
    ours.unscale_(optimizer)
    ours.step(optimizer, closure)
    ours.update()
    assert calls and ours.state_dict() == {}
    ours.load_state_dict({})
    pickle_copy = copy.deepcopy(ours)
    assert not pickle_copy.is_enabled()


PRIVATE = (
    "_scale _growth_tracker _init_scale _init_growth_tracker _growth_factor _backoff_factor "
    "_growth_interval _enabled _device _per_optimizer_states _unscale_grads_ _maybe_opt_step "
    "_check_inf_per_device _found_inf_per_device _check_scale_growth_tracker "
    "_lazy_init_scale_growth_tracker _get_scale_async _get_growth_tracker"
).split()


@pytest.mark.parametrize("name", PRIVATE)
def test_the_private_names_that_others_use_are_there(name):
    ours, theirs = GradScaler("cpu"), torch.amp.GradScaler("cpu")
    value = getattr(theirs, name)
    if not callable(value):
        assert getattr(ours, name) == value
    else:
        assert callable(getattr(ours, name))


def test_the_record_of_an_unknown_optimizer_is_torchs_default():
    from torch.amp.grad_scaler import _refresh_per_optimizer_state

    assert GradScaler("cpu")._per_optimizer_states[1] == _refresh_per_optimizer_state()


def test_unscale_grads_returns_a_flag_a_device():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([4.0, float("inf")])
    scaler = GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    flags = scaler._unscale_grads_(optimizer, torch.tensor(0.25), torch.zeros(()), False)
    assert list(flags) == [torch.device("cpu")] and flags[torch.device("cpu")].item() == 1.0
    assert parameter.grad[0] == 1.0


def test_flags_that_other_code_puts_into_the_record_are_heeded():
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    record = scaler._per_optimizer_states[7]
    record["found_inf_per_device"] = {torch.device("cpu"): torch.ones(())}
    scaler.update()
    assert scaler.get_scale() == 2.0


def test_the_scale_tensor_is_only_changed_in_place():
    model = model_for(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=4.0, growth_interval=1)
    scaler.scale(model(torch.ones(1, 5)).sum()).backward()
    scale, tracker = scaler._scale, scaler._growth_tracker
    scaler.step(optimizer)
    scaler.update()
    scaler.update(2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaler.load_state_dict(torch.amp.GradScaler("cpu").state_dict())
    assert scaler._scale is scale and scaler._growth_tracker is tracker
    assert scale.item() == 2.0**16 and scaler._held.state.scale is scale


@pytest.mark.parametrize(
    "policy", [Dynamic(init_scale=8.0, growth_interval=2, hysteresis=2), Static(4.0)]
)
def test_a_state_round_trips_bit_for_bit_and_weights_only(policy: Policy):
    model = model_for(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", policy=policy)
    for factor in (1.0, 1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 5)).sum()).backward()
        poison_(model.parameters(), factor)
        scaler.step(optimizer)
        scaler.update()
    file = io.BytesIO()
    torch.save(scaler.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = GradScaler("cpu", policy=policy)
    fresh.load_state_dict(saved)
    assert fresh.state_dict() == scaler.state_dict() == copy.deepcopy(scaler).state_dict()
    assert fresh.counters.skipped == 1 and fresh.counters.reasons == {"overflow": 1}
    fresh.scale(torch.zeros(()))
    assert fresh.state_dict() == scaler.state_dict()


def test_torch_loads_our_state_and_we_load_torchs():
    theirs = torch.amp.GradScaler("cpu", init_scale=32.0)
    theirs.load_state_dict(GradScaler("cpu", init_scale=8.0).state_dict())
    assert theirs.get_scale() == 8.0
    ours = GradScaler("cpu")
    ours.load_state_dict(theirs.state_dict())
    assert ours.get_scale() == 8.0


def test_loading_over_other_settings_says_which_were_kept():
    saved = torch.amp.GradScaler("cpu", growth_interval=7).state_dict()
    with pytest.warns(UserWarning, match=r"growth_interval=7 \(here: 2000\)"):
        GradScaler("cpu").load_state_dict(saved)


def test_the_saved_settings_can_be_restored():
    saved = torch.amp.GradScaler("cpu", growth_interval=7, init_scale=2.0).state_dict()
    scaler = GradScaler("cpu")
    scaler.load_state_dict(saved, configuration="restore")
    assert scaler.get_growth_interval() == 7 and scaler.get_scale() == 2.0


def test_a_policy_with_pairs_is_restored_from_json_and_is_the_same():
    policy = presets.icefall()
    saved = json.loads(json.dumps(GradScaler("cpu", policy=policy).state_dict()))
    again = GradScaler("cpu", policy=policy)
    again.load_state_dict(saved)  # would warn of settings that differ
    other = GradScaler("cpu")
    other.load_state_dict(saved, configuration="restore")
    assert other.policy == policy and hash(other.policy) == hash(policy)


def test_our_saved_policy_can_be_restored():
    saved = GradScaler("cpu", policy=Dynamic(hysteresis=3)).state_dict()
    scaler = GradScaler("cpu")
    scaler.load_state_dict(saved, configuration="restore")
    assert scaler.policy == Dynamic(hysteresis=3)


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ({}, RuntimeError, "empty"),
        ({"scale": 1.0, "gradscale": {"version": 99}}, ValueError, "Upgrade"),
        ({"scale": float("nan"), "_growth_tracker": 0}, ValueError, "collapsed"),
    ],
)
def test_a_state_that_cannot_be_loaded_changes_nothing(state, error, words):
    scaler = GradScaler("cpu", init_scale=8.0)
    before = scaler.state_dict()
    with pytest.raises(error, match=words):
        scaler.load_state_dict(state)
    assert scaler.state_dict() == before


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_training_step_gives_the_same_bits():
    def run(compiled):
        torch._dynamo.reset()
        model = model_for(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = GradScaler("cpu", init_scale=8.0, growth_interval=2)

        def step(x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            return loss

        step = torch.compile(step, backend="eager") if compiled else step
        for index in range(5):
            torch.manual_seed(index)
            step(torch.randn(4, 5))
        return [p.detach() for p in model.parameters()], scaler.state_dict()

    (eager, eager_state), (compiled, compiled_state) = run(False), run(True)
    for a, b in zip(eager, compiled, strict=True):
        assert_same_bits(a, b)
    assert eager_state == compiled_state
