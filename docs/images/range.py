"""Draws range.svg: where the gradients of a small network lie, and what float16 holds of them.

Run `python docs/images/range.py` from the repository root; it needs scikit-learn. The counts are
measured: a convolutional network on 8x8 digits, 400 steps in float32, gradients between its layers.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gradscale.formats import FloatFormat
from gradscale.histogram import EXPONENT_BINS, MIN_OCTAVE, count_exponents, flushed_fraction

LOW, HIGH = -44, 18
STEP = 12
WIDTH = (HIGH - LOW) * STEP
PANEL = 150
MARGIN = 20
HALF = FloatFormat.of(torch.float16)
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
BARS, KEPT, COARSE, LOST = "#3b6ea5", "#e8f1e4", "#f6f0d6", "#f5dedb"


def measure(steps: int = 400, batch: int = 256) -> Tensor:
    """Exponent counts of all gradients between layers, over the last tenth of the run."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    widths = (1, 16, 32, 32)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    counts = torch.zeros(EXPONENT_BINS, dtype=torch.int64)
    for step in range(steps):
        chosen = torch.randint(len(images), (batch,))
        outputs: list[Tensor] = []
        value = images[chosen]
        for layer in model:
            value = layer(value)
            outputs.append(value)
        for output in outputs:
            output.retain_grad()
        optimizer.zero_grad()
        nn.functional.cross_entropy(value, labels[chosen]).backward()
        optimizer.step()
        if step >= steps - steps // 10:
            counts += sum(count_exponents(o.grad) for o in outputs if o.grad is not None)
    return counts


def x_of(octave: float) -> float:
    """Where an octave lies on the drawing."""
    return MARGIN + (octave - LOW) * STEP


def panel(counts: Tensor, shift: int, top: int, title: str) -> list[str]:
    """One histogram over the areas that float16 keeps, keeps coarsely, and loses."""
    areas = [
        (LOW, -25, LOST, "becomes 0"),
        (-25, -14, COARSE, "few bits"),
        (-14, 16, KEPT, "full precision"),
        (16, HIGH, LOST, "inf"),
    ]
    drawn = [f'<text x="{MARGIN}" y="{top - 8}" class="title">{title}</text>']
    for left, right, color, name in areas:
        x, width = x_of(left), (right - left) * STEP
        drawn.append(
            f'<rect x="{x}" y="{top}" width="{width}" height="{PANEL}" fill="{color}"/>'
            f'<text x="{x + width / 2}" y="{top + 14}" class="area">{name}</text>'
        )
    tallest = int(counts.max())
    for octave in range(LOW, HIGH):
        count = int(counts[octave - shift - MIN_OCTAVE])
        if count:
            height = (PANEL - 24) * count / tallest
            drawn.append(
                f'<rect x="{x_of(octave) + 1}" y="{top + PANEL - height:.1f}" '
                f'width="{STEP - 2}" height="{height:.1f}" fill="{BARS}"/>'
            )
    for octave in range(-40, HIGH, 8):
        drawn.append(
            f'<text x="{x_of(octave)}" y="{top + PANEL + 14}" class="area">'
            f"2{str(octave).translate(RAISED)}</text>"
        )
    return drawn


def main() -> None:
    """Measure, draw, write."""
    counts = measure()
    top_octave = int(counts.nonzero().max()) + MIN_OCTAVE
    shift = HALF.max_exponent - 1 - top_octave  # one octave spare, and the largest fits
    lost = [float(flushed_fraction(counts, HALF, k)) for k in (0, shift)]
    titles = (
        f"Gradients as they are: float16 turns {lost[0]:.1%} of the non-zero ones into 0",
        f"With the loss multiplied by 2{str(shift).translate(RAISED)}: {lost[1]:.2%}",
    )
    height = 2 * (PANEL + 52) + 8
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 2 * MARGIN} {height}" '
        'role="img" font-family="sans-serif">',
        "<style>.title{font-size:14px;font-weight:bold;fill:#222}"
        ".area{font-size:10px;text-anchor:middle;fill:#555}</style>",
        f'<rect width="{WIDTH + 2 * MARGIN}" height="{height}" fill="white"/>',
        *panel(counts, 0, 30, titles[0]),
        *panel(counts, shift, 30 + PANEL + 52, titles[1]),
        "</svg>",
    ]
    target = Path(__file__).with_name("range.svg")
    target.write_text("\n".join(drawn) + "\n")
    print(titles[0], titles[1], sep="\n")


if __name__ == "__main__":
    main()
