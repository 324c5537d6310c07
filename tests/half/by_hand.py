"""The recipe written out: half-precision weights, float32 masters, nothing of gradscale."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Build = Callable[[Iterable[Tensor]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Build] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "AdamW capturable": lambda p: torch.optim.AdamW(p, lr=1e-2, capturable=False, foreach=False),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, lr=1e-2, fused=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=1e-2),
}


class Network(nn.Module):
    """Two layers and a normalisation; `by_hand` writes its casts out."""

    def __init__(self, by_hand: torch.dtype | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.norm = nn.LayerNorm(16)
        self.last = nn.Linear(16, 3)
        self.by_hand = by_hand

    def forward(self, x: Tensor) -> Tensor:
        if self.by_hand is None:
            return self.last(F.gelu(self.norm(self.first(x))))
        h = self.first(x.to(self.by_hand))
        h = self.norm(h.float()).to(self.by_hand)
        return self.last(F.gelu(h)).float()


def network(seed: int = 0, by_hand: torch.dtype | None = None) -> Network:
    torch.manual_seed(seed)
    return Network(by_hand)


def batches(count: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator))
        for _ in range(count)
    ]


class ByHand:
    """Master weights as every textbook writes them; the oracle of `half_precision`."""

    def __init__(self, model: Network, build: Build, format: torch.dtype) -> None:
        self.model = deepcopy(model)
        self.model.by_hand = format
        self.masters = [nn.Parameter(p.detach().clone()) for p in self.model.parameters()]
        self.optimizer = build(self.masters)
        for name, module in self.model.named_modules():
            if name in ("first", "last"):
                module.to(format)

    def step(
        self,
        micro_batches: list[tuple[Tensor, Tensor]],
        scale: float = 1.0,
        max_norm: float | None = None,
        wide: bool = False,
    ) -> None:
        sums: list[Tensor] | None = None
        for x, y in micro_batches:
            loss = F.mse_loss(self.model(x), y) / len(micro_batches)
            (loss * scale).backward()
            if wide:
                grads = [p.grad.float() for p in self.model.parameters()]
                sums = grads if sums is None else [a + b for a, b in zip(sums, grads, strict=True)]
                self.model.zero_grad()
        if sums is None:
            sums = [p.grad.float() for p in self.model.parameters()]
        for master, grad in zip(self.masters, sums, strict=True):
            master.grad = grad / scale
        if max_norm is not None:
            nn.utils.clip_grad_norm_(self.masters, max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.zero_grad()
        with torch.no_grad():
            for parameter, master in zip(self.model.parameters(), self.masters, strict=True):
                parameter.copy_(master)


def equal(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> bool:
    return all(
        a.dtype == b.dtype and torch.equal(a.detach(), b.detach())
        for a, b in zip(ours, theirs, strict=True)
    )
