"""An optimizer as it was, whatever a step did to it."""

import math

import torch

from assertions import assert_same_bits
from gradscale.undo.restore import Snapshot


def everything(optimizer):
    tensors = [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]
    for state in optimizer.state.values():
        for value in state.values():
            items = value if isinstance(value, list) else [value]
            tensors += [t.clone() for t in items if isinstance(t, torch.Tensor)]
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return tensors, settings


def lbfgs_step(optimizer, parameter):
    def closure():
        optimizer.zero_grad()
        loss = ((parameter - torch.arange(3.0)) ** 4).sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def test_lbfgs_with_its_lists_comes_back_and_goes_on_as_if_nothing_had_been():
    parameter = torch.nn.Parameter(torch.full((3,), 5.0))
    optimizer = torch.optim.LBFGS([parameter], max_iter=3, line_search_fn="strong_wolfe")
    lbfgs_step(optimizer, parameter)
    before, at_first = Snapshot(optimizer), everything(optimizer)
    lbfgs_step(optimizer, parameter)
    once = everything(optimizer)
    before.restore_()
    for a, b in zip(everything(optimizer)[0], at_first[0], strict=True):
        assert_same_bits(a, b)
    lbfgs_step(optimizer, parameter)
    for a, b in zip(everything(optimizer)[0], once[0], strict=True):
        assert_same_bits(a, b)


def test_state_tensors_and_groups_stay_the_same_objects():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    state, moment = optimizer.state[parameter], optimizer.state[parameter]["exp_avg"]
    group = optimizer.param_groups[0]
    before = Snapshot(optimizer)
    parameter.grad = torch.full((2,), math.nan)
    optimizer.step()
    group["lr"], group["made_up"] = 7.0, 1
    before.restore_()
    assert optimizer.state[parameter] is state and state["exp_avg"] is moment
    assert moment.tolist() == [torch.tensor(0.1).item()] * 2 and state["step"].item() == 1
    assert optimizer.param_groups[0] is group and group["lr"] == 1e-3 and "made_up" not in group
