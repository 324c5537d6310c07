"""Whole models: under autocast with a scaler, and against the machine's own float16 kernels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradscale.emulation import emulate
from gradscale.formats import FloatFormat


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head((x + self.block(x)).mean((2, 3)))


class Gpt(nn.Module):
    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.embedding = nn.Embedding(16, 24)
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(2))
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)
        self.mlp = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))

    def block(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (3, 8)).transpose(1, 2)
            for part in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)
        return F.linear(x, self.embedding.weight).flatten(0, 1)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(16, 12), nn.LSTM(12, 16, 2, batch_first=True)
        self.head = nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0]).flatten(0, 1)


def task(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    if name == "residual":
        labels = torch.arange(16) % 4
        return Residual(), torch.randn(16, 3, 8, 8) + labels[:, None, None, None], labels
    tokens = torch.randint(16, (4, 10))
    models = {"gpt": Gpt, "checkpointed": lambda: Gpt(checkpointed=True), "lstm": Lstm}
    return models[name](), tokens, ((tokens * 3 + 1) % 16).flatten()


def losses(name: str, backward: str, steps: int = 25) -> list[float]:
    model, x, y = task(name)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    found: list[float] = []
    for _ in range(steps):
        optimizer.zero_grad()
        with emulate("fp16", backward):
            with torch.autocast("cpu", torch.float16):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        found.append(loss.item())
    assert scaler.get_scale() == 2.0**10
    return found


@pytest.mark.parametrize("backward", ["fp16", "e5m2"])
@pytest.mark.parametrize("name", ["residual", "gpt", "checkpointed", "lstm"])
def test_a_model_trains_under_autocast_with_a_scaler(name: str, backward: str) -> None:
    found = losses(name, backward)
    assert found[-1] < 0.6 * found[0]


@pytest.mark.parametrize("backward", ["fp16", "e5m2"])
def test_checkpointing_changes_no_bit(backward: str) -> None:
    assert losses("gpt", backward, 5) == losses("checkpointed", backward, 5)


def gradients(name: str, *, precision: str) -> Tensor:
    model, x, y = task(name)
    with emulate() if precision == "emulated" else torch.enable_grad():
        with torch.autocast("cpu", torch.float16, enabled=precision != "single"):
            loss = F.cross_entropy(model(x).float(), y)
        (loss * 2.0**10).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]) / 2.0**10


@pytest.mark.parametrize("name", ["residual", "gpt"])
def test_gradients_err_as_those_of_the_native_float16_kernels_do(name: str) -> None:
    single, native, emulated = (
        gradients(name, precision=precision) for precision in ("single", "native", "emulated")
    )
    size = single.norm()
    own, other = (emulated - single).norm() / size, (native - single).norm() / size
    assert 0 < own < 1.5 * other
    assert (emulated - native).norm() / size < 2 * other


@pytest.mark.parametrize("shapes", [((32, 48), (48, 16)), ((64, 300), (300, 8))])
def test_products_agree_with_the_native_float16_kernel_within_rounding(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    a, b = (torch.randn(shape).half() for shape in shapes)
    native = torch.mm(a, b).float()
    with emulate():
        found = torch.mm(a, b).float()
    exact = (a.double() @ b.double()).float()
    step = (exact.abs() * 2.0**-11).clamp(min=2.0**-25)
    assert ((found - exact).abs() <= step * 1.01 + 1e-5).all()
    assert (found - native).abs().max() <= 4 * (native - exact).abs().max() + step.max()
    assert torch.equal(found, FloatFormat.of("fp16").round(a.float() @ b.float()))


def test_convolution_agrees_with_the_native_float16_kernel_within_rounding() -> None:
    x, w = torch.randn(2, 3, 8, 8).half(), torch.randn(4, 3, 3, 3).half()
    native = F.conv2d(x, w).float()
    with emulate():
        found = F.conv2d(x, w).float()
    torch.testing.assert_close(found, native, rtol=2.0**-10, atol=2.0**-7)


def test_a_whole_float16_model_runs_without_autocast() -> None:
    for name in ("gpt", "lstm"):
        model, x, y = task(name)
        with emulate("fp16", "e5m2"):
            F.cross_entropy(model.half()(x).float(), y).mul(1024).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_transformer_layers_in_evaluation_round_their_products() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        plain = layer(x)
        with emulate("e4m3", "e5m2"):
            found = layer(x)
        with emulate("fp16"):
            close = layer(x)
    assert (found - plain).abs().max() > 1e-3
    torch.testing.assert_close(close, plain, rtol=1e-2, atol=1e-2)
