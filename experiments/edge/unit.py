"""Networks written with unit scaling (Blake et al. 2023, arXiv 2303.11257), which needs no scale.

The package `unit-scaling` divides every product and every loss by what makes weights, activations
and gradients of size 1. It is another parametrization: its optimizer divides rates by the root of
the fan-in, and its rates are not those of the network that it stands for.
"""

from __future__ import annotations

import torch
import unit_scaling as uu
import unit_scaling.functional as U
from torch import Tensor, nn
from unit_scaling.optim import lr_scale_func_adam, scaled_parameters


def plain(inputs: int, width: int, depth: int, outputs: int) -> nn.Sequential:
    """`depth` linear layers with GELU between them, after flattening."""
    layers: list[nn.Module] = [nn.Flatten(), uu.Linear(inputs, width), uu.GELU()]
    for _ in range(depth - 2):
        layers += [uu.Linear(width, width), uu.GELU()]
    return nn.Sequential(*layers, uu.LinearReadout(width, outputs))


class Decoder(nn.Module):
    """`depth` causal layers of the package: RMS norm, attention, a gated perceptron.

    Maps symbols `(n, time)` to the logits of each next one, `(n, time, symbols)`.
    """

    def __init__(self, symbols: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.symbols, self.places = uu.Embedding(symbols, width), uu.Embedding(context, width)
        tau = uu.transformer_residual_scaling_rule()
        taus = [(tau(2 * at, 2 * depth), tau(2 * at + 1, 2 * depth)) for at in range(depth)]
        self.layers = uu.DepthSequential(
            *(uu.TransformerLayer(width, heads, *both, is_causal=True) for both in taus)
        )
        self.norm, self.head = uu.RMSNorm(width), uu.LinearReadout(width, symbols)

    def forward(self, text: Tensor) -> Tensor:
        """The logits."""
        places = self.places(torch.arange(text.shape[1]).expand(text.shape))
        return self.head(self.norm(self.layers(U.add(self.symbols(text), places))))


def groups(model: nn.Module, lr: float) -> list[dict[str, object]]:
    """A group a parameter, with its rate for an optimizer whose steps do not depend on size."""
    return list(scaled_parameters(model.parameters(), lr_scale_func_adam, lr=lr))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the batch, with gradients of size 1."""
    return U.cross_entropy(logits, labels)


def mse_loss(found: Tensor, true: Tensor) -> Tensor:
    """The mean over the batch, with gradients of size 1; `true` is of size 1 itself."""
    return U.mse_loss(found, true)
