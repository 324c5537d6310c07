"""Cost of unscale, clip and step against torch eager, beside the memory traffic of each.

Run it as ``python benchmarks/clip.py`` (a few minutes on two cores). Ours is `clip_grad_norm_` +
`step` + `update`; torch's is `unscale_` + `torch.nn.utils.clip_grad_norm_` + `step` + `update`.
Every cell times both in alternation; only the ratio means anything on a shared machine. Beside it
stands the ratio of the bytes that both must read and write, the optimizer's own included: what the
times could become if nothing but memory mattered.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from gradscale.scaler import GradScaler
from step import MODELS, RESULTS, Shapes, describe

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
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    if isinstance(scaler, GradScaler):
        scaler.clip_grad_norm_(optimizer, MAX_NORM)
    else:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
    scaler.step(optimizer)
    scaler.update()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def compare(shapes: Shapes, case: str, device: str, rounds: int, inner: int) -> dict[str, float]:
    """Paired times of both on one set of parameters and one optimizer."""
    build, undo, _, _ = CASES[case]
    parameters = [torch.nn.Parameter(torch.randn(s, device=device) * 0.02) for s in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    elements = sum(p.numel() for p in parameters)
    optimizer = build(parameters)
    # Scale 1, so that the same gradients serve every step; after the first they have norm 1.
    scalers: list[Any] = [
        torch.amp.GradScaler(device, init_scale=1.0, growth_interval=10**9),
        GradScaler(device, init_scale=1.0, growth_interval=10**9, undo=undo),
    ]
    for scaler in scalers:
        for _ in range(3):
            timed_step(scaler, optimizer, parameters, device)
    times: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    for index in range(rounds):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            steps = [
                timed_step(scalers[which], optimizer, parameters, device) for _ in range(inner)
            ]
            times[which].append(min(steps))
    gc.enable()
    ratios = [ours / theirs for theirs, ours in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    theirs, ours = traffic(case, elements)
    return {
        "parameters": elements,
        "torch_ms": 1e3 * statistics.median(times[0]),
        "gradscale_ms": 1e3 * statistics.median(times[1]),
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
        "torch_bytes": theirs,
        "gradscale_bytes": ours,
        "limit": ours / theirs,
        "rounds": rounds,
    }


def markdown(where: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table that goes into the documentation."""
    lines = [
        "# unscale, clip, step and update, gradscale against torch eager",
        "",
        ", ".join(f"{key} {value}" for key, value in where.items()) + ". Ratio: median of paired, "
        "interleaved rounds, quartiles in brackets. Limit: the ratio of the bytes that both read "
        "and write, the optimizer's own included.",
        "",
        "| model | optimizer, undo | torch ms | gradscale ms | ratio | limit | MB moved |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['case']} | {row['torch_ms']:.3f} | "
            f"{row['gradscale_ms']:.3f} | {row['ratio']:.3f} [{row['ratio_low']:.3f}, "
            f"{row['ratio_high']:.3f}] | {row['limit']:.3f} | "
            f"{row['torch_bytes'] / 1e6:.0f} → {row['gradscale_bytes'] / 1e6:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    where = describe(arguments.device)
    rows: list[dict[str, Any]] = []
    for model in arguments.models:
        for case in CASES:
            rounds, inner = (
                (20 * arguments.rounds, 5) if model == "small" else (arguments.rounds, 1)
            )
            result = compare(MODELS[model](), case, arguments.device, rounds, inner)
            rows.append({"model": model, "case": case, **result})
            print(f"{model:>12} {case:<28} {result['ratio']:.3f} (limit {result['limit']:.3f})")
    arguments.output.mkdir(parents=True, exist_ok=True)
    stem = arguments.output / f"clip-{arguments.device}"
    stem.with_suffix(".json").write_text(
        json.dumps({"where": where, "rows": rows}, indent=1) + "\n"
    )
    stem.with_suffix(".md").write_text(markdown(where, rows))


if __name__ == "__main__":
    main()
