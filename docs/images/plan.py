"""Draws plan.svg: one scale and a plan, on the gradients of two networks in different units.

Run `python docs/images/plan.py` from the repository root. Both are measured on the recipe `towers`:
where the gradients of each layer lie in float32, and the plan that `Windows` makes in float16.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

import gradscale
from gradscale.emulation import emulate
from gradscale.formats import FloatFormat
from gradscale.recipes import find

LAYERS = ("name.7", "name.5", "name.3", "name.1", "centre.7", "centre.5", "centre.3", "centre.1")
LOW, HIGH, STEP = -48, 17, 3.4
LEFT, TOP, BAR, SPACE = 56, 64, 22, 8
PANEL = len(LAYERS) * (BAR + SPACE) + SPACE
GAP = 60
HALF = FloatFormat.of(torch.float16)
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
KEPT, LOST, HELD = "#3b6ea5", "#c2503f", "#e8f1e4"
STEPS = 10
Span = tuple[int, int]
RECIPE = find("towers")


def batch(step: int) -> tuple[Tensor, ...]:
    """Images, labels and centres of a step."""
    return RECIPE.batch(RECIPE.load().train, 0, step, RECIPE.defaults.batch_size)


def trained() -> tuple[nn.Module, gradscale.GradScaler]:
    """The networks after a few steps under layer-wise scaling."""
    torch.manual_seed(0)
    model = RECIPE.model()
    optimizer = torch.optim.Adam(model.parameters(), RECIPE.defaults.lr, eps=RECIPE.defaults.eps)
    scaler = gradscale.GradScaler("cpu", layerwise=True)
    scaler.name_parameters(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        with emulate(), torch.autocast("cpu", torch.float16):
            scaler.scale(RECIPE.loss(model, batch(step))).backward()
        scaler.step(optimizer)
        scaler.update()
    return model, scaler


def spans(model: nn.Module) -> list[Span]:
    """For each layer the octaves that hold all but 1 % of what arrives there, in float32."""
    outputs: dict[str, Tensor] = {}
    for name in LAYERS:
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: outputs.update({name: output})
        )
    loss = RECIPE.loss(model, batch(STEPS))
    gradients = torch.autograd.grad(loss, [outputs[name] for name in LAYERS])
    found: list[Span] = []
    for gradient in gradients:
        octaves = gradient[gradient != 0].abs().log2().floor()
        found.append((math.floor(float(octaves.quantile(0.01))), int(octaves.max())))
    return found


def exponents(scaler: gradscale.GradScaler) -> list[int]:
    """For each layer the exponent of the scale that its gradient gets."""
    assert scaler.layerwise is not None
    track = scaler.layerwise.tracks.latest
    assert track is not None
    log2_scale = round(math.log2(scaler.get_scale()))
    names = scaler.layerwise.naming.of(track)
    scales = {
        names[node]: track.plan.exponents[node] + log2_scale
        for node, kind in enumerate(track.graph.names)
        if kind == "AddmmBackward0"
    }
    return [scales[name] for name in LAYERS]


def y_of(octave: float) -> float:
    """Where an octave lies on the drawing."""
    return TOP + (HIGH - octave) * STEP


def panel(left: float, title: str, found: list[Span], scales: list[int]) -> list[str]:
    """The layers' gradients at these scales, over the range that float16 holds."""
    floor, top = round(math.log2(HALF.flush_threshold)), HALF.max_exponent + 1
    parts = [
        f'<text x="{left}" y="{TOP - 40}" class="n">{title}</text>',
        f'<rect x="{left}" y="{y_of(top)}" width="{PANEL}" '
        f'height="{(top - floor) * STEP}" fill="{HELD}"/>',
    ]
    for index, ((low, high), scale) in enumerate(zip(found, scales, strict=True)):
        x = left + SPACE + index * (BAR + SPACE)
        kept, end = max(low + scale, floor), min(high + scale + 1, HIGH)
        if low + scale < floor:
            lost_top = min(floor, end)
            size = (lost_top - max(low + scale, LOW)) * STEP
            parts.append(_bar(x, lost_top, size, LOST))
        if end > kept:
            parts.append(_bar(x, end, (end - kept) * STEP, KEPT))
        if index == 0 or scales[index - 1] != scale:
            text = f"scale 2{str(scale).translate(RAISED)}"
            parts.append(f'<text x="{x}" y="{TOP - 18}" class="t">{text}</text>')
    for first, words in ((0, "names the digit"), (4, "finds its centre")):
        x = left + SPACE + first * (BAR + SPACE)
        width = 4 * (BAR + SPACE) - SPACE
        parts += [
            f'<path d="M{x},{y_of(LOW) + 6} h{width}" stroke="#888"/>',
            f'<text x="{x + width / 2}" y="{y_of(LOW) + 22}" class="t" text-anchor="middle">'
            f"{words}</text>",
        ]
    return parts


def _bar(x: float, top: float, height: float, color: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y_of(top):.1f}" width="{BAR}" height="{height:.1f}" '
        f'fill="{color}"/>'
    )


def draw() -> str:
    """The whole drawing."""
    model, scaler = trained()
    plan, found = exponents(scaler), spans(model)
    width, height = LEFT + 2 * PANEL + GAP + 20, y_of(LOW) + 64
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" role="img" '
        'font-family="sans-serif" font-size="12">',
        "<title>Gradients of two networks at one scale, and at the scales of a plan</title>",
        "<style>.n{font-weight:bold;fill:#1d1d1d}.t{fill:#444;font-size:11px}</style>",
        f'<rect width="{width}" height="{height:.0f}" fill="white"/>',
        *panel(LEFT, "torch.amp.GradScaler: one scale", found, [16] * len(LAYERS)),
        *panel(LEFT + PANEL + GAP, "layerwise=True: a scale for each part", found, plan),
    ]
    for octave in (16, 0, -16, -25):
        text = f"2{str(octave).translate(RAISED)}"
        parts.append(
            f'<text x="{LEFT - 6}" y="{y_of(octave) + 4:.1f}" class="t" text-anchor="end">{text}'
            "</text>"
        )
    parts.append(
        f'<text x="{LEFT}" y="{y_of(LOW) + 48:.1f}" class="t">Bars: the gradient that arrives at '
        "each layer, times its scale. Green: what float16 holds; red: flushed.</text>"
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(__file__).with_name("plan.svg").write_text(draw())
