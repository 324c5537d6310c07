"""Steps read nothing on the host: what is counted arrives by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import gradscale

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def model_of(device: str = "cpu") -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))
    return model if device == "cpu" else model.to(device)  # fake weights cannot be moved


def backward(model: nn.Module, scaler: gradscale.GradScaler, device: str = "cpu") -> None:
    with torch.autocast(device, torch.float16):
        loss = model(torch.ones(3, 4, device=device)).float().square().mean()
    scaler.scale(loss).backward()


@pytest.mark.parametrize("activations", [False, True])
def test_a_measuring_pass_reads_nothing_only_the_rows_do(activations: bool) -> None:
    with FakeTensorMode():
        model, scaler = model_of(), gradscale.GradScaler("cpu")
        watch = gradscale.watch(model, scaler, activations=activations)
        with pytest.raises(ZeroDivisionError), watch:
            for _ in range(2):
                backward(model, scaler)
            assert watch.measures and watch._current is not None
            assert len(watch._current.passes) == 2
            watch._current, current = None, watch._current  # its rows would be read at the end
            raise ZeroDivisionError
        current.finish(None, [], torch.device("cpu"))
        with pytest.raises(DataDependentOutputException):
            current.seen()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_steps_on_the_device_wait_for_nothing() -> None:
    model = model_of("cuda")
    scaler = gradscale.GradScaler("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    arrived: list[int] = []
    with gradscale.watch(model, scaler, every=1, activations=True) as watch:
        watch.on_measured(lambda step, rows: arrived.append(step))
        for step in range(20):
            if step == 5:
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            backward(model, scaler, "cuda")
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        torch.cuda.set_sync_debug_mode("default")
    assert arrived == list(range(20))


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_that_does_not_measure_walks_and_hooks_nothing(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradscale.watching import attaching

    walks: list[int] = []
    plain = attaching.walk
    monkeypatch.setattr(attaching, "walk", lambda roots: walks.append(1) or plain(roots))
    model = model_of(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscale.watch(model, every=4):
        for _ in range(9):
            model(torch.ones(3, 4, device=device)).sum().backward()
            optimizer.step()
    assert len(walks) == 5  # steps 0, 1, 2, 4 and 8


def test_callbacks_come_once_a_step_in_order_and_stop_when_told() -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls: list[tuple[int, int]] = []

    def note(step: int, rows: object) -> None:
        calls.append((step, watch.step))

    with gradscale.watch(model, every=2) as watch:
        watch.on_measured(note)
        for step in range(5):
            model(torch.ones(3, 4)).sum().backward()
            optimizer.step()
            if step == 2:
                watch.off_measured(note)
            if step == 3:
                watch.measure_next()
                watch.on_measured(note)
    assert calls == [(0, 0), (1, 1), (2, 2), (4, 4)]
