"""Clipping while unscaling, against `unscale_` and torch's own clipping after it."""

import math
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from assertions import assert_same_bits
from gradscale import GradScaler
from gradscale.policies import Band

BUILDERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
}
SHAPES = [(3, 4), (5,), (), (2, 2)]
WAYS = {"sgd": "learning_rate", "adam": "moments", "adamw-foreach": "moments"}


def train(build, clip, gradients, *, undo="gradient", scale=2.0**10, dtypes=None, **arguments):
    """Parameters, norms and scales of a run whose gradients are `size * randn`."""
    torch.manual_seed(1)
    kinds = dtypes or [torch.float32] * len(SHAPES)
    parameters = [
        torch.nn.Parameter(torch.randn(shape).to(dtype))
        for shape, dtype in zip(SHAPES, kinds, strict=True)
    ]
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.2}]
    optimizer = build(groups)
    scaler = GradScaler("cpu", init_scale=scale, growth_interval=2, undo=undo, **arguments)
    trajectory = []
    for index, size in enumerate(gradients):
        torch.manual_seed(index)
        scaler.scale(torch.zeros(()))
        for parameter in parameters:
            noise = torch.randn(parameter.shape)
            parameter.grad = (noise * min(size, 1e30) * scaler.get_scale()).to(parameter.dtype)
        if not math.isfinite(size):
            parameters[1].grad.view(-1)[0] = size
        norm = clip(scaler, optimizer, parameters)
        scaler.step(optimizer)
        scaler.update()
        skipped = torch.tensor(float(scaler.last_step.skipped))
        values = [p.detach().clone() for p in parameters]
        norm = torch.zeros(()) if norm is None or skipped else norm
        trajectory.append([*values, norm, skipped, scaler._scale.clone()])
    return trajectory


def ours(max_norm, order):
    return lambda s, o, p: s.clip_grad_norm_(o, max_norm, order)


def theirs(max_norm, order):
    def clip(scaler, optimizer, parameters):
        scaler.unscale_(optimizer)
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, order)

    return clip


def same_for(order):
    """Powers of two commute with sums, squares and roots, and not with a cube root."""
    return close if order == 3.0 else assert_same_bits


def assert_same_run(left, right, same=assert_same_bits):
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a, b, strict=True):
            same(x, y)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


RUNS = {
    "gradients": st.lists(
        st.sampled_from([0.01, 1.0, 30.0, math.inf, math.nan]), min_size=1, max_size=4
    ),
    "max_norm": st.sampled_from([0.0, 0.5, 1.0, 1e4]),
    "order": st.sampled_from([1.0, 2.0, 3.0, math.inf]),
}


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(["sgd", "adam", "adamw-foreach"]), **RUNS)
def test_unfused_optimizers_give_the_same_bits(name, gradients, max_norm, order):
    build = BUILDERS[name]
    assert_same_run(
        train(build, theirs(max_norm, order), gradients),
        train(build, ours(max_norm, order), gradients),
        same_for(order),
    )


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(["sgd-fused", "adamw-fused"]), **RUNS)
def test_fused_optimizers_agree_to_rounding(name, gradients, max_norm, order):
    build = BUILDERS[name]
    assert_same_run(
        train(build, theirs(max_norm, order), gradients),
        train(build, ours(max_norm, order), gradients),
        close,
    )


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(sorted(WAYS)), **RUNS)
def test_in_the_clip_threshold_the_bits_are_the_same_too(name, gradients, max_norm, order):
    build = BUILDERS[name]
    assert_same_run(
        train(build, theirs(max_norm, order), gradients),
        train(build, ours(max_norm, order), gradients, undo=WAYS[name]),
        same_for(order),
    )


@pytest.mark.filterwarnings("ignore:.*not a power of two")
@settings(max_examples=12, deadline=None)
@given(name=st.sampled_from(sorted(BUILDERS)), scale=st.floats(0.3, 1e5), **RUNS)
def test_any_scale_agrees_to_rounding(name, scale, gradients, max_norm, order):
    build = BUILDERS[name]
    assert_same_run(
        train(build, theirs(max_norm, order), gradients, scale=scale),
        train(build, ours(max_norm, order), gradients, scale=scale),
        close,
    )


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(sorted(BUILDERS)),
    gradients=RUNS["gradients"],
    bound=st.sampled_from([0.0, 0.3, 2.0]),
    own=st.booleans(),
)
def test_clipping_by_value_gives_the_same_bits(name, gradients, bound, own):
    def by_torch(scaler, optimizer, parameters):
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_value_(parameters, bound)

    def by_us(scaler, optimizer, parameters):
        scaler.clip_grad_value_(optimizer, bound)

    undo = WAYS.get(name, "gradient") if own else "gradient"
    finite = [g for g in gradients if math.isfinite(g)] or [1.0]
    same = close if "fused" in name else assert_same_bits
    assert_same_run(
        train(BUILDERS[name], by_torch, finite),
        train(BUILDERS[name], by_us, finite, undo=undo),
        same,
    )


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw-fused"])
def test_an_infinite_gradient_is_an_overflow_and_not_a_value_to_clamp(name):
    def by_us(scaler, optimizer, parameters):
        scaler.clip_grad_value_(optimizer, 1.0)

    run = train(BUILDERS[name], by_us, [1.0, math.inf, 1.0])
    assert [step[-2].item() for step in run] == [0.0, 1.0, 0.0]
    assert run[1][-1].item() == 2.0**9


def test_half_precision_gradients_are_measured_in_float32():
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float16]
    parameters = [torch.nn.Parameter(torch.zeros(4, dtype=d)) for d in dtypes]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 32768.0)
    norm = scaler.clip_grad_norm_(optimizer, 4.0)
    assert norm.item() == 32768.0 and norm.dtype is torch.float32
    assert [p.grad[0].item() for p in parameters] == pytest.approx([1.0] * 4, rel=1e-3)


def one(build=BUILDERS["sgd"], **arguments):
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = build([parameter])
    arguments = {"init_scale": 4.0, **arguments}
    scaler = GradScaler("cpu", **arguments)
    scaler.scale(torch.zeros(()))
    return parameter, optimizer, scaler


@pytest.mark.parametrize("name", ["sgd", "adamw-fused"])
def test_a_finite_step_whose_scaled_norm_overflows_is_taken(name):
    """fairseq#4555: the squares of the scaled gradients overflow, those of the true ones do not."""
    parameter, optimizer, scaler = one(BUILDERS[name])
    scaler.update(2.0**100)
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.full((4,), 2.0**103)
    assert scaler.clip_grad_norm_(optimizer, 1.0).item() == 16.0
    scaler.step(optimizer)
    scaler.update()
    assert not scaler.last_step.skipped and scaler.get_scale() == 2.0**100
    assert parameter[0].item() < 1.0


@pytest.mark.parametrize("name", ["sgd", "adamw-fused", "adam"])
@pytest.mark.parametrize("own", [False, True])
def test_a_skipped_step_names_its_culprits(name, own):
    undo = WAYS.get(name, "gradient") if own else "gradient"
    parameter, optimizer, scaler = one(BUILDERS[name], undo=undo)
    parameter.grad = torch.tensor([4.0, math.inf, 4.0, math.nan])
    assert not math.isfinite(scaler.clip_grad_norm_(optimizer, 1.0).item())
    scaler.step(optimizer)
    scaler.update()
    (culprit,) = scaler.last_step.culprits
    assert scaler.last_step.reason == "overflow" and culprit.nonfinite == 2
    assert parameter.tolist() == [1.0] * 4 and scaler.get_scale() == 2.0


def test_error_if_nonfinite_raises_as_torch_does():
    parameter, optimizer, scaler = one()
    parameter.grad = torch.full((4,), math.nan)
    with pytest.raises(RuntimeError, match=r"norm of order 2\.0 is nan.*Leave it False"):
        scaler.clip_grad_norm_(optimizer, 1.0, error_if_nonfinite=True)


def test_a_common_norm_over_several_optimizers():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizers = [torch.optim.SGD([first], lr=1.0), torch.optim.Adam([second], fused=True)]
    scaler = GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    first.grad, second.grad = torch.tensor([24.0]), torch.tensor([32.0])
    assert scaler.clip_grad_norm_(optimizers, 2.5).item() == 5.0
    assert first.grad.item() == pytest.approx(1.5)
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert first.item() == pytest.approx(-1.5)
    assert optimizers[1].state[second]["exp_avg"].item() == pytest.approx(0.2)


@pytest.mark.parametrize("bad", [0, 1])
def test_where_the_common_norm_is_unknown_no_optimizer_steps_unclipped(bad):
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizers = [torch.optim.SGD([p], lr=1.0) for p in parameters]
    scaler = GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.full((1,), math.inf if index == bad else 1e4)
    scaler.clip_grad_norm_(optimizers, 1.0)
    for optimizer in optimizers:
        scaler.step(optimizer)
    assert all(outcome.skipped for outcome in scaler.last_step)


def test_a_parameter_of_two_optimizers_is_divided_and_counted_once():
    shared = torch.nn.Parameter(torch.zeros(1))
    optimizers = [torch.optim.SGD([shared], lr=1.0), torch.optim.SGD([shared], lr=1.0, fused=True)]
    scaler = GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    shared.grad = torch.tensor([32.0])
    assert scaler.clip_grad_norm_(optimizers, 2.0).item() == 4.0
    assert shared.grad.item() == pytest.approx(2.0)
    for optimizer in optimizers:
        scaler.step(optimizer)
    assert shared.item() == pytest.approx(-4.0)


def test_after_an_explicit_unscale_it_only_clips():
    parameter, optimizer, scaler = one()
    parameter.grad = torch.full((4,), 8.0)
    scaler.unscale_(optimizer)
    assert scaler.clip_grad_norm_(optimizer, 2.0).item() == 4.0
    assert parameter.grad.tolist() == pytest.approx([1.0] * 4)
    scaler.step(optimizer)


@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_"])
def test_clipping_at_the_wrong_time_is_refused(name):
    parameter, optimizer, scaler = one(BUILDERS["adamw-fused"])
    parameter.grad = torch.ones(4)
    getattr(scaler, name)(optimizer, 1.0)
    with pytest.raises(RuntimeError, match=r"clipped already, and stay scaled until step"):
        getattr(scaler, name)(optimizer, 1.0)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"called after step\(\)"):
        getattr(scaler, name)(optimizer, 1.0)


@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_"])
def test_what_it_is_given_is_checked(name):
    parameter, optimizer, scaler = one()
    parameter.grad = torch.ones(4)
    with pytest.raises(ValueError, match=rf"`{name}\(.*=-1.0\)` must be 0 or more"):
        getattr(scaler, name)(optimizer, -1.0)
    with pytest.raises(TypeError, match=rf"scaler.{name}\(Parameter, …\)` must be given an opt"):
        getattr(scaler, name)([parameter], 1.0)


@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_"])
def test_a_disabled_scaler_clips_as_torch_does(name):
    parameter = torch.nn.Parameter(torch.ones(4))
    parameter.grad = torch.full((4,), 8.0)
    optimizer = BUILDERS["sgd"]([parameter])
    getattr(GradScaler("cpu", enabled=False), name)(optimizer, 2.0)
    each = 1.0 if name == "clip_grad_norm_" else 2.0
    assert parameter.grad.tolist() == pytest.approx([each] * 4)


def test_a_policy_that_measures_sees_the_gradients_before_they_are_clipped():
    parameter, optimizer, scaler = one(policy=Band(init_scale=4.0), init_scale=2.0**16)
    parameter.grad = torch.full((4,), 8.0)
    assert scaler.clip_grad_norm_(optimizer, 1.0).item() == 4.0
    assert parameter.grad.tolist() == pytest.approx([0.5] * 4)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.last_step.observation is not None


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("step", [True, False])
def test_gradients_left_by_a_fused_optimizer_keep_their_scale(taken, step):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.0, fused=True)
    scaler = GradScaler("cpu", init_scale=4.0)
    scaler.scale(weight.sum()).backward()
    if not taken:
        weight.grad.fill_(math.inf)
    scaler.clip_grad_norm_(optimizer, 100.0)
    if step:
        scaler.step(optimizer)
    scaler.update(16.0)
    if not taken:
        weight.grad.fill_(16.0)
        return
    scaler.scale(weight.sum()).backward()
    scaler.unscale_(optimizer)
    assert weight.grad.item() == 2.0


def test_without_gradients_the_norm_is_zero():
    _, optimizer, scaler = one()
    assert scaler.clip_grad_norm_(optimizer, 1.0).item() == 0.0
    scaler.step(optimizer)
    scaler.update()


class Traffic(TorchDispatchMode):
    """Counts the elements of gradients that kernels read and write."""

    READS: ClassVar = {
        "_foreach_norm": 1,
        "_amp_foreach_non_finite_check_and_unscale_": 1,
        "clamp": 1,
    }
    WRITES: ClassVar = {"_amp_foreach_non_finite_check_and_unscale_": 1, "clamp": 1}

    def __init__(self, size):
        super().__init__()
        self.size, self.read, self.written = size, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        first = args[0] if args else None
        tensors = first if isinstance(first, list | tuple) else [first]
        if any(isinstance(t, torch.Tensor) and t.numel() == self.size for t in tensors):
            self.read += self.READS.get(name, 0)
            self.written += self.WRITES.get(name, 0)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "undo", "max_norm", "passes"),
    [
        ("sgd", "gradient", 0.1, (2, 1)),
        ("sgd-fused", "gradient", 0.1, (1, 0)),
        ("sgd", "learning_rate", 0.1, (2, 1)),
        ("sgd", "learning_rate", 1e9, (1, 0)),
    ],
)
def test_the_passes_are_as_many_as_the_table_says(name, undo, max_norm, passes):
    parameter = torch.nn.Parameter(torch.ones(1000))
    optimizer = BUILDERS[name]([parameter])
    scaler = GradScaler("cpu", undo=undo)
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.randn(1000) * 2.0**16
    with Traffic(1000) as traffic:
        scaler.clip_grad_norm_(optimizer, max_norm)
    assert (traffic.read, traffic.written) == passes
    with Traffic(1000) as traffic:
        scaler.step(optimizer)
    # On the CPU nothing but the optimizer itself touches the gradients any more.
    assert (traffic.read, traffic.written) == (0, 0)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("build", [torch.optim.Adam, torch.optim.AdamW])
def test_nothing_is_read_on_the_host_with_a_fused_optimizer(build):
    with FakeTensorMode():
        parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
        optimizer = build([parameter], fused=True)
        scaler = GradScaler("cuda")
        for _ in range(2):
            scaler.scale(torch.zeros((), device="cuda"))
            parameter.grad = torch.ones(3, device="cuda")
            norm = scaler.clip_grad_norm_(optimizer, 1.0)
            scaler.step(optimizer)
            scaler.update()
        assert norm.device.type == "cuda" and norm.dtype is torch.float32


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_clipping_reads_nothing_with_an_unfused_optimizer_either():
    with FakeTensorMode():
        parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        scaler = GradScaler("cuda")
        scaler.scale(torch.zeros((), device="cuda"))
        parameter.grad = torch.ones(3, device="cuda")
        scaler.clip_grad_norm_(optimizer, 1.0)
        scaler.clip_grad_value_(optimizer, 1.0)


def test_gradients_whose_squares_overflow_are_no_clipped_step_of_adam():
    parameter, optimizer, scaler = one(BUILDERS["adam"], undo="moments", init_scale=2.0**40)
    parameter.grad = torch.full((4,), 2.0**64)
    scaler.clip_grad_norm_(optimizer, 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.last_step.skipped and scaler.get_scale() == 2.0**39


@pytest.mark.parametrize("name", ["sgd", "sgd-fused", "undo"])
@pytest.mark.parametrize("order", [0.0, -1.0, -math.inf])
@pytest.mark.parametrize("max_norm", [0.01, math.inf])
def test_orders_that_do_not_see_an_infinity_do_not_hide_it(name, order, max_norm):
    """Order 0 counts tensors, whatever the scale; negative orders look at small elements."""
    undo = "learning_rate" if name == "undo" else "gradient"
    build = BUILDERS["sgd" if name == "undo" else name]
    gradients = [1.0, math.inf, 0.5, math.nan, 2.0]
    assert_same_run(
        train(build, theirs(max_norm, order), gradients),
        train(build, ours(max_norm, order), gradients, undo=undo),
        close,
    )


@pytest.mark.parametrize("undo", ["gradient", "learning_rate"])
def test_duplicates_of_a_sparse_gradient_are_clipped_as_their_sum(undo):
    embedding = torch.nn.Embedding(3, 2, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=8.0, undo=undo)
    scaler.scale(embedding(torch.tensor([1, 1, 2])).sum() * 0.75).backward()
    scaler.clip_grad_value_(optimizer, 1.0)
    factor = 1.0 if undo == "gradient" else 8.0
    assert embedding.weight.grad.to_dense()[:, 0].tolist() == [0.0, factor, 0.75 * factor]
