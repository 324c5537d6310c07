"""What cannot be done right is refused before anything is changed, with the way out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradscale
from gradscale import half_precision


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


def unchanged(net):
    return all(p.dtype == torch.float32 for p in net.parameters())


def test_other_formats_are_refused():
    net = model()
    with pytest.raises(ValueError, match=r"format=torch.float32\)` must be torch.float16 or"):
        half_precision(net, sgd(net), torch.float32)
    with pytest.raises(ValueError, match=r"gradients=torch.bfloat16\)` must be torch.float16 or"):
        half_precision(net, sgd(net), gradients=torch.bfloat16)
    with pytest.raises(ValueError, match=r"format=torch.float8_e5m2\)` must be torch.float16 or"):
        half_precision(net, sgd(net), "e5m2")
    with pytest.raises(ValueError, match=r"format='fp61'\)` must be a number format"):
        half_precision(net, sgd(net), "fp61")
    assert unchanged(net)


@pytest.mark.parametrize("format", ["bf16", "bfloat16", torch.bfloat16])
def test_a_format_goes_by_the_names_it_has_everywhere(format):
    net = model()
    half_precision(net, sgd(net), format, gradients="fp32")
    assert net[0].weight.dtype is torch.bfloat16


def test_a_weight_beyond_the_range_is_refused_with_its_name():
    net = model()
    with torch.no_grad():
        net[1].weight[0, 1] = -70000.0
    message = r"parameter 1\.weight holds 70000, and float16 ends at 65504.*keep='1\.weight'"
    with pytest.raises(ValueError, match=message):
        half_precision(net, sgd(net))
    assert unchanged(net)
    half_precision(net, sgd(net), torch.bfloat16)


def test_a_weight_beyond_the_range_saturates_on_request():
    net = model()
    with torch.no_grad():
        net[1].weight[0, 1] = -70000.0
        net[0].weight.fill_(1e6).requires_grad_(False)  # frozen, without a master
    half = half_precision(net, sgd(net[1]), saturate=True)
    assert net[1].weight[0, 1].item() == -65504.0 and net[0].weight.unique().item() == 65504.0
    assert dict(half.named_parameters())["1.weight"][0, 1].item() == -70000.0


def test_a_buffer_beyond_the_range_is_refused_unless_kept():
    net = model()
    net.register_buffer("mask", torch.full((2,), -1e9))
    with pytest.raises(ValueError, match=r"buffer mask holds 1e\+09"):
        half_precision(net, sgd(net))
    half_precision(net, sgd(net), keep="mask")
    assert net.mask.tolist() == [-1e9] * 2


def test_an_infinite_mask_is_no_overflow():
    net = model()
    net.register_buffer("mask", torch.full((2,), -torch.inf))
    half_precision(net, sgd(net))
    assert net.mask.dtype == torch.float16


def test_pending_gradients_are_refused():
    net = model()
    optimizer = sgd(net)
    net(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match=r"holds a gradient.*zero_grad"):
        half_precision(net, optimizer)
    optimizer.zero_grad()
    half_precision(net, optimizer)


def test_a_second_call_is_refused():
    net = model()
    optimizer = sgd(net)
    half_precision(net, optimizer)
    with pytest.raises(RuntimeError, match="was called before with this optimizer"):
        half_precision(net, optimizer)
    with pytest.raises(RuntimeError, match=r"Pass all optimizers of a model together"):
        half_precision(net, sgd(net))


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="none of the model's parameters"):
        half_precision(model(), sgd(model()))
    with pytest.raises(ValueError, match="needs an optimizer"):
        half_precision(model(), [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda net, o: (net, None), r"half_precision\(Sequential, NoneType\)`: the optimizer is"),
        (lambda net, o: (net, net.parameters()), "of the model's parameters, or a list of them"),
        (lambda net, o: (net, [o, 3]), r"half_precision\(Sequential, int\)`: the optimizer is"),
        (lambda net, o: (o, net), "the model comes first, then the optimizer"),
        (lambda net, o: (net.parameters(), o), r"the model is a `torch\.nn\.Module`"),
    ],
)
def test_other_kinds_of_arguments_are_refused(arguments, message):
    net = model()
    with pytest.raises(TypeError, match=message):
        half_precision(*arguments(net, sgd(net)))
    assert unchanged(net)


def test_lazy_modules_need_their_first_pass():
    net = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(RuntimeError, match="has no shape yet"):
        half_precision(net, sgd(net))


def test_parameters_replaced_afterwards_are_noticed_at_the_next_step():
    net = model()
    optimizer = sgd(net)
    half_precision(net, optimizer)
    for layer in net:
        layer.weight = nn.Parameter(layer.weight.detach().clone())
        layer.bias = nn.Parameter(layer.bias.detach().clone())
    net(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match="parameters were replaced after"):
        optimizer.step()


def test_torchs_scaler_is_refused_by_torch_and_works_with_float32_gradients():
    net = model()
    optimizer = sgd(net)
    half_precision(net, optimizer, keep="1")
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(net(torch.ones(1, 2)).sum()).backward()
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        scaler.step(optimizer)

    def run(kind):
        net = model()
        optimizer = sgd(net)
        half = half_precision(net, optimizer, gradients=torch.float32)
        scaler = kind("cpu", init_scale=2.0**4)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(net(torch.ones(1, 2)).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        return [p.tolist() for p in half.parameters()]

    assert run(torch.amp.GradScaler) == run(gradscale.GradScaler)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_plain_half_precision_parameters_without_masters_are_accepted(dtype):
    weights = [torch.nn.Parameter(torch.ones(2, dtype=d)) for d in (dtype, torch.float32)]
    optimizer = torch.optim.SGD(weights, lr=0.5)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**8)
    scaler.scale(sum((w * 1.0).float().sum() for w in weights)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert [w.tolist() for w in weights] == [[0.5, 0.5]] * 2
    assert weights[0].dtype == dtype


@pytest.mark.parametrize("fused", [False, True])
def test_three_dtypes_of_gradients_in_one_optimizer(fused):
    net = nn.Linear(2, 1, bias=False)
    nn.init.ones_(net.weight)
    others = [nn.Parameter(torch.ones(2, dtype=d)) for d in (torch.bfloat16, torch.float32)]
    optimizer = torch.optim.SGD([*net.parameters(), *others], lr=0.5, fused=fused)
    half_precision(net, optimizer)
    scaler = gradscale.GradScaler("cpu", init_scale=2.0**8)
    loss = net(torch.ones(1, 2)).sum() + sum((w * 1.0).float().sum() for w in others)
    scaler.scale(loss).backward()
    assert {p.grad.dtype for p in (net.weight, *others)} == {
        torch.float16,
        torch.bfloat16,
        torch.float32,
    }
    scaler.step(optimizer)
    scaler.update()
    assert [w.flatten().tolist() for w in (net.weight, *others)] == [[0.5, 0.5]] * 3


class Lookahead(torch.optim.Optimizer):
    """As in many copies: an optimizer by class, which never calls `Optimizer.__init__`."""

    def __init__(self, wrapped):
        self.wrapped, self.defaults = wrapped, wrapped.defaults
        self.param_groups, self.state = wrapped.param_groups, wrapped.state

    def step(self, closure=None):
        return self.wrapped.step(closure)


class Initialised(Lookahead):
    def __init__(self, wrapped):
        torch.optim.Optimizer.__init__(self, wrapped.param_groups, wrapped.defaults)
        self.wrapped = wrapped


def test_wrappers_that_are_no_whole_optimizer_are_refused_with_the_way_out():
    net = model()
    message = r"half_precision\(model, Lookahead\)`.*never called `Optimizer\.__init__`.*super\(\)"
    with pytest.raises(TypeError, match=message):
        half_precision(net, Lookahead(sgd(net)))
    assert unchanged(net)


def test_a_wrapper_that_follows_that_advice_trains_as_what_it_wraps():
    found = []
    for wrap in (lambda optimizer: optimizer, Initialised):
        net = model()
        optimizer = wrap(sgd(net))
        half_precision(net, optimizer)
        scaler = gradscale.GradScaler("cpu")
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(net(torch.ones(3, 2)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append([p.detach().clone() for p in net.parameters()])
    assert all(map(torch.equal, *found))
    assert not torch.equal(found[0][0], model()[0].weight.half())


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
def test_a_cast_in_mid_run_is_named_at_the_next_forward_pass(cast):
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    optimizer = sgd(net)
    half_precision(net, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.ones(3, 2)).sum().backward()
        optimizer.step()
    getattr(net, cast)()
    with pytest.raises(RuntimeError, match=r"something changed it since, such as `model\.float"):
        net(torch.ones(3, 2))
