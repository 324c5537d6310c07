"""What a step reports: skipped or not, why, how often, and to whom."""

import math

import pytest
import torch

from gradscale.policies import presets
from gradscale.scaler import GradScaler


def parameter_and(kind="sgd", value=1.0):
    parameter = torch.nn.Parameter(torch.full((4,), value))
    build = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
        "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.5, fused=True),
    }
    return parameter, build[kind]([parameter])


def step_with(scaler, parameter, optimizer, gradient, loss=0.0):
    scaler.scale(torch.tensor(loss))
    parameter.grad = torch.full_like(parameter, gradient)
    scaler.step(optimizer)
    scaler.update()


KINDS = ["sgd", "adamw-fused"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradient", [1.0, math.inf, math.nan])
def test_skipped_is_what_the_parameters_say(kind, gradient):
    parameter, optimizer = parameter_and(kind)
    scaler = GradScaler("cpu", init_scale=8.0)
    step_with(scaler, parameter, optimizer, gradient)
    untouched = bool((parameter == 1).all())
    assert scaler.last_step.skipped is untouched is (not math.isfinite(gradient))
    assert scaler.last_step.scale == 8.0
    assert scaler.last_step.reason == ("overflow" if untouched else None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_step_counts_its_elements(kind):
    parameter, optimizer = parameter_and(kind)
    scaler = GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    parameter.grad = torch.tensor([1.0, math.inf, math.nan, 1.0])
    scaler.step(optimizer)
    scaler.update()
    (culprit,) = scaler.last_step.culprits
    assert (culprit.nonfinite, culprit.elements) == (2, 4)
    assert "2 of 4 elements" in repr(scaler.last_step)


def test_the_outcome_belongs_to_its_optimizer():
    (one, first), (two, second) = parameter_and(), parameter_and()
    scaler = GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    one.grad, two.grad = torch.full((4,), math.inf), torch.ones(4)
    scaler.step(first)
    scaler.step(second)
    scaler.update()
    assert scaler.last_step[first].skipped and not scaler.last_step[second].skipped
    assert first in scaler.last_step and len(scaler.last_step) == 2
    _, stranger = parameter_and()
    with pytest.raises(KeyError, match="took no part"):
        scaler.last_step[stranger]


@pytest.mark.parametrize("kind", KINDS)
def test_counters_count_in_total_in_a_row_and_by_reason(kind):
    parameter, optimizer = parameter_and(kind)
    scaler = GradScaler("cpu")
    for gradient, loss in [(math.inf, 0.0), (1.0, 0.0), (math.nan, math.nan), (math.inf, 0.0)]:
        step_with(scaler, parameter, optimizer, gradient, loss)
    counters = scaler.counters
    assert (counters.steps, counters.skipped, counters.consecutive) == (4, 3, 2)
    assert counters.reasons == {"overflow": 2, "nonfinite_loss": 1}
    assert scaler.get_scale() == 2.0**14


@pytest.mark.parametrize("kind", KINDS)
def test_bad_data_leaves_the_growth_counter_alone(kind):
    parameter, optimizer = parameter_and(kind)
    scaler = GradScaler("cpu", init_scale=8.0, growth_interval=2)
    for gradient, loss in [(1.0, 0.0), (math.nan, math.nan), (1.0, 0.0)]:
        step_with(scaler, parameter, optimizer, gradient, loss)
    assert scaler.get_scale() == 16.0


@pytest.mark.parametrize("kind", KINDS)
def test_callbacks_hear_of_every_skip_and_of_nothing_else(kind):
    heard = []
    parameter, optimizer = parameter_and(kind)
    scaler = GradScaler("cpu", on_skip=lambda outcome: heard.append(outcome.reason))
    scaler.on_skip(lambda outcome: heard.append(outcome.scale))
    for gradient in (1.0, math.inf, 1.0):
        step_with(scaler, parameter, optimizer, gradient)
    assert heard == ["overflow", 2.0**16]


def test_the_alarm_sounds_once_and_before_the_floor():
    parameter, optimizer = parameter_and()
    scaler = GradScaler("cpu", init_scale=2.0**8)
    with pytest.warns(UserWarning, match=r"10 steps in a row .* reaches its floor") as caught:
        for _ in range(40):
            step_with(scaler, parameter, optimizer, math.inf)
    assert len(caught) == 1 and scaler.get_scale() > 2.0**-126


def test_a_policy_names_a_scale_below_which_one_overflow_is_an_alarm():
    heard = []
    parameter, optimizer = parameter_and()
    scaler = GradScaler("cpu", policy=presets.icefall())
    scaler.on_alarm(heard.append)
    with pytest.warns(UserWarning, match=r"4 steps in a row .* down to 0.0156") as caught:
        for overflows in (4, 4, 3):  # never five in a row, which would be an alarm by itself
            step_with(scaler, parameter, optimizer, 1.0)
            for _ in range(overflows):
                step_with(scaler, parameter, optimizer, math.inf)
    # From 1 to 2 with the first batch, then down.
    assert scaler.get_scale() == 2.0**-10
    assert len(caught) == len(heard) == 1 and heard[0].in_a_row == 4


def test_a_start_that_was_too_high_is_no_alarm():
    parameter, optimizer = parameter_and()
    scaler = GradScaler("cpu", init_scale=2.0**24)
    for _ in range(10):
        step_with(scaler, parameter, optimizer, math.inf)


def test_an_outcome_on_the_device_is_read_when_asked_for():
    from gradscale.outcomes.outcome import Evidence, OptimizerOutcome

    _, optimizer = parameter_and()
    flag, scale = torch.ones(()), torch.tensor(8.0)
    outcome = OptimizerOutcome(optimizer, [flag], scale, Evidence({}))
    assert not outcome.settled and "on the device" in repr(outcome)
    assert outcome.skipped and outcome.settled and outcome.scale == 8.0


@pytest.mark.parametrize("found", [0.0, 1.0])
@pytest.mark.parametrize("values", [[0.5], [math.inf], [-math.inf], [math.nan], [1e4, math.nan, 2]])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (4,)])
def test_the_scale_is_to_blame_if_every_loss_is_finite(found, values, dtype, shape):
    from gradscale.outcomes.outcome import Evidence

    evidence = Evidence({})
    for value in values:
        evidence.note_loss(torch.full(shape, value, dtype=dtype))
    flag = evidence.blame(torch.tensor(found), None).scaling
    assert flag.dtype is torch.float32 and flag.shape == ()
    assert flag.item() == (found if all(map(math.isfinite, values)) else 0.0)
