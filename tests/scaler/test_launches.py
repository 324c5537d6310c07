"""How many kernels a step launches on an accelerator, counted on tensors that have no values."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import gradscale

FREE = ("prim.", "view", "detach", "unbind", "alias", "select", "empty")
"""Operations without a kernel."""
OPTIMIZERS = {
    "foreach": lambda p: torch.optim.SGD(p, lr=0.1, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, fused=True),
}
MORE_THAN_TORCH = {("foreach", True): 0, ("fused", False): 2, ("fused", True): 3}
"""Telling bad data from overflow takes five launches, and torch wastes two or three."""


class Launches(TorchDispatchMode):
    """Counts, and answers what an unfused step reads: no infinities, at the default scale."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.read = itertools.cycle([0.0, 2.0**16])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        if name.startswith("_local_scalar_dense"):
            return next(self.read)
        if not name.startswith(FREE):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def launches(scaler, build, unscale_first):
    """The names of what the second step launches after the backward pass."""
    scaler._device = "cuda"
    with FakeTensorMode():
        parameters = [torch.nn.Parameter(torch.empty(4, 4, device="cuda")) for _ in range(3)]
        optimizer = build(parameters)
        optimizer.step = lambda *args, **kwargs: None
        for _ in range(2):
            scaler.scale(torch.zeros((), device="cuda"))
            for parameter in parameters:
                parameter.grad = torch.empty(4, 4, device="cuda")
            with Launches() as counted:
                if unscale_first:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
            for parameter in parameters:
                parameter.grad = None
    return counted.names


@pytest.mark.parametrize(("name", "unscale_first"), MORE_THAN_TORCH)
def test_a_step_launches_hardly_more_than_torchs(name, unscale_first):
    torchs = launches(torch.amp.GradScaler("cpu"), OPTIMIZERS[name], unscale_first)
    ours = launches(gradscale.GradScaler("cpu"), OPTIMIZERS[name], unscale_first)
    assert len(ours) <= len(torchs) + MORE_THAN_TORCH[name, unscale_first], (ours, torchs)


def test_a_fused_step_visits_the_gradients_once():
    names = launches(gradscale.GradScaler("cpu"), OPTIMIZERS["fused"], False)
    assert [n for n in names if "foreach" in n] == [
        "_amp_foreach_non_finite_check_and_unscale_.default"
    ]


def test_below_a_scale_of_one_a_fused_step_looks_at_quotients():
    names = launches(gradscale.GradScaler("cpu", init_scale=0.5), OPTIMIZERS["fused"], False)
    assert "_foreach_norm.Scalar" in names
    names = launches(gradscale.GradScaler("cpu", init_scale=0.5), OPTIMIZERS["fused"], True)
    assert names.count("_amp_foreach_non_finite_check_and_unscale_.default") == 2


def test_a_scale_that_somebody_else_wrote_is_looked_at():
    class Meddled(gradscale.GradScaler):
        def step(self, optimizer):
            self._scale.mul_(1.0)
            super().step(optimizer)

    names = launches(Meddled("cpu"), OPTIMIZERS["fused"], False)
    assert {"_foreach_norm.Scalar", "clamp_.default"} <= set(names)
