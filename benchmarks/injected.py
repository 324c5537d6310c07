"""Cost of `injected="scale"` and of looking for such functions, interleaved in one process.

Run it as ``python benchmarks/injected.py`` (two minutes; only ratios mean anything on a shared
machine). A round is one training step of every arm, in changing order, on the same small
transformer with four mixtures of experts, each of which returns the gradient of an auxiliary loss.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradscale import GradScaler
from pairs import bracketed, in_turns, quartiles
from where import arguments, began, describe, in_words, save

WIDTH, EXPERTS, LAYERS = 256, 4, 4
WARM = 10
"""Steps of each arm before any is timed: what is looked at in the first ones is over."""


class AddAuxiliaryLoss(torch.autograd.Function):
    """As DeepSeek's."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, auxiliary: Tensor) -> Tensor:
        """The hidden state as it is."""
        ctx.dtype = auxiliary.dtype
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """One more gradient, which is 1 at any scale."""
        return grads[0], torch.ones((), dtype=ctx.dtype, device=grads[0].device)


class Experts(nn.Module):
    """Attention, then a mixture of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
            for _ in range(EXPERTS)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Of shape `(batch, length, width)`, as its result is."""
        x = x + self.attention(x, x, x, need_weights=False)[0]
        weights = self.router(x).softmax(-1)
        mixed = sum(weights[..., i : i + 1] * e(x) for i, e in enumerate(self.experts))
        balance = weights.mean((0, 1)).square().sum() * 0.01
        return x + AddAuxiliaryLoss.apply(mixed, balance)


def scalers(device: str) -> dict[str, Any]:
    return {
        "torch": torch.amp.GradScaler(device),
        "torch again": torch.amp.GradScaler(device),
        'injected="ignore"': GradScaler(device, injected="ignore"),
        'injected="scale"': GradScaler(device, injected="scale"),
        'layerwise=True, injected="ignore"': GradScaler(device, layerwise=True, injected="ignore"),
        'layerwise=True, injected="scale"': GradScaler(device, layerwise=True, injected="scale"),
    }


class Bench:
    """One model, and one training step with any scaler."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.model = nn.Sequential(*(Experts() for _ in range(LAYERS))).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-9)
        self.batch = torch.randn(8, 64, WIDTH, device=device)

    def step(self, scaler: Any) -> float:
        """Seconds of one: of the clock on a GPU, of this process's own time on a (shared) CPU."""
        begin = self._now()
        self.optimizer.zero_grad()
        scaler.scale(self.model(self.batch).square().mean()).backward()
        scaler.step(self.optimizer)
        scaler.update()
        return self._now() - begin

    def _now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    given = began(arguments(__doc__.splitlines()[0], rounds=60, threads=1))
    bench, arms = Bench(given.device), scalers(given.device)
    for scaler in arms.values():
        for _ in range(WARM):
            bench.step(scaler)
    steps = {name: partial(bench.step, scaler) for name, scaler in arms.items()}
    times = in_turns(steps, given.rounds)
    rows = {name: quartiles(times[name], times["torch"]) for name in arms if name != "torch"}
    torch_ms = 1e3 * statistics.median(times["torch"])
    where = describe(given.device)
    lines = [
        "# A mixture of experts whose routers return a gradient of their own",
        "",
        f"{in_words(where)}. One training step over torch's of the same round, which takes "
        f"{torch_ms:.0f} ms: median and quartiles of {given.rounds} rounds, after {WARM} steps of "
        "each. Layer-wise arms measure at their own times.",
        "",
        "| scaler | step / torch's |",
        "|---|--:|",
        *(f"| {name} | {bracketed(*row)} |" for name, row in rows.items()),
    ]
    data = {"where": where, "torch_ms": torch_ms, "rows": rows}
    save(given.output, f"injected-{given.device}", data, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
