"""Watching changes nothing: the same bits with and without it, and nothing of it stays behind."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizers

import gradscale
from assertions import assert_same_gradients
from gradscale.backward import measure_tally, measure_waiting
from gradscale.emulation import emulate
from zoo import ZOO, Trial

pytestmark = [
    # Torch's own: dynamo looks at `.grad` of what it traces.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


def holder(trial: Trial) -> nn.Module:
    """The parameters as a module; a plain leaf tensor is put in as it is."""
    module = nn.Module()
    for number, parameter in enumerate(trial.parameters):
        module._parameters[f"p{number}"] = parameter  # type: ignore[assignment]
    return module


def gradients(trial: Trial, passes: int = 1) -> list[Tensor | None]:
    for _ in range(passes):
        torch.autograd.backward(trial.losses())
    return trial.gradients()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("name", ZOO)
def test_gradients_keep_their_bits(name: str, passes: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    trial = ZOO[name](dtype, 3)
    expected = gradients(trial, passes)
    with gradscale.watch(holder(trial), every=1) as watch:
        found = gradients(trial, passes)
    assert_same_gradients(found, expected)
    report = watch.report()
    assert report.steps == (0,)
    assert {row.name for row in report.of(kind="parameter")} == {
        f"p{number}" for number, grad in enumerate(expected) if grad is not None
    }
    assert_same_gradients(gradients(trial, passes), expected)  # and afterwards


@pytest.mark.parametrize("layout", ["stolen", "cloned"])
def test_a_gradient_is_taken_over_and_not_copied_as_without_watching(layout: str) -> None:
    """What `.grad` is made of does not depend on whether anybody looks."""
    made: list[int] = []

    class Made(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, w: Tensor) -> Tensor:
            return w.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            result = torch.full((4, 3), 2.0) if layout == "stolen" else torch.full((3, 4), 2.0).T
            made.append(result.data_ptr())
            return result

    model = nn.Linear(3, 4, bias=False)
    same: list[tuple[bool, tuple[int, ...]]] = []
    for watched in (False, True):
        model.zero_grad()
        with gradscale.watch(model) if watched else torch.enable_grad():
            Made.apply(model.weight).sum().backward()
        grad = model.weight.grad
        assert grad is not None
        same.append((grad.data_ptr() == made[-1], grad.stride()))
    assert same[0] == same[1]


def step(model: nn.Module, optimizer: Any, scaler: Any, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss = model(torch.randn(6, 4)).float().square().mean()
    if scaler is None:
        loss.backward()
        optimizer.step()
        return
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


SCALERS = {
    "none": lambda: None,
    "torch": lambda: torch.amp.GradScaler("cpu", growth_interval=2),
    "ours": lambda: gradscale.GradScaler("cpu", growth_interval=2),
    "layerwise": lambda: gradscale.GradScaler("cpu", layerwise=True),
}


@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize("scaling", SCALERS)
def test_training_under_autocast_keeps_its_bits(scaling: str, emulated: bool) -> None:
    ends: list[list[Tensor]] = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scaler = SCALERS[scaling]()
        watch = gradscale.watch(model, scaler, every=2, activations=True)
        with emulate(torch.float16, "e5m2") if emulated else torch.enable_grad():
            with watch if watched else torch.enable_grad():
                for seed in range(8):
                    step(model, optimizer, scaler, seed)
        ends.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*ends, strict=True))
    assert watch.report().steps == (0, 1, 2, 4, 6)


def hooks_of(model: nn.Module) -> list[int]:
    return [
        len(hooks)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    ]


def explode(grad: Tensor) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("where", ["forward", "backward", "between"])
def test_nothing_is_left_after_an_exception(where: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    before = torch.autograd.backward, len(optimizers._global_optimizer_post_hooks)

    watch = gradscale.watch(model, activations=True)
    with pytest.raises(ZeroDivisionError), watch:
        hidden = model[0](torch.ones(2, 3))
        if where == "forward":
            raise ZeroDivisionError
        if where == "backward":
            hidden.register_hook(explode)
        model[1](hidden).sum().backward()
        raise ZeroDivisionError
    assert (torch.autograd.backward, len(optimizers._global_optimizer_post_hooks)) == before
    assert not any(hooks_of(model))
    count = len(watch.report())
    model.zero_grad()
    model(torch.ones(2, 3)).sum().backward()
    assert len(watch.report()) == count  # a hook that had stayed would count on


def test_a_graph_that_lives_on_has_no_hook_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    loss = model(torch.ones(2, 3)).sum()
    read: list[Tensor] = []
    monkeypatch.setattr(measure_waiting, "SMALL", 0)  # each at once, as it is met
    plain = measure_tally.count_into
    monkeypatch.setattr(
        measure_tally, "count_into", lambda row, t, **k: (read.append(t), plain(row, t, **k))
    )
    with gradscale.watch(model):
        loss.backward(retain_graph=True)
        once = len(read)
    assert once > 0
    loss.backward(retain_graph=True)
    with pytest.raises(ZeroDivisionError), gradscale.watch(model):
        handle = model[0].weight.register_hook(explode)
        loss.backward(retain_graph=True)
    handle.remove()
    seen = len(read)
    loss.backward()
    assert len(read) == seen < 2 * once


def test_a_pass_that_fails_is_not_reported_and_the_next_one_is() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscale.watch(model, every=1) as watch:
        with pytest.raises(RuntimeError, match="only for scalar outputs"):
            model(torch.ones(2, 3)).backward()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    report = watch.report()
    assert report.steps == (0,)
    assert [row.numel for row in report.of(kind="parameter").in_order] == [1, 3]


def test_watching_keeps_no_graph_and_no_model_alive() -> None:
    model = nn.Linear(3, 1)
    with gradscale.watch(model, activations=True) as watch:
        hidden = model(torch.ones(2, 3)).sin()
        loss = hidden.sum()
        loss.backward()
        alive = weakref.ref(hidden), weakref.ref(loss)
        del hidden, loss
        gc.collect()
        assert [ref() for ref in alive] == [None, None]
    model_alive = weakref.ref(model)
    del model, watch
    gc.collect()
    assert model_alive() is None
