"""`torch.set_default_device` moves nothing of ours: every tensor is made where it belongs.

Whatever ended up on the meta device by mistake would raise as soon as it meets a number. With a GPU
as the default device, host memory that is to be pinned would not be host memory.
"""

import pytest
import torch
from torch import nn

import gradscale
from gradscale.emulation import emulate

WHERE = [("meta", "cpu"), pytest.param(("cuda", "cuda"), marks=pytest.mark.cuda)]

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


@pytest.fixture(params=WHERE, ids=lambda pair: pair[0] if isinstance(pair, tuple) else None)
def device(request):
    default, device = request.param
    with torch.device(default):
        yield device


@pytest.fixture(params=sorted(OPTIMIZERS))
def trained(request, device):
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))
    model = model.to_empty(device=device)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model, OPTIMIZERS[request.param](model.parameters())


def train(model, optimizer, scaler, device, *, clip=False, accumulate=False, steps=6):
    half = next(model.parameters()).dtype == torch.float16
    for number in range(steps):
        optimizer.zero_grad()
        for _ in range(2 if accumulate else 1):
            x = torch.randn(4, 6, device=device)
            with torch.autocast(device, torch.float16, enabled=not half):
                loss = model(x.half() if half else x).float().square().mean()
            if number == 3:
                loss = loss * 2.0**120
            scaler.scale(loss).backward()
            if accumulate:
                scaler.accumulate_(optimizer)
        if clip:
            scaler.clip_grad_norm_(optimizer, 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.counters.skipped == 1
    scaler.load_state_dict(scaler.state_dict())


@pytest.mark.parametrize(
    "options", [{}, {"sync_free": True}, {"undo": "optimizer"}, {"layerwise": True}], ids=str
)
@pytest.mark.parametrize("how", [{}, {"clip": True}, {"accumulate": True}], ids=str)
def test_steps(trained, device, options, how):
    scaler = gradscale.GradScaler(device, init_scale=2.0**8, **options)
    train(*trained, scaler, device, **how)


@pytest.mark.parametrize("layerwise", [False, True])
def test_half_precision(trained, device, layerwise):
    gradscale.half_precision(*trained)
    scaler = gradscale.GradScaler(device, init_scale=2.0**8, layerwise=layerwise or None)
    train(*trained, scaler, device, clip=True)


@pytest.mark.parametrize(
    "policy", [gradscale.Dynamic(hysteresis=2), gradscale.LogNormal()], ids=str
)
def test_policies(trained, device, policy):
    train(*trained, gradscale.GradScaler(device, policy=policy), device)


def test_watching_recording_and_metrics(trained, device, tmp_path):
    scaler, seen = gradscale.GradScaler(device, init_scale=2.0**8), []
    scaler.log_to(seen.append)
    watch = gradscale.watch(trained[0], scaler=scaler, every=1, activations=True)
    with gradscale.Recorder(tmp_path / "run.jsonl", scaler, watch=watch):
        train(*trained, scaler, device)
    if device == "cuda":
        torch.cuda.synchronize()
    scaler.metrics()
    assert str(watch.report()) and [metrics.step for metrics in seen] == list(range(6))


def test_captured_steps(device):
    model = nn.Linear(6, 3).to_empty(device=device)
    nn.init.uniform_(model.weight), nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = gradscale.CapturedStep(
        model, lambda model, x: model(x).square().mean(), optimizer, mode="eager"
    )
    for _ in range(2):
        step.step(torch.randn(4, 6, device=device))
    step.load_state_dict(step.state_dict())
    assert step.steps.item() == 2


def test_emulation(trained, device):
    with emulate("fp16", "e5m2"):
        trained[0](torch.randn(4, 6, device=device)).sum().backward()
