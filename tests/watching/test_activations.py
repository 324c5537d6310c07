"""What modules return, counted once on measuring steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradscale

DYNAMO = "ignore:The .grad attribute of a Tensor that is not a leaf"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.act, self.two = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.act(self.one(x)))


class Model(nn.Module):
    def __init__(self, how: str = "plain") -> None:
        super().__init__()
        self.block, self.head, self.how = Block(), nn.Sequential(nn.Linear(4, 2)), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "plain":
            return self.head(self.block(x))
        return self.head(checkpoint(self.block, x, use_reentrant=self.how == "reentrant"))


def run(model: nn.Module, steps: int = 1, **settings: Any) -> gradscale.watching.Watch:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with gradscale.watch(model, activations=True, **settings) as watch:
        for _ in range(steps):
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return watch


def outputs(model: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: found.update({name: output.detach().clone()})

    handles = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    model(torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("how", ["plain", "non-reentrant", "reentrant"])
def test_every_module_has_a_row_and_recomputing_counts_nothing_twice(how: str) -> None:
    model = Model(how)
    true = outputs(model)
    rows = run(model).report("fp16").of(kind="activation")
    # `head` and the model only return what `head.0` returned.
    expected = ["block.one", "block.act", "block.two", "block", "head.0"]
    assert {row.name for row in rows} == {f"{name} (output)" for name in expected}
    if how == "plain":
        assert [row.name for row in rows.in_order] == [f"{name} (output)" for name in expected]
    for row in rows:
        value = true[row.name.removesuffix(" (output)")]
        assert (row.numel, row.exponent, row.method) == (value.numel(), 0, "counted")
        assert row.counts.amax == float(value.abs().max())
        assert row.counts.zero == int((value == 0).sum())


@pytest.mark.parametrize("how", ["plain", "non-reentrant", "reentrant"])
def test_gradients_inside_a_checkpoint_have_rows_as_outside(how: str) -> None:
    model = Model(how)
    rows = run(model).report("fp16")
    counts = {(row.kind, row.name): row.counts for row in rows if row.kind != "activation"}
    model.how = "plain"
    plain = run(model).report("fp16")
    assert counts == {(r.kind, r.name): r.counts for r in plain if r.kind != "activation"}
    assert [row.name for row in rows.of(kind="module").in_order] == [
        "head.0", "block.two", "block.one",
    ]  # fmt: skip


def test_only_measuring_steps_and_passes_with_gradients_count() -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    steps: list[int] = []
    with gradscale.watch(model, activations=True, every=2) as watch:
        watch.on_measured(lambda step, rows: steps.append(step))
        for _ in range(4):
            with torch.no_grad():
                model(torch.randn(7, 4))  # a validation
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    (row,) = watch.report().of(kind="activation", name="block.one (output)")
    assert steps == [0, 1, 2] and row.numel == 3 * 12


def test_without_asking_no_module_is_hooked() -> None:
    model = Model()
    with gradscale.watch(model):
        assert not any(module._forward_hooks for module in model.modules())
    with gradscale.watch(model, activations=True):
        assert all(module._forward_hooks for module in model.modules())


@pytest.mark.filterwarnings(DYNAMO)
@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_in_compiled_blocks_are_seen_and_activations_from_outside(
    inplace: bool,
) -> None:
    eager = {row.name for row in run(Model()).report("fp16") if row.kind != "activation"}
    model = Model()
    if inplace:
        model.block.compile(backend="aot_eager")
    else:
        model.block = torch.compile(model.block, backend="aot_eager")  # type: ignore[assignment]
    report = run(model, steps=3, every=1).report("fp16")
    assert {row.name for row in report if row.kind != "activation"} == eager
    activations = {row.name for row in report.of(kind="activation")}
    assert activations == ({"head.0 (output)"} | (set() if inplace else {"block (output)"}))
    assert report.of(name="block.one.weight")[0].numel == 3 * 16


@pytest.mark.filterwarnings(DYNAMO)
def test_a_compiled_block_under_autocast_is_known_to_have_worked_in_half_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(torch.compile(nn.Linear(32, 32), backend="aot_eager"), nn.Linear(32, 4))
    with gradscale.watch(model) as watch:
        with torch.autocast("cpu", torch.float16):
            out = model(torch.randn(8, 32))
        (out.float().square().mean() * 2.0**-10).backward()
    (row,) = watch.report().of(name="0.weight")
    assert (row.format, row.method) == ("fp16", "extrapolated")


def test_the_first_output_and_the_first_gradient_that_are_not_finite_are_named() -> None:
    class Spoiling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 0.0

    model = nn.Sequential(nn.Linear(4, 4), Spoiling(), nn.Linear(4, 4), nn.Linear(4, 2))
    report = run(model).report("fp16")
    forward, backward = report.first_nonfinite_forward, report.first_nonfinite
    assert forward is not None and forward.name == "1 (output)"
    assert backward is not None and backward.name == "3"
    assert "First output that was not finite: 1 (output)." in str(report)


def test_a_gradient_that_breaks_in_a_layer_is_named_there() -> None:
    class Breaking(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * float("inf")

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return Breaking.apply(self.linear(x))

    model = nn.Sequential(nn.Linear(4, 4), Layer(), nn.Linear(4, 4))
    seen: list[list[str]] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscale.watch(model, every=1) as watch:
        watch.on_measured(
            lambda step, rows: seen.append([row.name for row in rows if row.counts.nonfinite])
        )
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
    first = watch.report().first_nonfinite
    assert first is not None and first.name == "1.linear" == seen[0][0]
    assert "2.weight" not in seen[0] and "0.weight" in seen[0]
