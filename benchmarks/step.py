"""Cost of `unscale_` + `step` + `update` against torch.amp.GradScaler, interleaved in one process.

Run it as ``python benchmarks/step.py`` (about four minutes on two cores). Every cell times both
scalers on the same parameter list in alternation and reports the median of the paired ratios with
its quartiles; only the ratio means anything on a shared machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import gradscale
from gradscale.scaler import GradScaler
from pairs import paired, ratio_of, seconds
from where import arguments, began, describe, in_words, save

Shapes = list[tuple[int, ...]]


def resnet50() -> Shapes:
    """The 161 parameters of ResNet-50 (25.6 M)."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                convolutions.append((4 * width, inputs, 1, 1))
            for shape in convolutions:
                shapes += [shape, (shape[0],), (shape[0],)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def bert_base() -> Shapes:
    """The 199 parameters of BERT-base, uncased, with its pooler (109 M)."""
    shapes: Shapes = [(30522, 768), (512, 768), (2, 768), (768,), (768,)]
    for _ in range(12):
        shapes += [(768, 768), (768,)] * 4 + [(768,), (768,)]
        shapes += [(3072, 768), (3072,), (768, 3072), (768,), (768,), (768,)]
    return [*shapes, (768, 768), (768,)]


def gpt2() -> Shapes:
    """The 148 parameters of GPT-2 small (124 M)."""
    shapes: Shapes = [(50257, 768), (1024, 768)]
    for _ in range(12):
        shapes += [(768,), (768,), (768, 2304), (2304,), (768, 768), (768,)]
        shapes += [(768,), (768,), (768, 3072), (3072,), (3072, 768), (768,)]
    return [*shapes, (768,), (768,)]


def small() -> Shapes:
    """A two-layer perceptron on digits (0.01 M): nothing but overhead."""
    return [(128, 64), (128,), (10, 128), (10,)]


MODELS: dict[str, Callable[[], Shapes]] = {
    "small": small,
    "ResNet-50": resnet50,
    "BERT-base": bert_base,
    "GPT-2-124M": gpt2,
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD foreach": lambda p: torch.optim.SGD(p, lr=1e-6, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=1e-6, momentum=0.9, fused=True),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-6, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-6, fused=True),
}


def timed_step(
    scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, explicit: bool, device: str
) -> float:
    """Seconds for one step; the gradients stay in place, so that nothing but the step is timed."""
    scaler.scale(torch.zeros((), device=device))

    def step() -> None:
        if explicit:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    return seconds(step, device)


def compare(
    shapes: Shapes,
    build: Callable[[Any], torch.optim.Optimizer],
    device: str,
    rounds: int,
    best_of: int,
) -> dict[str, Any]:
    """Paired times of both scalers on one set of parameters and one optimizer."""
    parameters = [torch.nn.Parameter(torch.randn(s, device=device) * 0.02) for s in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = build(parameters)
    explicit = not getattr(optimizer, "_step_supports_amp_scaling", False)
    # Scale 1: the same gradients serve every step, and neither scaler changes them.
    theirs, ours = (
        partial(
            timed_step,
            kind(device, init_scale=1.0, growth_interval=10**9),
            optimizer,
            explicit,
            device,
        )
        for kind in (torch.amp.GradScaler, GradScaler)
    )
    for way in (theirs, ours):
        for _ in range(3):
            way()
    return {
        "parameters": sum(p.numel() for p in parameters),
        **paired(ours, theirs, rounds, best_of).row("gradscale", "torch"),
    }


def effort(model: str, rounds: int) -> tuple[int, int]:
    """Rounds, and steps in each of which the fastest counts: many where a step is microseconds."""
    return (20 * rounds, 5) if model == "small" else (rounds, 1)


def markdown(where: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table that goes into the documentation."""
    lines = [
        "# unscale_ + step + update, gradscale against torch.amp.GradScaler",
        "",
        f"{in_words(where)}. Default policy. Ratio: median of paired, interleaved rounds, "
        "quartiles in brackets.",
        "",
        "| model | parameters | optimizer | torch ms | gradscale ms | ratio |",
        "|---|--:|---|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['parameters'] / 1e6:.2f} M | {row['optimizer']} | "
            f"{row['torch_ms']:.3f} | {row['gradscale_ms']:.3f} | {ratio_of(row)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    given = began(arguments(__doc__.splitlines()[0], rounds=21, threads=2), MODELS)
    where = describe(given.device)
    print(where, f"gradscale from {Path(gradscale.__file__).parent.name}")
    rows: list[dict[str, Any]] = []
    for model in given.models:
        for name, build in OPTIMIZERS.items():
            result = compare(MODELS[model](), build, given.device, *effort(model, given.rounds))
            rows.append({"model": model, "optimizer": name, **result})
            print(f"{model:>12} {name:<14} {result['torch_ms']:9.3f} ms {result['ratio']:.3f}")
    data = {"where": where, "rows": rows}
    save(given.output, f"step-{given.device}", data, markdown(where, rows))


if __name__ == "__main__":
    main()
