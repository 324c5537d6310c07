"""A warning names the line of the user's that led to it, by whichever way it came."""

import inspect

import pytest
import torch

from gradscale import GradScaler


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
