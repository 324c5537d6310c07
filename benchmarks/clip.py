"""Cost of unscale, clip and step against torch eager, beside the memory traffic of each.

Run it as ``python benchmarks/clip.py`` (a few minutes on two cores). Ours is `clip_grad_norm_` +
`step` + `update`; torch's is `unscale_` + `torch.nn.utils.clip_grad_norm_` + `step` + `update`.
Every cell times both in alternation; only the ratio means anything on a shared machine. Beside it
stands the ratio of the bytes that both must read and write, the optimizer's own included: what the
times could become if nothing but memory mattered.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from gradscale.scaler import GradScaler
from pairs import paired, ratio_of, seconds
from step import MODELS, Shapes, effort
from where import arguments, began, describe, in_words, save

MAX_NORM = 1.0
WORD = 4

# Reads and writes of one word an element: the optimizer's of gradient, parameter and state.
SGD, ADAM = {"read": 3, "write": 2}, {"read": 4, "write": 3}
FUSED_STORES = 1  # torch's fused kernels write the gradient back, divided

CASES: dict[str, tuple[Any, str, dict[str, int], int]] = {
    "SGD foreach": (
        lambda p: torch.optim.SGD(p, lr=1e-6, momentum=0.9, foreach=True), "gradient", SGD, 3,
    ),
    "SGD foreach, learning rate": (
        lambda p: torch.optim.SGD(p, lr=1e-6, momentum=0.9, foreach=True), "learning_rate", SGD, 3,
    ),
    "SGD fused": (
        lambda p: torch.optim.SGD(p, lr=1e-6, momentum=0.9, fused=True), "gradient", SGD, 1,
    ),
    "AdamW foreach": (
        lambda p: torch.optim.AdamW(p, lr=1e-6, foreach=True), "gradient", ADAM, 3,
    ),
    "AdamW foreach, moments": (
        lambda p: torch.optim.AdamW(p, lr=1e-6, foreach=True), "moments", ADAM, 3,
    ),
    "AdamW fused": (
        lambda p: torch.optim.AdamW(p, lr=1e-6, fused=True), "gradient", ADAM, 1,
    ),
}  # fmt: skip
"""Optimizer, where the scale is undone, the optimizer's traffic, our passes over the gradients."""

TORCH_PASSES = 5


def traffic(case: str, elements: int) -> tuple[int, int]:
    """Bytes that torch and gradscale move in one step; a fused kernel counts as one pass."""
    _, _, own, passes = CASES[case]
    optimizer = own["read"] + own["write"]
    stores = FUSED_STORES if "fused" in case else 0
    return WORD * elements * (TORCH_PASSES + optimizer), WORD * elements * (
        passes + optimizer + stores
    )


def timed_step(
    scaler: Any, optimizer: torch.optim.Optimizer, parameters: list[Any], device: str
) -> float:
    """Seconds for one step; the gradients stay as they are, because they are never clipped."""
    scaler.scale(torch.zeros((), device=device))

    def step() -> None:
        if isinstance(scaler, GradScaler):
            scaler.clip_grad_norm_(optimizer, MAX_NORM)
        else:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        scaler.step(optimizer)
        scaler.update()

    return seconds(step, device)


def compare(shapes: Shapes, case: str, device: str, rounds: int, best_of: int) -> dict[str, Any]:
    """Paired times of both on one set of parameters and one optimizer."""
    build, undo, _, _ = CASES[case]
    parameters = [torch.nn.Parameter(torch.randn(s, device=device) * 0.02) for s in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    elements = sum(p.numel() for p in parameters)
    optimizer = build(parameters)
    # Scale 1, so that the same gradients serve every step; after the first they have norm 1.
    scalers = (
        torch.amp.GradScaler(device, init_scale=1.0, growth_interval=10**9),
        GradScaler(device, init_scale=1.0, growth_interval=10**9, undo=undo),
    )
    theirs, ours = (
        partial(timed_step, scaler, optimizer, parameters, device) for scaler in scalers
    )
    for way in (theirs, ours):
        for _ in range(3):
            way()
    torch_bytes, our_bytes = traffic(case, elements)
    return {
        "parameters": elements,
        **paired(ours, theirs, rounds, best_of).row("gradscale", "torch"),
        "torch_bytes": torch_bytes,
        "gradscale_bytes": our_bytes,
        "limit": our_bytes / torch_bytes,
    }


def markdown(where: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table that goes into the documentation."""
    lines = [
        "# unscale, clip, step and update, gradscale against torch eager",
        "",
        f"{in_words(where)}. Ratio: median of paired, interleaved rounds, quartiles in brackets. "
        "Limit: the ratio of the bytes that both read and write, the optimizer's own included.",
        "",
        "| model | optimizer, undo | torch ms | gradscale ms | ratio | limit | MB moved |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['case']} | {row['torch_ms']:.3f} | "
            f"{row['gradscale_ms']:.3f} | {ratio_of(row)} | {row['limit']:.3f} | "
            f"{row['torch_bytes'] / 1e6:.0f} → {row['gradscale_bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    given = began(arguments(__doc__.splitlines()[0], rounds=21, threads=2), MODELS)
    where = describe(given.device)
    rows: list[dict[str, Any]] = []
    for model in given.models:
        for case in CASES:
            result = compare(MODELS[model](), case, given.device, *effort(model, given.rounds))
            rows.append({"model": model, "case": case, **result})
            print(f"{model:>12} {case:<28} {result['ratio']:.3f} (limit {result['limit']:.3f})")
    data = {"where": where, "rows": rows}
    save(given.output, f"clip-{given.device}", data, markdown(where, rows))


if __name__ == "__main__":
    main()
