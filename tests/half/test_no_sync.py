"""A step of a half-precision model reads nothing on the host that a float32 one does not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import gradscale
from gradscale import half_precision
from half.by_hand import OPTIMIZERS, batches, network
from host_reads import HostReads


def reads(name, convert, device="cpu"):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    if convert:
        half_precision(model, optimizer)
    scaler = gradscale.GradScaler(device, init_scale=2.0**4)
    counts = []
    for x, y in batches(3):
        optimizer.zero_grad()
        scaler.scale(F.mse_loss(model(x), y)).backward()
        with HostReads() as seen:
            scaler.step(optimizer)
            scaler.update()
        counts.append(seen.count)
    return counts


@pytest.mark.parametrize("name", ["SGD momentum", "AdamW fused", "AdamW foreach"])
def test_a_step_reads_as_often_as_in_float32(name):
    # Of a fused optimizer the CPU, whose reads are free, looks at the scale once more.
    extra = 1 if "fused" in name else 0
    plain, half = reads(name, False), reads(name, True)
    assert all(h <= p + extra for h, p in zip(half, plain, strict=True))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_fused_step_of_a_half_model_never_waits_for_cuda():
    model = network().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    half_precision(model, optimizer)
    scaler = gradscale.GradScaler("cuda", init_scale=2.0**4)
    data = [(x.cuda(), y.cuda()) for x, y in batches(4)]
    before = [p.detach().clone() for p in model.parameters()]
    for number, (x, y) in enumerate(data):
        if number == 2:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.zero_grad()
            scaler.scale(F.mse_loss(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        finally:
            if number == len(data) - 1:
                torch.cuda.set_sync_debug_mode("default")
    assert not any(map(torch.equal, before, model.parameters()))
