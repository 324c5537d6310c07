"""What a watch says of backward functions that torch did not write: each is probed once."""

import json

import pytest
import torch

import gradscale
from gradscale import GradScaler
from user_functions import ADDITIONS, Clamp, Experts, Reversal


def batch(seed):
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))


def watched(model, scaler=None, steps=3, watches=True):
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-3)
    with gradscale.watch(model, scaler, every=1) as watch:
        for step in range(steps):
            optimizer.zero_grad()
            loss = model(batch(step))
            if scaler is None:
                loss.backward()
                optimizer.step()
                continue
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return watch.report()


def told_of(report, name):
    (found,) = [verdict for verdict in report.functions if verdict.name == name]
    return found


@pytest.mark.parametrize("make", [torch.amp.GradScaler, GradScaler])
@pytest.mark.filterwarnings("ignore:`AddAuxiliaryLoss.backward`")
def test_a_function_that_adds_is_named_with_its_place_what_it_reaches_and_how_wrong_it_is(make):
    model = Experts(ADDITIONS["DeepSeek"])
    found = told_of(watched(model, make("cpu", init_scale=2.0**10)), "AddAuxiliaryLoss")
    assert (found.kind, found.wrong, found.corrected) == ("injects", 2.0**10, False)
    assert found.reaches.startswith("router.") and found.place == " (after experts.2)"
    assert "1,024 times too small" in str(found)


def test_without_a_scaler_it_is_named_and_right():
    report = watched(Experts(ADDITIONS["DeepSeek"]))
    found = told_of(report, "AddAuxiliaryLoss")
    assert (found.kind, found.wrong) == ("injects", 1.0)
    assert "At this scale it is right" in " ".join(report.table().split())


def test_where_the_scaler_corrects_it_the_report_says_so():
    scaler = GradScaler("cpu", injected="scale")
    report = watched(Experts(ADDITIONS["icefall"]), scaler)
    assert told_of(report, "WithLoss").corrected
    assert "The scaler multiplies it by the scale" in " ".join(report.table().split())


def test_one_that_is_not_linear_is_named_and_one_that_is_says_nothing():
    model = Experts(lambda hidden, loss: Reversal.apply(Clamp.apply(hidden, 1e-3)) + 0 * loss)
    report = watched(model)
    assert {(v.name, v.kind) for v in report.functions} == {
        ("Clamp", "nonlinear"),
        ("Reversal", "linear"),
    }
    table = report.table()
    assert "Clamp.backward" in table and "Reversal" not in table
    assert all(len(line) <= 100 for line in table.splitlines())
    assert json.loads(json.dumps(report.to_dict()))["functions"][0]["name"] in ("Clamp", "Reversal")


def test_probing_leaves_the_bits_of_training_alone():
    torch.manual_seed(0)
    one = Experts(ADDITIONS["DeepSeek"])
    torch.manual_seed(0)
    other = Experts(ADDITIONS["DeepSeek"])
    watched(one)
    optimizer = torch.optim.SGD(other.parameters(), lr=2.0**-3)
    for step in range(3):
        optimizer.zero_grad()
        other(batch(step)).backward()
        optimizer.step()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_each_function_is_called_more_often_in_one_pass_only():
    calls = []

    class Counting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            calls.append(1)
            return grad * 0.5

    watched(Experts(lambda hidden, loss: Counting.apply(hidden) + 0 * loss), steps=4)
    assert len(calls) == 4 + 5  # zeros, the gradient, and three multiples of it
