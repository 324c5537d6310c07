"""Draws plan.svg: one scale and a plan, on the gradients of a deep network without normalisation.

Run `python docs/images/plan.py` from the repository root. Both are measured: where the gradients of
24 linear layers lie in float32, and the plan that `Windows` makes for them in float16.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

import gradscale
from gradscale.emulation import emulate
from gradscale.formats import FloatFormat

LAYERS = 24
LOW, HIGH, STEP = -48, 20, 3.4
LEFT, TOP, BAR = 56, 54, 10
PANEL = LAYERS * (BAR + 3)
GAP = 70
HALF = FloatFormat.of(torch.float16)
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
KEPT, LOST, HELD = "#3b6ea5", "#c2503f", "#e8f1e4"
Span = tuple[int, int]


def network() -> nn.Sequential:
    """Linear layers and GELU as torch initialises them."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(LAYERS - 1):
        layers += [nn.Linear(64, 64), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def batch() -> tuple[Tensor, Tensor]:
    """Random inputs and labels."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(10, (32,), generator=generator)
    return torch.randn(32, 64, generator=generator), labels


def spans() -> list[Span]:
    """For each layer, from the loss, the octaves that hold all but 1 % of what arrives there."""
    model, (x, labels) = network(), batch()
    outputs: list[Tensor] = []
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            x.retain_grad()
            outputs.append(x)
    nn.functional.cross_entropy(x, labels).backward()
    found: list[Span] = []
    for output in reversed(outputs):
        assert output.grad is not None
        octaves = output.grad[output.grad != 0].abs().log2().floor()
        low = float(octaves.quantile(0.01))
        found.append((math.floor(low), int(octaves.max())))
    return found


def exponents() -> list[int]:
    """For each layer, from the loss, the exponent of the scale that its gradient gets."""
    model, (x, labels) = network(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    scaler = gradscale.GradScaler("cpu", layerwise=True)
    for _ in range(9):
        optimizer.zero_grad()
        with emulate():
            with torch.autocast("cpu", torch.float16):
                loss = nn.functional.cross_entropy(model(x).float(), labels)
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.layerwise is not None
    track = scaler.layerwise.tracks.latest
    assert track is not None
    log2_scale = round(math.log2(scaler.get_scale()))
    names = track.graph.names
    products = [node for node, name in enumerate(names) if name == "AddmmBackward0"]
    return [track.plan.exponents[node] + log2_scale for node in products]


def y_of(octave: float) -> float:
    """Where an octave lies on the drawing."""
    return TOP + (HIGH - octave) * STEP


def panel(left: float, title: str, found: list[Span], scales: list[int]) -> list[str]:
    """The layers' gradients at these scales, over the range that float16 holds."""
    floor, top = round(math.log2(HALF.flush_threshold)), HALF.max_exponent + 1
    parts = [
        f'<text x="{left}" y="{TOP - 26}" class="n">{title}</text>',
        f'<rect x="{left}" y="{y_of(top)}" width="{PANEL}" '
        f'height="{(top - floor) * STEP}" fill="{HELD}"/>',
    ]
    for index, ((low, high), scale) in enumerate(zip(found, scales, strict=True)):
        x = left + index * (BAR + 3) + 1
        kept, end = max(low + scale, floor), high + scale + 1
        if low + scale < floor:
            lost_top = min(floor, end)
            size = (lost_top - max(low + scale, LOW)) * STEP
            parts.append(_bar(x, lost_top, size, LOST))
        if end > kept:
            parts.append(_bar(x, end, (end - kept) * STEP, KEPT))
        if index == 0 or scales[index - 1] != scale:
            text = f"2{str(scale).translate(RAISED)}"
            parts.append(f'<text x="{x}" y="{TOP - 8}" class="t">{text}</text>')
            parts.append(
                f'<path d="M{x - 2},{TOP - 18} V{y_of(LOW)}" stroke="#999" stroke-dasharray="2 3"/>'
            )
    parts += [
        f'<text x="{left}" y="{y_of(LOW) + 16}" class="t">loss</text>',
        f'<text x="{left + PANEL}" y="{y_of(LOW) + 16}" class="t" text-anchor="end">input</text>',
    ]
    return parts


def _bar(x: float, top: float, height: float, color: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y_of(top):.1f}" width="{BAR}" height="{height:.1f}" '
        f'fill="{color}"/>'
    )


def draw() -> str:
    """The whole drawing."""
    found, plan = spans(), exponents()
    width, height = LEFT + 2 * PANEL + GAP + 20, y_of(LOW) + 48
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" role="img" '
        'font-family="sans-serif" font-size="12">',
        "<title>Gradients of 24 layers at one scale, and at the scales of a plan</title>",
        "<style>.n{font-weight:bold;fill:#1d1d1d}.t{fill:#444;font-size:11px}</style>",
        f'<rect width="{width}" height="{height:.0f}" fill="white"/>',
        *panel(LEFT, "one scale", found, [16] * LAYERS),
        *panel(LEFT + PANEL + GAP, "a plan", found, plan),
    ]
    for octave in (16, 0, -16, -25):
        text = f"2{str(octave).translate(RAISED)}"
        parts.append(
            f'<text x="{LEFT - 6}" y="{y_of(octave) + 4:.1f}" class="t" text-anchor="end">{text}'
            "</text>"
        )
    parts.append(
        f'<text x="{LEFT}" y="{y_of(LOW) + 36:.1f}" class="t">Each bar: the gradient that arrives '
        "at one layer, times its scale. Green: what float16 holds. Red: flushed to zero.</text>"
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(__file__).with_name("plan.svg").write_text(draw())
