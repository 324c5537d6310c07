"""What is of the wrong kind is refused by the name of the call."""

import pytest
import torch

from gradscale import GradScaler


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize("value", ["1", None, True, torch.ones(2), [1.0]])
def test_what_is_no_number_is_refused_by_name(value):
    model = torch.nn.Linear(2, 1)
    optimizer = optimizer_of(model)
    scaler = GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    for call, name in (("clip_grad_norm_", "max_norm"), ("clip_grad_value_", "clip_value")):
        with pytest.raises(TypeError, match=rf"`{call}\({name}="):
            getattr(scaler, call)(optimizer, value)
    with pytest.raises(TypeError, match=r"`accumulate_\(weight="):
        scaler.accumulate_(optimizer, value)


def test_states_of_something_else_are_told_apart():
    scaler = GradScaler("cpu")
    with pytest.raises(TypeError, match=r"load_state_dict\(None\)"):
        scaler.load_state_dict(None)
    with pytest.raises(RuntimeError, match="is an optimizer's"):
        scaler.load_state_dict(optimizer_of(torch.nn.Linear(2, 1)).state_dict())
    with pytest.raises(RuntimeError, match=r"has the keys \['weight'\]"):
        scaler.load_state_dict(torch.nn.Linear(2, 1, bias=False).state_dict())


@pytest.mark.parametrize("name", ["gpu", "CUDA", "cuda:first", ""])
def test_a_device_that_torch_does_not_know_is_refused(name):
    with pytest.raises(ValueError, match=rf"`GradScaler\('{name}'\)`: torch knows no device of"):
        GradScaler(name)


@pytest.mark.parametrize(
    ("setting", "way_out"),
    [
        ({"init_scale": 0}, r"`GradScaler\(init_scale=0\)` must be a finite.*Pass a scale"),
        ({"growth_interval": 0}, r"`GradScaler\(growth_int.*, pass `Dynamic\(max_scale=init_scale"),
    ],
)
def test_a_number_out_of_range_is_refused_without_arguments_that_only_a_policy_has(
    setting, way_out
):
    with pytest.raises(ValueError, match=way_out):
        GradScaler("cpu", **setting)


def test_what_is_no_device_is_refused():
    with pytest.raises(TypeError, match=r"`GradScaler\(SGD\)`: the first argument is a device"):
        GradScaler(optimizer_of(torch.nn.Linear(2, 1)))
