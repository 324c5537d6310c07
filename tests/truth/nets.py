"""Networks with and without gradients that are zero up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(NamedTuple):
    model: nn.Module
    loss: Callable[[Any], Tensor]
    zeros: dict[str, float]
    """For a parameter the share of its elements whose true gradient is zero; 0 if not named."""


class FusedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, time, width = x.shape
        q, k, v = self.qkv(x).view(n, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(n, time, width))


class SeparateAttention(nn.Module):
    """Written out by hand, with a projection each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-1, -2)
        return (scores / x.shape[-1] ** 0.5).softmax(-1) @ self.v(x)


class AddedBias(nn.Module):
    """A bias that is a parameter of its own, added by broadcasting."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, channels, 3, bias=False)
        self.shift = nn.Parameter(torch.zeros(channels))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x) + self.shift.view(1, -1, 1, 1))


def cubes(out: Any) -> Tensor:
    """A loss whose gradient is different at every element."""
    out = out[0] if isinstance(out, tuple) else out
    return out.pow(3).mean()


def net(model: nn.Module, *inputs: Tensor, **zeros: float) -> Net:
    names = {name.replace("__", "."): share for name, share in zeros.items()}
    return Net(model, lambda m: cubes(m(*inputs)), names)


def sequences() -> Tensor:
    return torch.randn(8, 12, 16)


def images() -> Tensor:
    return torch.randn(8, 2, 12, 12) + 1


def attention() -> Net:
    x = sequences()
    model = nn.MultiheadAttention(16, 2, batch_first=True)
    return net(model, x, x, x, in_proj_bias=1 / 3)


def cross_attention() -> Net:
    x, memory = sequences(), torch.randn(8, 7, 16)
    model = nn.MultiheadAttention(16, 2, batch_first=True)
    return net(model, x, memory, memory, in_proj_bias=1 / 3)


def attention_with_other_keys() -> Net:
    x, keys = sequences(), torch.randn(8, 7, 5)
    model = nn.MultiheadAttention(16, 2, batch_first=True, kdim=5, vdim=5)
    return net(model, x, keys, keys, in_proj_bias=1 / 3)


def fused_attention() -> Net:
    return net(FusedAttention(16, 2), sequences(), qkv__bias=1 / 3)


def separate_attention() -> Net:
    return net(SeparateAttention(16), sequences(), k__bias=1.0)


def encoder_layer() -> Net:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    return net(layer, sequences(), self_attn__in_proj_bias=1 / 3)


def conv_batchnorm() -> Net:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 3))
    return net(model, images(), **{"0__bias": 1.0})


def linear_batchnorm() -> Net:
    model = nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.GELU(), nn.Linear(24, 4))
    return net(model, torch.randn(32, 16), **{"0__bias": 1.0})


def conv_instancenorm() -> Net:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.GELU())
    return net(model, images(), **{"0__bias": 1.0})


def bias_added_before_batchnorm() -> Net:
    return net(AddedBias(6), images(), shift=1.0)


def linear_layernorm() -> Net:
    model = nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 4))
    return net(model, torch.randn(32, 16))


def conv_groupnorm() -> Net:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.GELU())
    return net(model, images())


def plain_perceptron() -> Net:
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 4))
    return net(model, torch.randn(512, 16))


def recurrent() -> Net:
    return net(nn.LSTM(4, 6, 2), torch.randn(7, 5, 4))


def embedding() -> Net:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 3))
    return Net(model, lambda m: cubes(m(torch.arange(12).remainder(7))), {})


def depthwise_and_transposed() -> Net:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.GELU(), nn.ConvTranspose2d(4, 2, 4))
    return net(model, images())


CANCELLING = (
    attention, cross_attention, attention_with_other_keys, fused_attention, separate_attention,
    encoder_layer, conv_batchnorm, linear_batchnorm, conv_instancenorm,
    bias_added_before_batchnorm,
)  # fmt: skip
ORDINARY = (
    linear_layernorm, conv_groupnorm, plain_perceptron, recurrent, embedding,
    depthwise_and_transposed,
)  # fmt: skip
