"""Small models that together use every kind of backward graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass
class Trial:
    """Parameters, and a function that runs the forward pass anew and returns its losses."""

    parameters: list[Tensor]
    losses: Callable[[], list[Tensor]]

    def gradients(self) -> list[Tensor | None]:
        """The parameters' gradients, taken out."""
        taken = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        return taken


Make = Callable[[torch.dtype, int], Trial]
ZOO: dict[str, Make] = {}


def zoo(make: Make) -> Make:
    ZOO[make.__name__] = make
    return make


def trial(model: nn.Module, loss: Callable[[], Tensor | list[Tensor]]) -> Trial:
    def losses() -> list[Tensor]:
        result = loss()
        return result if isinstance(result, list) else [result]

    return Trial(list(model.parameters()), losses)


@zoo
def mlp(dtype: torch.dtype, size: int) -> Trial:
    model = nn.Sequential(
        nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Dropout(0.0), nn.Linear(16, 4)
    ).to(dtype)
    x, y = torch.randn(size, 8, dtype=dtype), torch.randint(4, (size,))
    return trial(model, lambda: F.cross_entropy(model(x), y))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.two(F.relu(self.norm(self.one(x)))))


@zoo
def resnet(dtype: torch.dtype, size: int) -> Trial:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), Residual(4), nn.MaxPool2d(2), Residual(4), nn.AdaptiveAvgPool2d(1)
    ).to(dtype)
    x = torch.randn(size, 3, 10, 10, dtype=dtype)
    return trial(model, lambda: model(x).square().mean())


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1)
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        low = F.silu(self.down(x))
        high = self.up(F.silu(self.middle(low)) + low)
        return self.out(torch.cat([x, high], 1))


@zoo
def unet(dtype: torch.dtype, size: int) -> Trial:
    model = UNet().to(dtype)
    x, y = torch.randn(size, 2, 8, 8, dtype=dtype), torch.randn(size, 1, 8, 8, dtype=dtype)
    return trial(model, lambda: F.mse_loss(model(x), y))


class TiedTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.body(self.embed(tokens)) @ self.embed.weight.T


@zoo
def tied_transformer(dtype: torch.dtype, size: int) -> Trial:
    model, tokens = TiedTransformer().to(dtype), torch.randint(11, (size, 5))
    return trial(model, lambda: F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()))


@zoo
def lstm(dtype: torch.dtype, size: int) -> Trial:
    model = nn.LSTM(3, 5, num_layers=2, bidirectional=True).to(dtype)
    x = torch.randn(4, size, 3, dtype=dtype)
    return trial(model, lambda: model(x)[0].square().mean())


@zoo
def unrolled_lstm_cell(dtype: torch.dtype, size: int) -> Trial:
    cell = nn.LSTMCell(3, 4).to(dtype)
    x = torch.randn(6, size, 3, dtype=dtype)

    def loss() -> Tensor:
        h = c = torch.zeros(size, 4, dtype=dtype)
        for step in x:
            h, c = cell(step, (h, c))
        return h.sum() + c.square().sum()

    return trial(cell, loss)


@zoo
def attention(dtype: torch.dtype, size: int) -> Trial:
    model = nn.MultiheadAttention(8, 2, batch_first=True).to(dtype)
    x = torch.randn(size, 5, 8, dtype=dtype)
    return trial(model, lambda: sum(t.square().mean() for t in model(x, x, x)))


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        chosen = weights.argmax(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]) * weights[rows, i : i + 1])
        return out


@zoo
def routed_mixture(dtype: torch.dtype, size: int) -> Trial:
    model, x = Mixture().to(dtype), torch.randn(size + 3, 4, dtype=dtype)
    return trial(model, lambda: model(x).square().sum())


@zoo
def shared_three_times(dtype: torch.dtype, size: int) -> Trial:
    model, x = nn.Linear(4, 4).to(dtype), torch.randn(size, 4, dtype=dtype)
    return trial(model, lambda: (model(model(model(x).tanh()).tanh()) + x).square().mean())


class SumAndDifference(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(a)
        whole = torch.arange(3)
        ctx.mark_non_differentiable(whole)
        ctx.set_materialize_grads(False)
        return a + b, whole, a * a - b

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        plus, _, minus = grads
        (a,) = ctx.saved_tensors
        if minus is None:
            return plus, plus
        return plus + 2 * a * minus, plus - minus


@zoo
def custom_function(dtype: torch.dtype, size: int) -> Trial:
    a = torch.randn(size, 3, dtype=dtype, requires_grad=True)
    b = torch.randn(size, 3, dtype=dtype, requires_grad=True)

    def losses() -> list[Tensor]:
        plus, _, minus = SumAndDifference.apply(a.sin(), b * 3)
        unused, _, _ = SumAndDifference.apply(a, b.exp())
        return [(plus * minus).sum() + unused.square().sum()]

    return Trial([a, b], losses)


@zoo
def complex_numbers(dtype: torch.dtype, size: int) -> Trial:
    kind = torch.complex128 if dtype == torch.float64 else torch.complex64
    w = torch.randn(4, 4, dtype=kind, requires_grad=True)
    r = torch.randn(size, 4, dtype=dtype, requires_grad=True)
    return Trial([w, r], lambda: [torch.fft.fft(r.to(kind) @ w.conj() * 1j).abs().square().mean()])


@zoo
def sparse_embedding(dtype: torch.dtype, size: int) -> Trial:
    table = nn.Embedding(9, 4, sparse=True).to(dtype)
    head, tokens = nn.Linear(4, 2).to(dtype), torch.randint(9, (size, 3))
    bag = nn.EmbeddingBag(9, 4, mode="sum", sparse=True).to(dtype)
    both = nn.ModuleList([table, head, bag])
    return trial(both, lambda: head(table(tokens).sum(1) + bag(tokens)).square().mean())


@zoo
def frozen_and_unused(dtype: torch.dtype, size: int) -> Trial:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 1)).to(dtype)
    model[2].weight.requires_grad_(False)
    model.unused = nn.Linear(3, 3)
    x = torch.randn(size, 4, dtype=dtype)
    return trial(model, lambda: model[3](model[2](model[1](model[0](x)))).sum())


@zoo
def checkpointed(dtype: torch.dtype, size: int) -> Trial:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)
    head, x = nn.Linear(4, 2).to(dtype), torch.randn(size, 4, dtype=dtype)
    both = nn.ModuleList([model, head])
    return trial(both, lambda: head(checkpoint(model, x, use_reentrant=False)).square().mean())


@zoo
def compiled_blocks(dtype: torch.dtype, size: int) -> Trial:
    blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(2)]).to(dtype)
    fast = [torch.compile(block, backend="aot_eager") for block in blocks]
    x = torch.randn(size, 4, dtype=dtype)
    return trial(blocks, lambda: fast[1](fast[0](x) + x).square().mean())


@zoo
def in_place_and_views(dtype: torch.dtype, size: int) -> Trial:
    w = torch.randn(4, 4, dtype=dtype, requires_grad=True)
    x = torch.randn(size, 4, dtype=dtype)

    def losses() -> list[Tensor]:
        h = x @ w
        h[:, 1:3].mul_(2.0)
        left, right = h.chunk(2, dim=1)
        h = torch.cat([left.exp(), right], 1)
        h.add_(w[0])
        h.view(-1)[::2].sigmoid_()
        return [h.t().reshape(-1).unfold(0, 2, 1).expand(2, -1, -1).sum()]

    return Trial([w], losses)


@zoo
def two_losses(dtype: torch.dtype, size: int) -> Trial:
    trunk, one, two = (nn.Linear(4, 4).to(dtype) for _ in range(3))
    x = torch.randn(size, 4, dtype=dtype)

    def losses() -> list[Tensor]:
        h = trunk(x).tanh()
        return [one(h).square().mean(), two(h).abs().sum()]

    return Trial([p for m in (trunk, one, two) for p in m.parameters()], losses)


@zoo
def loss_of_a_loss(dtype: torch.dtype, size: int) -> Trial:
    model, x = nn.Linear(4, 4).to(dtype), torch.randn(size, 4, dtype=dtype)

    def losses() -> list[Tensor]:
        first = model(x).square().mean()
        return [first, (first + 1).log()]

    return Trial(list(model.parameters()), losses)


@zoo
def gradient_penalty(dtype: torch.dtype, size: int) -> Trial:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
    x = torch.randn(size, 4, dtype=dtype, requires_grad=True)

    def losses() -> list[Tensor]:
        out = model(x).sum()
        (slope,) = torch.autograd.grad(out, x, create_graph=True)
        return [out + (slope.norm(dim=1) - 1).square().mean()]

    return Trial([*model.parameters(), x], losses)
