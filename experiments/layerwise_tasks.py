"""The six small tasks of the layer-wise table: a network, its batches and its loss each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscale.recipes.batches import generator
from gradscale.recipes.denoise import Denoise, UNet
from gradscale.recipes.digits import Digits
from gradscale.recipes.networks import residual_classifier

Batch = tuple[Tensor, Tensor]
SYMBOLS, TIME = 32, 16


@dataclass(frozen=True)
class Task:
    """Everything about one row of the table.

    Attributes:
        about: the network and its data in a few words.
        model: a fresh network; seeded by the caller.
        batch: of a seed and a step.
        loss: of a model and a batch, in float32.
        lr: of Adam.
        steps: of one training run.
        eps: of Adam.
    """

    about: str
    model: Callable[[], nn.Module]
    batch: Callable[[int, int], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    lr: float
    steps: int
    eps: float = 1e-8

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Adam, of all parameters."""
        return torch.optim.Adam(model.parameters(), lr=self.lr, eps=self.eps)


class Recurrence(nn.Module):
    """A tanh recurrence `h = tanh(W h + V x)` that must remember a symbol seen before step one."""

    def __init__(self, width: int = 32, inputs: int = 4, classes: int = 8) -> None:
        super().__init__()
        self.enter = nn.Linear(classes, width)
        self.input = nn.Linear(inputs, width, bias=False)
        self.again = nn.Linear(width, width)
        self.leave = nn.Linear(width, classes)
        nn.init.orthogonal_(self.again.weight)

    def forward(self, symbol: Tensor, noise: Tensor) -> Tensor:
        """Logits of the symbol, one-hot `(n, classes)`, after noise `(n, time, inputs)`."""
        state = torch.tanh(self.enter(symbol))
        for term in self.input(noise).unbind(1):
            state = torch.tanh(self.again(state) + term)
        return self.leave(state)


def recurrence_batch(seed: int, step: int) -> Batch:
    g = generator(seed, step)
    symbols = torch.randint(8, (16,), generator=g)
    return 0.1 * torch.randn(16, 200, 4, generator=g), symbols


def recurrence_loss(model: nn.Module, batch: Batch) -> Tensor:
    noise, symbols = batch
    one_hot = F.one_hot(symbols, 8).float()
    return F.cross_entropy(model(one_hot, noise).float(), symbols)


class Block(nn.Module):
    """Self-attention and a two-layer perceptron; normalised before or after each residual sum."""

    def __init__(self, width: int, heads: int, *, post_norm: bool) -> None:
        super().__init__()
        self.heads, self.post_norm = heads, post_norm
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def attention(self, x: Tensor) -> Tensor:
        """Causal, `(n, time, width)` to the same."""
        n, time, width = x.shape
        q, k, v = self.qkv(x).view(n, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(n, time, width))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, time, width)` to the same."""
        if self.post_norm:
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.down(F.gelu(self.up(x))))
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A causal language model over `SYMBOLS` symbols."""

    def __init__(self, depth: int, width: int = 32, *, post_norm: bool) -> None:
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, width)
        self.places = nn.Embedding(TIME, width)
        blocks = (Block(width, 2, post_norm=post_norm) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.Identity() if post_norm else nn.LayerNorm(width)
        self.head = nn.Linear(width, SYMBOLS)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, text: Tensor) -> Tensor:
        """Logits of each next symbol, `(n, time, SYMBOLS)`."""
        x = self.symbols(text) + self.places(torch.arange(text.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def markov_batch(seed: int, step: int) -> Batch:
    """Chains in which each symbol has four equally likely successors: the best loss is ln 4."""
    successors = torch.randint(SYMBOLS, (SYMBOLS, 4), generator=generator(12, 0))
    g = generator(seed, step)
    text = torch.randint(SYMBOLS, (16, 1), generator=g)
    for _ in range(TIME):
        choice = torch.randint(4, (16,), generator=g)
        text = torch.cat([text, successors[text[:, -1], choice].unsqueeze(1)], dim=1)
    return text[:, :-1], text[:, 1:]


def next_symbol_loss(model: nn.Module, batch: Batch) -> Tensor:
    text, after = batch
    return F.cross_entropy(model(text).float().flatten(0, 1), after.flatten())


class Deep(nn.Module):
    """Linear layers and GELU with torch's own initialisation and nothing else."""

    def __init__(self, depth: int = 24, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(width, width), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of `(n, 1, 8, 8)`."""
        return self.layers(images.flatten(1))


_LOADED: dict[str, tuple[Tensor, ...]] = {}


def digits_batch(seed: int, step: int) -> Batch:
    if "digits" not in _LOADED:
        _LOADED["digits"] = tuple(Digits().load().train)
    images, labels = _LOADED["digits"]
    index = torch.randint(len(images), (32,), generator=generator(seed, step))
    return images[index], labels[index]


def class_loss(model: nn.Module, batch: Batch) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images).float(), labels)


def denoise_batch(seed: int, step: int) -> Batch:
    if "denoise" not in _LOADED:
        _LOADED["denoise"] = tuple(Denoise().load().train)
    clean, noise = Denoise().batch(_LOADED["denoise"], seed, step, 8)
    return clean, noise


TASKS = {
    "recurrence": Task(
        "tanh recurrence, 200 steps, width 32, loss at the last step",
        Recurrence, recurrence_batch, recurrence_loss, lr=1e-3, steps=24,
    ),
    "post-norm transformer": Task(
        "32 post-norm layers, width 32, Markov text, early in training",
        lambda: Transformer(32, post_norm=True), markov_batch, next_symbol_loss, lr=1e-3, steps=24,
    ),
    "dense prediction": Task(
        "U-Net, denoising, mean over 24,576 values",
        lambda: UNet(8), denoise_batch, lambda m, b: Denoise().loss(m, b), lr=3e-3, steps=40,
    ),
    "deep, no normalisation": Task(
        "24 linear layers with GELU, width 64, torch's initialisation, digits, Adam with eps 1e-15",
        # With Adam's usual eps float32 itself stays at chance: it dwarfs the first gradients.
        Deep, digits_batch, class_loss, lr=1e-3, steps=300, eps=1e-15,
    ),
    "ResNet": Task(
        "residual network with batch normalisation, 3 blocks, digits",
        lambda: residual_classifier(1, (16, 32, 32), 10), digits_batch, class_loss, 3e-3, 60,
    ),
    "pre-norm transformer": Task(
        "6 pre-norm layers, width 32, Markov text",
        lambda: Transformer(6, post_norm=False), markov_batch, next_symbol_loss, lr=3e-3, steps=60,
    ),
}  # fmt: skip
