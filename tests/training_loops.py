"""Loops whose losses are not finite, for one reason or another."""

from __future__ import annotations

import math

import torch

START = 2.0**16
"""The scale that they begin with."""


def penalty_loop(scaler, steps=30, fused=False, by_hand=False, accumulate=False, until=math.inf):
    """torch's recipe for a gradient penalty, in float16: the inner gradient is scaled, too."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, fused=fused)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(16, 32, requires_grad=True)
        with torch.autocast("cpu", torch.float16):
            out = net(x).float()
        inner = out.sum() * scaler.get_scale() if by_hand else scaler.scale(out.sum())
        (slope,) = torch.autograd.grad(inner, x, create_graph=True)
        loss = out.square().mean() + (slope / scaler.get_scale()).square().sum(1).mean()
        scaler.scale(loss).backward()
        if accumulate:
            scaler.accumulate_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return [p.detach().clone() for p in net.parameters()]


def broken_loop(scaler, steps, good=lambda step: False, inner=False):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scales = []
    for step in range(steps):
        optimizer.zero_grad()
        if inner:
            scaled = scaler.scale(parameter.square().sum())
            torch.autograd.grad(scaled, parameter, create_graph=True)
        factor = 1.0 if good(step) else math.nan
        scaler.scale((parameter * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales
