"""Half-precision gradients to divided float32 ones: one pass against a cast and torch's unscale.

Run it as ``python benchmarks/widen.py`` (about a minute). Both ways are timed on the same gradients
in alternation, into memory that is there already; the result is the median of the paired ratios
with its quartiles. By memory traffic one pass moves 6 bytes an element (2 read, 4 written), the two
passes 14.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradscale.gradients.unscale import multiply_and_check_
from gradscale.half.widen import Widening, pass_over
from step import MODELS, RESULTS, describe

Way = Callable[[list[Tensor], list[Tensor], Tensor], None]


def in_one_pass(grads: list[Tensor], out: list[Tensor], inv_scale: Tensor) -> None:
    """The way of `half_precision`."""
    jobs = [Widening(grad, target, 0) for grad, target in zip(grads, out, strict=True)]
    pass_over(jobs, inv_scale, torch.zeros((), device=inv_scale.device))


def in_two_passes(grads: list[Tensor], out: list[Tensor], inv_scale: Tensor) -> None:
    """A cast of every gradient, then torch's multi-tensor unscale in place."""
    torch._foreach_copy_(out, grads)
    multiply_and_check_(out, torch.zeros((), device=inv_scale.device), inv_scale)


def timed(way: Way, grads: list[Tensor], out: list[Tensor], inv: Tensor) -> float:
    """Seconds of one call."""
    if inv.is_cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    way(grads, out, inv)
    if inv.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    inverse = torch.full((), 2.0**-16, device=arguments.device)
    rows: list[dict[str, Any]] = []
    for model, shapes in MODELS.items():
        for format in (torch.float16, torch.bfloat16):
            grads = [torch.randn(s, device=arguments.device).to(format) for s in shapes()]
            out = [torch.empty_like(grad, dtype=torch.float32) for grad in grads]
            for way in (in_one_pass, in_two_passes):
                timed(way, grads, out, inverse)
            pairs = [
                (timed(in_one_pass, grads, out, inverse), timed(in_two_passes, grads, out, inverse))
                for _ in range(arguments.rounds)
            ]
            low, middle, high = statistics.quantiles([one / two for one, two in pairs], n=4)
            row = {
                "model": model,
                "format": str(format).removeprefix("torch."),
                "elements": sum(grad.numel() for grad in grads),
                "one_pass_ms": 1e3 * statistics.median(one for one, _ in pairs),
                "two_passes_ms": 1e3 * statistics.median(two for _, two in pairs),
                "ratio": middle,
                "ratio_low": low,
                "ratio_high": high,
            }
            rows.append(row)
            print(row)
    where = describe(arguments.device)
    lines = [
        "# Half-precision gradients to divided float32 ones: one pass against two",
        "",
        ", ".join(f"{key} {value}" for key, value in where.items()) + ". Median of paired, "
        "interleaved rounds, quartiles in brackets; the float32 memory is there already. By memory "
        "traffic alone the ratio is 6 / 14 = 0.43.",
        "",
        "| model | elements | format | one pass ms | cast and unscale ms | ratio |",
        "|---|--:|---|--:|--:|--:|",
    ]
    lines += [
        f"| {r['model']} | {r['elements'] / 1e6:.2f} M | {r['format']} | {r['one_pass_ms']:.2f} "
        f"| {r['two_passes_ms']:.2f} | {r['ratio']:.2f} [{r['ratio_low']:.2f}, "
        f"{r['ratio_high']:.2f}] |"
        for r in rows
    ]
    stem = arguments.output / f"widen-{arguments.device}"
    stem.with_suffix(".json").write_text(
        json.dumps({"where": where, "rows": rows}, indent=1) + "\n"
    )
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
