"""What an 8-bit backward pass loses without a loss scale, and with one, on any machine.

Trains a small network on handwritten digits three times with the same seed: in float32; with
float16 forward and e5m2 backward products, unscaled; and the same under a gradscale policy. Needs
scikit-learn.

python examples/narrow_backward.py --steps 300
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import gradscale
from gradscale.emulation import emulate

# The mean over a large batch is what makes gradients small; 4096 micro-batches do the same.
LOSS_DIVISOR = 4096.0


def batches(steps: int, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,), generator=generator)
        yield images[chosen], labels[chosen]


def train(steps: int, narrow: bool, policy: gradscale.policies.Policy) -> tuple[float, int]:
    """Accuracy on the last 300 digits, and how many steps were skipped."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    # Without momentum's rescaling a lost gradient is a lost update: SGD shows it plainly.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * LOSS_DIVISOR, momentum=0.9)
    scaler = gradscale.GradScaler("cpu", policy=policy)
    rounding = emulate(forward=torch.float16, backward="e5m2") if narrow else nullcontext()
    for inputs, targets in batches(steps, images[:-300], labels[:-300]):
        optimizer.zero_grad()
        with rounding:
            loss = nn.functional.cross_entropy(model(inputs), targets) / LOSS_DIVISOR
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    with torch.no_grad():
        right = model(images[-300:]).argmax(1) == labels[-300:]
    return right.float().mean().item(), scaler.counters.skipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    steps: int = parser.parse_args().steps
    runs = (
        ("float32", False, gradscale.Static(1.0)),
        ("e5m2, no scaling", True, gradscale.Static(1.0)),
        ("e5m2, Dynamic", True, gradscale.Dynamic()),
        ("e5m2, Guarded(Band)", True, gradscale.Guarded(gradscale.Band(format="e5m2"))),
    )
    for name, narrow, policy in runs:
        accuracy, skipped = train(steps, narrow, policy)
        print(f"{name:20} accuracy {accuracy:.3f}, {skipped} steps skipped")


if __name__ == "__main__":
    main()
