"""On a GPU the scaler decides as on the CPU, on any stream and on any device."""

import math

import pytest
import torch
from torch import nn

import gradscale
from gradscale import GradScaler

pytestmark = pytest.mark.cuda

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}
BAD = {2: math.inf, 5: math.nan, 6: -math.inf}
SHAPES = [(33, 70), (70,), (4, 3, 5, 5), (), (0, 4)]


def gradients(step, device):
    torch.manual_seed(step)
    found = [torch.randn(shape) * 2.0**6 for shape in SHAPES]
    found[0][-1, -1] *= BAD.get(step, 1.0)
    return [grad.to(device) for grad in found]


def train(device, build, how="step", steps=9, **options):
    """Parameters, scales and skips after steps on gradients made by hand."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape).to(device)) for shape in SHAPES]
    optimizer = build(parameters)
    scaler = GradScaler(
        torch.device(device).type,
        policy=gradscale.Dynamic(init_scale=2.0**6, growth_interval=2),
        **options,
    )
    scales, norms = [], []
    for step in range(steps):
        for _ in range(2 if how == "accumulate" else 1):
            scaler.scale(torch.zeros((), device=device))
            for parameter, grad in zip(parameters, gradients(step, device), strict=True):
                parameter.grad = grad
            if how == "accumulate":
                scaler.accumulate_(optimizer, drop_overflow=True)
        if how == "norm":
            norms.append(scaler.clip_grad_norm_(optimizer, 0.5).cpu())
        if how == "value":
            scaler.clip_grad_value_(optimizer, 0.1)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return [p.detach().cpu() for p in parameters], scales, scaler.counters.skipped, norms


@pytest.mark.parametrize("how", ["step", "norm", "value", "accumulate"])
@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_decisions_are_those_of_the_cpu(build, how):
    here, scales, skipped, norms = train("cuda", build, how)
    there, expected_scales, expected_skips, expected_norms = train("cpu", build, how)
    assert (scales, skipped) == (expected_scales, expected_skips) and skipped == len(BAD)
    for one, other in zip([*here, *norms], [*there, *expected_norms], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("undo", ["learning_rate", "optimizer"])
def test_a_scale_undone_in_the_optimizer_gives_the_steps_of_the_cpu(undo):
    here = train("cuda", OPTIMIZERS["sgd"], undo=undo)
    there = train("cpu", OPTIMIZERS["sgd"], undo=undo)
    assert here[1:3] == there[1:3]
    for one, other in zip(here[0], there[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_norm_of_large_gradients_is_finite():
    parameter = nn.Parameter(torch.zeros(2, device="cuda"))
    parameter.grad = torch.tensor([3e20, 4e20], device="cuda")
    scaler, optimizer = GradScaler("cuda", init_scale=1.0), torch.optim.SGD([parameter], lr=1.0)
    scaler.scale(torch.zeros((), device="cuda"))
    norm = scaler.clip_grad_norm_(optimizer, 1.0)
    scaler.step(optimizer)
    torch.testing.assert_close(norm.item(), 5e20, rtol=1e-6, atol=0)
    torch.testing.assert_close(parameter.tolist(), [-0.6, -0.8])


def network(device):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3)).to(device)


def backward_steps(device, steps=12, half=False, **options):
    """A real loop: layer-wise or with a half-precision model, watched and recorded by metrics."""
    model = network(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    if half:
        gradscale.half_precision(model, optimizer)
    scaler, seen = GradScaler("cuda", init_scale=2.0**10, **options), []
    scaler.log_to(seen.append)
    with gradscale.watch(model, scaler, every=2, activations=True) as watch:
        for step in range(steps):
            x = torch.randn(5, 6, device=device)
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.float16, enabled=not half):
                loss = model(x.half() if half else x).float().square().mean()
            scaler.scale(loss * (2.0**120 if step == 7 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
    torch.cuda.synchronize()
    scaler.metrics()
    assert scaler.counters.skipped >= 1 and [m.step for m in seen] == list(range(steps))
    assert watch.report() and all(p.isfinite().all() for p in model.parameters())
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("layerwise", [None, True])
@pytest.mark.parametrize("half", [False, True])
def test_everything_at_once_on_a_stream_of_its_own(half, layerwise):
    options = {"half": half, "layerwise": layerwise}
    plain = backward_steps("cuda", **options)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        aside = backward_steps("cuda", **options)
    torch.cuda.synchronize()
    # When an overflow is known to the host, and so the next plan, is a matter of time.
    assert layerwise or all(map(torch.equal, plain, aside))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("half", [False, True])
def test_a_device_that_is_not_the_current_one(half):
    assert torch.cuda.current_device() == 0
    here, there = (backward_steps(f"cuda:{index}", half=half) for index in (0, 1))
    backward_steps("cuda:1", half=half, layerwise=True)
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(here, there, strict=True))
