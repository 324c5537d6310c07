"""Activations computed again, by checkpointing or by the compiler, leave a plan its bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from assertions import assert_same_gradients
from gradscale import GradScaler
from gradscale.backward import ScalePlan, rescale, walk

compile: Any = torch.compile
Run = Callable[[Tensor], Tensor]

pytestmark = [
    pytest.mark.usefixtures("wish"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


class Blocks(nn.Module):
    """Two blocks, each run through `around`, and a head."""

    def __init__(self, around: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2)
        )
        self.head = nn.Linear(8, 3)
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + self.around(block, x)
        return self.head(x).square().mean()


def made(around: Callable[[nn.Module, Tensor], Tensor]) -> Blocks:
    torch.manual_seed(0)
    return Blocks(around)


def plainly(block: nn.Module, x: Tensor) -> Tensor:
    return block(x)


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=False)


def reentrant(block: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=True)


def batch() -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)


def gradients(model: nn.Module, run: Run, seed: int | None) -> tuple[list[Tensor | None], int]:
    """The gradients under a random plan, and how many edges of it are inside compiled nodes."""
    loss, inside = run(batch()), 0
    if seed is not None:
        walked = walk(loss)
        inside = len(walked.graph.structure.inner_edges)
        rescale(walked, ScalePlan.random(walked.graph, torch.Generator().manual_seed(seed)))
    loss.backward()
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    return found, inside


def expected() -> list[Tensor | None]:
    model = made(plainly)
    return gradients(model, model, None)[0]


def whole(backend: str) -> tuple[nn.Module, Run]:
    model = made(recomputed)
    return model, compile(model, backend=backend)


def blocks(around: Callable[[nn.Module, Tensor], Tensor]) -> tuple[nn.Module, Run]:
    model = made(around)
    for block in model.blocks:
        block.compile(backend="aot_eager")
    return model, model


def test_checkpoints_inside_a_compiled_model_keep_the_bits() -> None:
    model, run = whole("aot_eager")
    for seed in range(3):
        found, inside = gradients(model, run, seed)
        assert inside > 8
        assert_same_gradients(found, expected())


def test_blocks_that_are_compiled_with_their_checkpoints_keep_the_bits() -> None:
    model = made(compile(recomputed, backend="aot_eager"))
    for seed in range(3):
        found, inside = gradients(model, model, seed)
        assert inside > 4
        assert_same_gradients(found, expected())


def test_checkpoints_around_compiled_blocks_keep_the_bits() -> None:
    model, run = blocks(recomputed)  # which torch runs uncompiled inside `checkpoint` up to 2.13
    for seed in range(3):
        assert_same_gradients(gradients(model, run, seed)[0], expected())


@pytest.mark.parametrize("around", [plainly, recomputed])
@pytest.mark.parametrize("budget", [0.0, 0.5, 1.0])
def test_what_the_compiler_computes_again_to_save_memory_keeps_the_bits(
    budget: float, around: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    model = made(around)
    with torch._functorch.config.patch(activation_memory_budget=budget):
        # Decompositions round otherwise than the eager run does, with a plan or without.
        run = compile(model, backend="aot_eager_decomp_partition")
        plain, _ = gradients(model, run, None)
        for seed in range(3):
            found, inside = gradients(model, run, seed)
            assert inside > 8
            assert_same_gradients(found, plain)


def trained(build: Callable[[], tuple[nn.Module, Run]]) -> tuple[list[str], list[Tensor], str]:
    """Warnings, weights and report of a few steps of layer-wise training."""
    model, run = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", layerwise=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = run(batch()).float()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    said = [str(one.message) for one in seen]
    return said, [p.detach() for p in model.parameters()], str(scaler.layerwise.report())


def test_reentrant_checkpoints_around_compiled_blocks_say_so_once_and_train_on() -> None:
    def eager() -> tuple[nn.Module, Run]:
        model = made(reentrant)
        return model, model

    _, weights, report = trained(eager)
    said, found, compiled_report = trained(lambda: blocks(reentrant))
    assert sum("reentrant checkpointing hides" in message for message in said) == 1
    assert all(torch.equal(one, two) for one, two in zip(found, weights, strict=True))
    assert compiled_report == report


@pytest.mark.parametrize("way", [whole, blocks])
def test_a_scaler_measures_and_plans_through_checkpoints_as_in_the_eager_run(way: Any) -> None:
    def eager() -> tuple[nn.Module, Run]:
        model = made(recomputed)
        return model, model

    _, weights, report = trained(eager)
    _, found, compiled_report = trained(
        lambda: way("aot_eager") if way is whole else way(recomputed)
    )
    assert compiled_report.splitlines()[0] == report.splitlines()[0]
    assert all(torch.equal(one, two) for one, two in zip(found, weights, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_inductor_recomputes_to_its_own_bits_under_every_plan(budget: float) -> None:
    model, run = whole("inductor")
    with torch._functorch.config.patch(activation_memory_budget=budget):
        plain = gradients(model, run, None)[0]
        for seed in range(3):
            found, inside = gradients(model, run, seed)
            assert inside > 8
            assert_same_gradients(found, plain)
