"""GPUs without float64, as tensors that compute nothing and refuse it."""

import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradscale import functional
from gradscale.accelerators import has_float64, widest_float
from gradscale.gradients.flags import inverse
from gradscale.gradients.norm import gradient_norm
from gradscale.policies.product import rounded_product


class WithoutFloat64(TorchDispatchMode):
    """What such a device does: every result off the host that is float64 is an error."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and not each.is_cpu and each.dtype is torch.float64:
                raise TypeError(f"{func} made float64 on {each.device}")
        return result


@pytest.fixture(params=["mps", "xpu"])
def device(request, monkeypatch):
    properties = types.SimpleNamespace(has_fp64=False)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda _: properties)
    with FakeTensorMode(allow_non_fake_inputs=True), WithoutFloat64():
        yield request.param


def owner_of(gradient):
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient
    return parameter


def test_the_stand_in_refuses_float64(device):
    with pytest.raises(TypeError, match="made float64"):
        torch.ones((), device=device).double()


def test_nothing_in_a_step_asks_for_float64_where_there_is_none(device):
    scale, gradient = torch.ones((), device=device), torch.ones(3, device=device)
    assert inverse(scale).dtype is torch.float32
    assert rounded_product(scale, 0.1).dtype is torch.float32
    for order in (1.0, 2.0, 3.0, float("inf")):
        assert gradient_norm([owner_of(gradient)], order).value.dtype is torch.float32
        clipped, norm = functional.clip_by_norm([gradient], 1.0, order)
        assert clipped[0].dtype is norm.dtype is torch.float32


def test_an_intel_gpu_says_itself_whether_it_has_float64(monkeypatch):
    for has in (True, False):
        properties = types.SimpleNamespace(has_fp64=has)
        monkeypatch.setattr(torch.xpu, "get_device_properties", lambda _, it=properties: it)
        assert has_float64(torch.device("xpu")) is has
    assert widest_float(torch.device("xpu")) is torch.float32
    assert widest_float(torch.device("cuda")) is torch.float64
