"""A backward pass after the block has the bits of one inside it; other graphs keep theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradscale
from assertions import assert_same_bits
from gradscale.emulation import emulate, emulating, later_passes, suspended
from gradscale.truth import measure_lost

X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(3))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Recomputed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.part = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_() if x.is_leaf else x
        return checkpoint(self.part, x, use_reentrant=self.reentrant)


NETS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)),
    "convolution": lambda: nn.Sequential(nn.Conv1d(6, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3)),
    "attention": Attention,
    "recurrent": Recurrent,
    "recomputed": lambda: Recomputed(reentrant=False),
    "recomputed, reentrant": lambda: Recomputed(reentrant=True),
}


def gradients(net: nn.Module, run: Callable[[Tensor], object], *, after: bool) -> list[Tensor]:
    net.zero_grad()
    with emulate("fp16", "e5m2"):
        loss = net(X.clone()).square().mean() * 2.0**-12
        if not after:
            run(loss)
    if after:
        run(loss)
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", NETS)
def test_after_the_block_a_pass_has_the_bits_of_one_inside(name: str) -> None:
    net = NETS[name]()
    inside = gradients(net, Tensor.backward, after=False)
    after = gradients(net, Tensor.backward, after=True)
    net.zero_grad()
    net(X.clone()).square().mean().mul(2.0**-12).backward()
    exact = [p.grad for p in net.parameters() if p.grad is not None]
    for one, other in zip(inside, after, strict=True):
        assert_same_bits(one, other)
    assert not all(map(torch.equal, after, exact))


def test_so_has_torch_autograd_grad() -> None:
    net = NETS["linear"]()

    def run(loss: Tensor) -> None:
        found = torch.autograd.grad(loss, list(net.parameters()))
        for parameter, grad in zip(net.parameters(), found, strict=True):
            parameter.grad = grad

    for one, other in zip(*(gradients(net, run, after=a) for a in (False, True)), strict=True):
        assert_same_bits(one, other)


def test_what_is_scaled_outside_is_rounded_at_its_scale() -> None:
    net, scaler = NETS["linear"](), gradscale.GradScaler("cpu", init_scale=2.0**12)
    gradients(net, lambda loss: scaler.scale(loss).backward(), after=True)
    scaled = net[0].weight.grad.clone()
    plain, *_ = gradients(net, Tensor.backward, after=True)
    assert (plain == 0).all() and (scaled != 0).double().mean() > 0.9


def test_only_the_nodes_that_were_built_inside_round() -> None:
    body, head = nn.Linear(8, 8), nn.Linear(8, 8)
    with emulate("fp16", "e5m2"):
        features = body(X)
    features.retain_grad()
    (head(features).square().mean() * 2.0**-12).backward()
    upstream, weight = features.grad, body.weight.grad
    kept = features.detach().requires_grad_()
    (head(kept).square().mean() * 2.0**-12).backward()
    assert_same_bits(upstream, kept.grad)  # the head is exact
    body.zero_grad()
    with emulate("fp16", "e5m2"):
        body(X).backward(kept.grad)
    assert_same_bits(weight, body.weight.grad)


def test_a_graph_of_gradients_belongs_to_the_block_of_its_graph() -> None:
    net = NETS["linear"]()

    def penalty(loss: Tensor) -> None:
        found = torch.autograd.grad(loss * 2.0**12, list(net.parameters()), create_graph=True)
        sum(grad.square().sum() for grad in found).backward()

    for one, other in zip(*(gradients(net, penalty, after=a) for a in (False, True)), strict=True):
        assert_same_bits(one, other)


def test_two_blocks_with_their_own_formats_are_told_apart() -> None:
    net, found = NETS["linear"](), []
    losses = []
    for backward in ("e4m3", "fp16"):
        with emulate("fp16", backward):
            losses.append(net(X).square().mean() * 2.0**-6)
    for loss, backward in zip(losses, ("e4m3", "fp16"), strict=True):
        net.zero_grad()
        loss.backward()
        found.append(net[0].weight.grad.clone())
        net.zero_grad()
        with emulate("fp16", backward):
            (net(X).square().mean() * 2.0**-6).backward()
        assert_same_bits(found[-1], net[0].weight.grad)
    assert not torch.equal(*found)


def test_passes_of_other_graphs_and_threads_are_left_alone() -> None:
    net = NETS["linear"]()
    net(X).square().mean().backward()
    exact = net[0].weight.grad.clone()
    with emulate("fp16", "e5m2"):
        kept = net(X).square().mean()

    def elsewhere() -> None:
        net.zero_grad()
        net(X).square().mean().backward()

    for run in (elsewhere, lambda: _in_a_thread(elsewhere)):
        run()
        assert_same_bits(exact, net[0].weight.grad)
    with suspended():
        assert emulating(kept) is None
    assert emulating(kept).backward.name == "e5m2"


def _in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_blocks_whose_graphs_nobody_runs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later_passes, "PASSES_WITHOUT", 3)
    later_passes._HERE.ended.clear()
    net = NETS["linear"]()
    with emulate():
        net(X)
    for _ in range(4):
        assert len(later_passes._HERE.ended) == 1
        net(X).sum().backward()
    assert len(later_passes._HERE.ended) == 0


def test_an_error_in_the_pass_leaves_no_emulation_behind() -> None:
    net = NETS["linear"]()
    with emulate("fp16", "e5m2"):
        loss = net(X).square().mean()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    assert emulating() is None
    net.zero_grad()
    net(X).square().mean().backward()
    exact = net[0].weight.grad.clone()
    net.zero_grad()
    net(X).square().mean().backward()
    assert_same_bits(exact, net[0].weight.grad)


def test_wherever_emulate_stands_the_same_is_lost_and_the_same_is_seen() -> None:
    net = NETS["linear"]()

    def loss(model: nn.Module) -> Tensor:
        return model(X).square().mean() * 2.0**-10

    def emulated_loss(model: nn.Module) -> Tensor:
        with emulate("fp16", "e5m2"):
            return loss(model)

    inside = measure_lost(net, emulated_loss)
    with emulate("fp16", "e5m2"):
        around = measure_lost(net, loss)
    assert inside.format == around.format == "e5m2"
    assert inside.flushed == around.flushed > 0 and inside.nonzero == around.nonzero
    with gradscale.watch(net) as watching:
        emulated_loss(net).backward()
    assert {row.format for row in watching.report().of("module")} == {"e5m2"}
