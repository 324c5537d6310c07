"""Where something compiled cannot have the plan, it is said once, and training goes on."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradscale import Adaptive, GradScaler
from gradscale.backward import BackwardGraph, ScalePlan, rescale, walk

compile: Any = torch.compile


class Trainer:
    def __init__(self, run: Callable[[Tensor], Tensor], model: nn.Module) -> None:
        self.run, self.model = run, model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.scaler = GradScaler("cpu", layerwise=True)

    def steps(self, count: int = 3) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            loss = self.run(torch.ones(4, 8)).float().square().mean()
            self.backward(self.scaler.scale(loss))
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def backward(self, loss: Tensor) -> None:
        loss.backward()


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer-wise scaler of another test would look into what is compiled here."""
    monkeypatch.setattr("gradscale.compiled.preparing._WISHES", weakref.WeakSet())


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).half()


def test_a_graph_compiled_before_the_scaler_is_named_once_and_nothing_is_claimed_of_it() -> None:
    network = model()
    run = compile(network, backend="aot_eager")
    run(torch.ones(4, 8).half())
    trainer = Trainer(lambda x: run(x.half()), network)
    with pytest.warns(UserWarning, match="compiled before this scaler was built") as seen:
        trainer.steps()
    assert sum("compiled before" in str(one.message) for one in seen) == 1
    report = str(trainer.scaler.layerwise.report())
    assert "is enough" not in report
    assert "4 parameters get their gradients inside compiled graphs that no plan looks" in report
    before = [p.clone() for p in network.parameters()]
    trainer.steps(1)
    assert not torch.equal(before[0], next(network.parameters()))


def test_what_is_compiled_anew_after_the_scaler_was_built_is_looked_into() -> None:
    network = model()
    run = compile(network, backend="aot_eager")
    run(torch.ones(4, 8).half())
    trainer = Trainer(lambda x: run(x.half()), network)
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* trains float16 weights")
        trainer.steps()
    assert "is enough" in str(trainer.scaler.layerwise.report())


def test_a_backend_of_the_users_own_around_aot_module_is_named() -> None:
    from functorch.compile import make_boxed_func
    from torch._functorch.aot_autograd import aot_module_simplified

    def own(gm: Any, inputs: Any) -> Any:
        return aot_module_simplified(gm, inputs, fw_compiler=lambda g, _: make_boxed_func(g))

    network = model()
    trainer = Trainer(lambda x: run(x.half()), network)
    run = compile(network, backend=own)
    with pytest.warns(UserWarning, match="by a backend that does not go through"):
        trainer.steps()
    assert "is enough" not in str(trainer.scaler.layerwise.report())


def test_a_backend_that_leaves_autograd_alone_needs_nothing() -> None:
    network = model()
    trainer = Trainer(lambda x: run(x.half()), network)
    run = compile(network, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* trains float16 weights")
        trainer.steps()
    assert "is enough" in str(trainer.scaler.layerwise.report())


def test_compiled_autograd_is_refused_in_words_and_trains_at_one_scale() -> None:
    network = model()
    trainer = Trainer(lambda x: network(x.half()), network)
    with (
        torch._dynamo.config.patch(compiled_autograd=True),
        pytest.warns(UserWarning, match="compiled autograd traces the whole backward pass"),
    ):
        trainer.steps(2)
    assert len(trainer.scaler.layerwise.tracks) == 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_pass_that_compiled_autograd_traces_stays_plain() -> None:
    network = model().float()

    def lifted(graph: BackwardGraph, measurements: Any) -> dict[int, int]:
        del measurements
        return {node: 3 for node in range(len(graph)) if node not in graph.fixed}

    scaler = GradScaler("cpu", layerwise=lifted)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    x = torch.randn(4, 8)

    def gradients(backward: Callable[[Tensor], Any]) -> list[Tensor]:
        optimizer.zero_grad()
        backward(scaler.scale(network(x).square().mean()))
        scaler.unscale_(optimizer)
        found = [p.grad.clone() for p in network.parameters()]
        scaler.step(optimizer)
        scaler.update()
        return found

    def traced(loss: Tensor) -> None:
        with torch._dynamo.config.patch(compiled_autograd=True):
            compile(lambda: loss.backward(), backend="aot_eager")()

    expected = [gradients(Tensor.backward) for _ in range(3)][-1]
    assert not scaler.layerwise.tracks.latest.plan.is_uniform
    for _ in range(2):
        for one, two in zip(gradients(traced), expected, strict=True):
            assert torch.equal(one, two)


class Sign(torch.autograd.Function):
    """Its gradient is no multiple of what arrives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        return grads[0].sign() * 1e-3


@pytest.mark.usefixtures("wish")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_what_is_not_linear_stays_at_the_loss_scale_inside_a_graph() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)

    def loss(x: Tensor) -> Tensor:
        return second(Sign.apply(first(x).tanh())).square().mean()

    def gradients(run: Callable[[Tensor], Tensor], seed: int | None) -> list[Tensor]:
        value = run(torch.ones(2, 4))
        if seed is not None:
            walked = walk(value)
            generator = torch.Generator().manual_seed(seed)
            rescale(walked, ScalePlan.random(walked.graph, generator))
        value.backward()
        found = [p.grad for p in (*first.parameters(), *second.parameters())]
        first.zero_grad(), second.zero_grad()
        return found

    run = compile(loss, backend="aot_eager")
    expected = gradients(loss, None)
    for seed in range(4):
        for one, two in zip(gradients(run, seed), expected, strict=True):
            assert torch.equal(one, two)


def test_adaptive_says_which_weights_inside_a_graph_it_cannot_read() -> None:
    def report(around: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> str:
        network = model()
        trainer = Trainer(lambda x: run(x.half()), network)
        trainer.scaler = GradScaler("cpu", layerwise=Adaptive(rule="product"))
        run = around(network)
        trainer.steps(2)
        return str(trainer.scaler.layerwise.report())

    assert "could not be read" not in report(lambda network: network)
    compiled = report(lambda network: compile(network, backend="aot_eager"))
    assert "the weight of" in compiled and "could not be read" in compiled
