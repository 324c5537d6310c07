"""`scaler.metrics()` and `log_to`: of which step they speak, in which order, at what cost."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from gradscale.host_copies import HostCopies
from gradscale.layerwise import Layerwise
from gradscale.metrics import Metrics
from gradscale.policies import Dynamic, LastMaximum, TwoSided
from gradscale.scaler import GradScaler
from host_reads import HostReads


def network(optimizer=torch.optim.SGD, **settings):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    return model, optimizer(model.parameters(), lr=0.1, **settings)


def step(model, optimizer, scaler, value=1.0):
    optimizer.zero_grad()
    scaler.scale(model(torch.full((3, 4), value)).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()


BAD = math.nan


def test_before_the_first_step_metrics_speak_of_no_step():
    metrics = GradScaler("cpu").metrics()
    assert metrics.step == -1 and math.isnan(metrics.scale) and metrics.steps == 0


@pytest.mark.parametrize("fused", [False, True])
def test_on_the_cpu_metrics_speak_of_the_step_just_ended(fused):
    model, optimizer = network(fused=fused)
    scaler = GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    for index, value in enumerate([1.0, 1.0, BAD, 1.0]):
        step(model, optimizer, scaler, value)
        metrics = scaler.metrics()
        assert metrics.step == index
        assert metrics.scale == [2.0**8, 2.0**8, 2.0**9, 2.0**9][index]
        assert metrics.skipped == (value is BAD)
    assert (metrics.steps, metrics.skipped_steps, metrics.consecutive) == (4, 1, 0)
    assert metrics.reasons == {"nonfinite_loss": 1} and metrics.skipped_share == 0.25


def test_metrics_asked_for_late_are_there_at_once():
    model, optimizer = network()
    scaler = GradScaler("cpu")
    for _ in range(3):
        step(model, optimizer, scaler)
    assert scaler.metrics().step == 2 == scaler.metrics().step


def test_a_sink_sees_every_step_once_and_in_order():
    model, optimizer = network()
    scaler = GradScaler("cpu")
    seen: list[Metrics] = []
    scaler.log_to(seen.append)
    for value in [1.0, BAD, 1.0]:
        step(model, optimizer, scaler, value)
    assert [(m.step, m.skipped, m.reason) for m in seen] == [
        (0, False, None),
        (1, True, "nonfinite_loss"),
        (2, False, None),
    ]
    assert scaler.metrics() == seen[-1]


def test_every_thins_by_step_and_remove_ends_it():
    model, optimizer = network()
    scaler = GradScaler("cpu")
    seen: list[int] = []
    subscription = scaler.log_to(lambda metrics: seen.append(metrics.step), every=3)
    for _ in range(7):
        step(model, optimizer, scaler)
    assert seen == [0, 3, 6] and scaler.metrics().step == 6
    subscription.remove()
    subscription.remove()
    for _ in range(3):
        step(model, optimizer, scaler)
    assert seen == [0, 3, 6]


def test_the_same_sink_may_listen_twice():
    model, optimizer = network()
    scaler = GradScaler("cpu")
    seen: list[int] = []

    def sink(metrics):
        seen.append(metrics.step)

    with scaler.log_to(sink):
        second = scaler.log_to(sink, every=2)
        step(model, optimizer, scaler)
    step(model, optimizer, scaler)
    second.remove()
    assert seen == [0, 0]


def test_what_a_sink_raises_comes_out_after_the_step_has_ended():
    model, optimizer = network()
    scaler = GradScaler("cpu", growth_interval=1)

    def broken(metrics):
        raise OSError("the server is gone")

    subscription = scaler.log_to(broken)
    with pytest.raises(OSError, match="the server is gone"):
        step(model, optimizer, scaler)
    assert scaler.get_scale() == 2.0**17 and scaler.counters.steps == 1
    subscription.remove()
    step(model, optimizer, scaler)
    assert scaler.get_scale() == 2.0**18


def test_amax_is_there_if_the_policy_needs_it_or_somebody_asks():
    model, optimizer = network()
    plain, predicting = GradScaler("cpu"), GradScaler("cpu", policy=LastMaximum())
    asked = GradScaler("cpu")
    asked.also_measure("amax")
    values = []
    for scaler in (plain, predicting, asked):
        model.load_state_dict(network()[0].state_dict())
        step(model, optimizer, scaler)
        values.append(scaler.metrics().amax)
    model, _ = network()
    model(torch.full((3, 4), 1.0)).square().mean().backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters())
    assert values == [None, largest, largest]


def test_asking_for_more_between_steps_leaves_their_outcomes_apart():
    model, optimizer = network()
    scaler = GradScaler("cpu")
    seen: list[Metrics] = []
    scaler.log_to(seen.append)
    for needs in ([], ["amax"], ["exponents"]):
        step(model, optimizer, scaler)
        scaler.also_measure(*needs)
        assert len(scaler.last_step) == 1
    assert [metrics.steps for metrics in seen] == [1, 2, 3] and scaler.counters.steps == 3
    assert seen[2].amax is not None


def test_asking_for_more_within_a_step_forgets_no_loss():
    model, optimizer = network()
    scaler = GradScaler("cpu")
    scaler.scale(model(torch.full((3, 4), BAD)).mean()).backward()
    scaler.also_measure("amax")
    scaler.step(optimizer)
    scaler.update()
    assert scaler.last_step.reason == "nonfinite_loss" and scaler.metrics().amax is not None


def test_measuring_more_changes_no_bit_of_the_training():
    runs = []
    for needs in ([], ["amax", "exponents"]):
        model, optimizer = network(torch.optim.AdamW, fused=True)
        scaler = GradScaler("cpu", init_scale=2.0**4, growth_interval=2)
        scaler.also_measure(*needs)
        for value in [1.0, 2.0, BAD, 0.5]:
            step(model, optimizer, scaler, value)
        runs.append((model.weight.detach().clone(), scaler.get_scale()))
    assert torch.equal(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]


def test_groups_count_the_scales_of_the_plan():
    model, optimizer = network()
    scaler = GradScaler("cpu", layerwise=Layerwise())
    for _ in range(4):
        step(model, optimizer, scaler)
    track = scaler.layerwise.tracks.latest
    assert scaler.metrics().groups == len({*track.decision.scales, track.decision.log2_scale})
    assert GradScaler("cpu").metrics().groups == 1


def test_an_update_without_a_step_is_told_to_nobody():
    model, optimizer = network()
    scaler = GradScaler("cpu")
    seen: list[Metrics] = []
    scaler.log_to(seen.append)
    step(model, optimizer, scaler)
    scaler.scale(model(torch.ones(3, 4)).mean()).backward()
    scaler.unscale_(optimizer)
    scaler.update()
    assert len(seen) == 1


def test_two_optimizers_are_one_step():
    first, second = network(), network()
    scaler = GradScaler("cpu")
    for model, _ in (first, second):
        scaler.scale(model(torch.ones(3, 4)).mean()).backward()
    second[0].weight.grad.fill_(math.inf)
    for _, optimizer in (first, second):
        scaler.step(optimizer)
    scaler.update()
    metrics = scaler.metrics()
    assert (metrics.step, metrics.steps, metrics.skipped_steps) == (0, 2, 1)
    assert metrics.skipped and metrics.reason == "overflow"


def test_accumulated_micro_batches_are_one_step():
    model, optimizer = network()
    scaler = GradScaler("cpu")
    for index in range(6):
        scaler.scale(model(torch.ones(3, 4)).mean() / 3).backward()
        if index % 3 == 2:
            scaler.step(optimizer)
            scaler.update()
    assert scaler.metrics().step == 1


def test_a_resumed_scaler_counts_on():
    model, optimizer = network()
    scaler = GradScaler("cpu")
    for value in [1.0, BAD, 1.0]:
        step(model, optimizer, scaler, value)
    resumed = GradScaler("cpu")
    resumed.load_state_dict(scaler.state_dict())
    step(model, optimizer, resumed)
    metrics = resumed.metrics()
    assert (metrics.step, metrics.steps, metrics.skipped_steps) == (3, 4, 1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_of_a_scaler_has_no_sinks(copied):
    model, optimizer = network()
    scaler = GradScaler("cpu")
    seen: list[Metrics] = []
    scaler.log_to(seen.append)
    step(model, optimizer, scaler)
    twin = copied(scaler)
    step(model, optimizer, twin)
    assert len(seen) == 1 and twin.metrics().steps == 2


def test_a_disabled_scaler_has_no_steps():
    model, optimizer = network()
    scaler = GradScaler("cpu", enabled=False)
    scaler.log_to(print)
    step(model, optimizer, scaler)
    assert scaler.metrics() == Metrics() or scaler.metrics().step == -1


class Watch:
    def on_measured(self, callback):
        self.callback = callback


class Row:
    def __init__(self, kind, flushed, nonzero, method="counted", negligible=False, format="fp16"):
        self.kind, self.flushed, self.nonzero = kind, flushed, nonzero
        self.method, self.negligible, self.format = method, negligible, format


def test_the_lost_share_comes_from_a_watch_and_says_when_and_how_well_it_is_known():
    model, optimizer = network()
    scaler, watch = GradScaler("cpu"), Watch()
    scaler.follow(watch)
    step(model, optimizer, scaler)
    assert scaler.metrics().lost is None
    rows = [
        Row("parameter", 1, 10),
        Row("cast", 3, 10, "extrapolated"),
        Row("activation", 9, 9),
        Row("parameter", 5, 5, negligible=True),
        Row("module", 0, 99, format="fp32"),
    ]
    watch.callback(1, rows)
    step(model, optimizer, scaler)
    assert scaler.metrics().lost == (0.2, 1, "extrapolated")


@pytest.mark.parametrize("policy", [Dynamic(), LastMaximum(), TwoSided()])
def test_metering_reads_nothing_more_on_the_host(policy):
    counts = []
    for metered in (False, True):
        model, optimizer = network()
        scaler = GradScaler("cpu", policy=policy)
        if metered:
            scaler.metrics()
        step(model, optimizer, scaler)
        with HostReads() as reads:
            step(model, optimizer, scaler)
        counts.append(reads.count)
    assert counts[0] == counts[1]


def absent_device_steps(steps, *needs, metered):
    """Steps on a CUDA device that is not there, where every host read raises."""
    parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaler = GradScaler("cuda")
    scaler.also_measure(*needs)
    seen: list[Metrics] = []
    if metered:
        scaler.log_to(seen.append)
    for _ in range(steps):
        scaler.scale(torch.zeros((), device="cuda"))
        parameter.grad = torch.ones(3, device="cuda")
        scaler.step(optimizer)
        scaler.update()
    return scaler, seen


def test_on_an_accelerator_nothing_is_read_and_nothing_is_told_before_it_has_arrived():
    with FakeTensorMode():
        scaler, seen = absent_device_steps(5, metered=True)
        assert seen == [] and scaler.metrics().step == -1
        with pytest.raises(DataDependentOutputException):
            scaler._books.wait()


def test_without_a_listener_nothing_is_copied():
    with FakeTensorMode():
        scaler, _ = absent_device_steps(5, metered=False)
        assert scaler._books.meter is None


def test_an_arrival_on_the_cpu_copies_nothing():
    tensor = torch.ones(3)
    assert HostCopies([tensor]).tensors[0].data_ptr() == tensor.data_ptr()


@pytest.mark.cuda
@pytest.mark.parametrize("policy", [Dynamic(), LastMaximum(), TwoSided()])
def test_metered_steps_never_wait_for_cuda(policy):
    parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    scaler = GradScaler("cuda", policy=policy)
    seen: list[Metrics] = []
    scaler.log_to(seen.append)

    def one():
        scaler.scale(torch.zeros((), device="cuda"))
        parameter.grad = torch.ones(3, device="cuda")
        scaler.step(optimizer)
        scaler.update()

    one()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            one()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    scaler._books.wait()
    assert [metrics.step for metrics in seen] == [0, 1, 2, 3]
    assert {metrics.scale for metrics in seen} <= {2.0**k for k in range(128)}


def test_a_sink_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"`log_to\(3\)` must be a function of a Metrics"):
        GradScaler("cpu").log_to(3)
    with pytest.raises(ValueError, match=r"`log_to\(every=0\)` must be at least 1"):
        GradScaler("cpu").log_to(print, every=0)


def test_only_what_can_be_measured_can_be_asked_for():
    with pytest.raises(ValueError, match=r"`also_measure\('norm'\)` must be 'amax' or"):
        GradScaler("cpu").also_measure("norm")
