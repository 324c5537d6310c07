"""Micro-batches: dropped when they overflow, never mixed at two scales."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assertions import assert_same_bits
from gradscale import GradScaler
from gradscale.policies import Band, Dynamic

BUILDERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.5, fused=True),
}


def one(build=BUILDERS["sgd"], **arguments):
    parameter = torch.nn.Parameter(torch.ones(2))
    return parameter, build([parameter]), GradScaler("cpu", **{"init_scale": 8.0, **arguments})


def feed(scaler, parameter, optimizer, gradients, losses=None, **arguments):
    for index, gradient in enumerate(gradients):
        loss = 0.0 if losses is None else losses[index]
        scaler.scale(torch.tensor(loss))
        parameter.grad = torch.full_like(parameter, gradient * scaler.get_scale())
        scaler.accumulate_(optimizer, **arguments)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(BUILDERS)),
    bad=st.sets(st.integers(0, 3), max_size=4),
    sync_free=st.booleans(),
)
def test_a_step_without_the_dropped_ones_is_one_that_never_saw_them(name, bad, sync_free):
    results = []
    for dropping in (True, False):
        parameter, optimizer, scaler = one(BUILDERS[name], sync_free=sync_free)
        for step in range(2):
            values = [1.0 + i + step for i in range(4)]
            if dropping and step == 1:
                values = [math.inf if i in bad else v for i, v in enumerate(values)]
            elif step == 1:
                values = [v for i, v in enumerate(values) if i not in bad]
            if values:
                feed(scaler, parameter, optimizer, values, drop_overflow=dropping)
                scaler.step(optimizer)
                scaler.update()
        if dropping:
            assert scaler.last_step.skipped == (len(bad) == 4)
            assert next(iter(scaler.last_step)).dropped == len(bad)
            # The policy hears of it, whether the step was taken or not.
            assert scaler.get_scale() == (4.0 if bad else 8.0)
        results.append(parameter.detach())
    assert_same_bits(*results)


@pytest.mark.parametrize(("divide_by", "mean"), [("kept", 2.0), ("all", 1.5), ("nothing", 6.0)])
def test_what_happens_to_the_divisor(divide_by, mean):
    parameter, optimizer, scaler = one()
    values = [1.0, math.inf, 2.0, 3.0]
    feed(scaler, parameter, optimizer, values, drop_overflow=True, divide_by=divide_by)
    scaler.unscale_(optimizer)
    assert parameter.grad.tolist() == [mean] * 2


def test_weights_are_shares_of_the_mean():
    parameter, optimizer, scaler = one()
    for value, samples in ((1.0, 32), (5.0, 96)):
        feed(scaler, parameter, optimizer, [value], weight=samples)
    scaler.unscale_(optimizer)
    assert parameter.grad.tolist() == [4.0, 4.0]


@pytest.mark.parametrize("sync_free", [False, True])
def test_a_micro_batch_lost_to_bad_data_does_not_lower_the_scale(sync_free):
    parameter, optimizer, scaler = one(sync_free=sync_free)
    feed(scaler, parameter, optimizer, [1.0, math.nan], [0.0, math.nan], drop_overflow=True)
    scaler.step(optimizer)
    scaler.update()
    assert not scaler.last_step.skipped and scaler.get_scale() == 8.0
    feed(scaler, parameter, optimizer, [math.nan] * 2, [math.nan] * 2, drop_overflow=True)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.last_step.reason == "nonfinite_loss" and scaler.get_scale() == 8.0


def test_without_dropping_one_overflow_costs_the_step():
    parameter, optimizer, scaler = one()
    feed(scaler, parameter, optimizer, [1.0, math.inf, 1.0])
    scaler.step(optimizer)
    scaler.update()
    assert scaler.last_step.skipped and parameter.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("undo", ["gradient", "learning_rate"])
def test_the_mean_can_be_clipped(undo):
    parameter, optimizer, scaler = one(undo=undo)
    feed(scaler, parameter, optimizer, [3.0, 5.0])
    assert scaler.clip_grad_norm_(optimizer, 2.0**0.5).item() == pytest.approx(4 * 2**0.5)
    scaler.step(optimizer)
    assert parameter.tolist() == pytest.approx([0.5, 0.5])


def test_a_policy_that_measures_is_shown_the_mean():
    parameter, optimizer, scaler = one(policy=Band(init_scale=8.0), init_scale=2.0**16)
    feed(scaler, parameter, optimizer, [1.0, 3.0])
    scaler.step(optimizer)
    scaler.update()
    assert scaler.last_step.observation.amax.item() == 2.0


def test_real_losses_give_the_gradient_of_the_whole_batch():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    inputs = torch.randn(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(inputs).square().mean().backward()
    whole = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    scaler = GradScaler("cpu")
    for part in inputs.split([2, 6]):
        scaler.scale(model(part).square().mean()).backward()
        scaler.accumulate_(optimizer, weight=len(part))
    scaler.unscale_(optimizer)
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_half_precision_models_are_summed_into_their_masters():
    from gradscale import half_precision

    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    half_precision(model, optimizer, format=torch.float16)
    scaler = GradScaler("cpu", init_scale=1.0)
    for value in (2048.0, *[1.0] * 8):
        scaler.scale(model(torch.tensor([[value]], dtype=torch.float16)).float().sum()).backward()
        scaler.accumulate_(optimizer, divide_by="nothing")
    scaler.step(optimizer)
    scaler.update()
    # 1 - 2056, rounded to float16; summed in float16 the gradient would have stayed at 2048.
    assert model.weight.item() == -2056.0


@pytest.mark.parametrize("way", ["unscale_", "step"])
def test_a_backward_after_the_last_one_is_noticed(way):
    parameter, optimizer, scaler = one()
    feed(scaler, parameter, optimizer, [1.0])
    parameter.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"backward\(\) has run since the last `accumulate_"):
        getattr(scaler, way)(optimizer)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"weight": 0.0}, ValueError, r"weight=0\.0\)` must be positive"),
        ({"weight": math.inf}, ValueError, "must be positive and finite"),
        ({"divide_by": "some"}, ValueError, "must be one of"),
        ({"drop_overflow": True}, ValueError, r"began with drop_overflow=False.*the same for all"),
    ],
)
def test_what_it_is_given_is_checked(arguments, error, words):
    parameter, optimizer, scaler = one()
    feed(scaler, parameter, optimizer, [1.0])
    with pytest.raises(error, match=words):
        feed(scaler, parameter, optimizer, [1.0], **arguments)


def test_the_order_of_calls_is_checked():
    parameter, optimizer, scaler = one()
    scaler.scale(torch.zeros(()))
    with pytest.raises(RuntimeError, match="finds no gradients"):
        scaler.accumulate_(optimizer)
    feed(scaler, parameter, optimizer, [1.0])
    with pytest.raises(RuntimeError, match=r"between `accumulate_\(optimizer\)` and `step"):
        scaler.update(4.0)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="the gradients of this step are complete"):
        scaler.accumulate_(optimizer)
    with pytest.raises(RuntimeError, match=r"enabled=False.*Static\(1\.0\)"):
        GradScaler("cpu", enabled=False).accumulate_(optimizer)


def test_a_new_scale_in_the_middle_of_an_accumulation_is_refused():
    parameter, optimizer, scaler = one()
    scaler.scale(parameter.sum()).backward()
    with pytest.raises(RuntimeError, match=r"update\(new_scale=4\.0\)` in the middle of an accu"):
        scaler.update(4.0)
    scaler.scale(parameter.sum()).backward()
    scaler.step(optimizer)
    scaler.update(4.0)
    assert parameter.tolist() == [0.0, 0.0] and scaler.get_scale() == 4.0


def test_gradients_that_were_unscaled_may_wait_for_another_scale():
    parameter, optimizer, scaler = one()
    scaler.scale(parameter.sum()).backward()
    scaler.unscale_(optimizer)
    scaler.update(4.0)
    scaler.scale(parameter.sum()).backward()
    scaler.step(optimizer)
    assert parameter.tolist() == [0.0, 0.0]


def test_a_scale_may_be_set_before_any_backward():
    parameter, _, scaler = one()
    scaler.scale(parameter.sum())
    scaler.update(4.0)
    scaler.scale(parameter.sum()).backward()
    assert parameter.grad.tolist() == [4.0, 4.0]


def test_a_dropped_micro_batch_lowers_the_scale_no_further_than_its_floor():
    parameter, optimizer, scaler = one(policy=Dynamic(8.0, min_scale=8.0), init_scale=2.0**16)
    feed(scaler, parameter, optimizer, [1.0, math.inf], drop_overflow=True)
    scaler.step(optimizer)
    scaler.update()
    assert not scaler.last_step.skipped and scaler.get_scale() == 8.0


def test_saving_between_micro_batches_warns_that_their_sum_is_not_saved():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    scaler.accumulate_(optimizer)
    with pytest.warns(UserWarning, match=r"between `accumulate_` and `step`.*after `update\(\)`"):
        scaler.state_dict()
    scaler.step(optimizer)
    scaler.update()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaler.state_dict()
