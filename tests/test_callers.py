"""A warning names the line of the user's that led to it, by whichever way it came."""

import inspect

import pytest
import torch

from gradscale import GradScaler, half_precision


def float16_step():
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    scaler = GradScaler("cpu")
    scaler.scale(parameter.sum()).backward()
    return scaler, torch.optim.SGD([parameter], lr=0.1)


@pytest.mark.parametrize("name", ["unscale_", "step"])
def test_the_float16_warning_names_the_line_that_called_the_scaler(name):
    scaler, optimizer = float16_step()
    with pytest.warns(UserWarning, match="without float32 masters") as found:
        getattr(scaler, name)(optimizer)
        line = inspect.currentframe().f_lineno - 1
    assert [(it.filename, it.lineno) for it in found] == [(__file__, line)]


@pytest.mark.filterwarnings("ignore:.*steps in a row were skipped")
def test_the_alarm_names_the_line_of_update():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer, scaler = torch.optim.SGD([parameter], lr=0.1), GradScaler("cpu")
    with pytest.warns(UserWarning, match="20 steps in a row were skipped") as found:
        for _ in range(20):
            optimizer.zero_grad()
            scaler.scale(parameter.sum() * torch.inf).backward()
            scaler.step(optimizer)
            scaler.update()
            line = inspect.currentframe().f_lineno - 1
    assert [(it.filename, it.lineno) for it in found] == [(__file__, line)]


def half_model():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    half_precision(model, optimizer)
    return model, optimizer, GradScaler("cpu")


@pytest.mark.parametrize("name", ["unscale_", "step"])
def test_gradients_that_were_clipped_early_name_the_line_that_called_the_scaler(name):
    model, optimizer, scaler = half_model()
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    for p in model.parameters():
        p.grad.zero_()
    with pytest.warns(UserWarning, match="all of them are zero now") as found:
        getattr(scaler, name)(optimizer)
        line = inspect.currentframe().f_lineno - 1
    assert [(it.filename, it.lineno) for it in found] == [(__file__, line)]


def test_a_warning_from_a_hook_that_torch_calls_names_the_line_that_called_torch():
    model, optimizer, _ = half_model()
    with pytest.warns(UserWarning, match="past torch's count") as found:
        for _ in range(2):
            for p in model.parameters():
                p.data.add_(1.0)
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            line = inspect.currentframe().f_lineno - 1
    assert [(it.filename, it.lineno) for it in found] == [(__file__, line)]


class OwnLoss(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x).flatten()[0]


def test_a_loss_in_half_precision_names_the_line_of_the_forward_pass():
    model = OwnLoss(2, 2)
    half_precision(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.warns(UserWarning, match="OwnLoss computed a loss in float16") as found:
        model(torch.ones(1, 2))
        line = inspect.currentframe().f_lineno - 1
    assert [(it.filename, it.lineno) for it in found] == [(__file__, line)]
