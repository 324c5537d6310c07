"""Half-precision gradients to divided float32 ones: one pass against a cast and torch's unscale.

Run it as ``python benchmarks/widen.py`` (about a minute). Both ways are timed on the same gradients
in alternation, into memory that is there already; the result is the median of the paired ratios
with its quartiles. By memory traffic one pass moves 6 bytes an element (2 read, 4 written), the two
passes 14.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradscale.gradients.unscale import multiply_and_check_
from gradscale.half.widen import pass_over
from gradscale.half.widening import Widening
from pairs import paired, ratio_of, seconds
from step import MODELS
from where import arguments, began, describe, in_words, save


def in_one_pass(grads: list[Tensor], out: list[Tensor], inv_scale: Tensor) -> None:
    """The way of `half_precision`."""
    jobs = [Widening(grad, target, 0) for grad, target in zip(grads, out, strict=True)]
    pass_over(jobs, inv_scale, torch.zeros((), device=inv_scale.device))


def in_two_passes(grads: list[Tensor], out: list[Tensor], inv_scale: Tensor) -> None:
    """A cast of every gradient, then torch's multi-tensor unscale in place."""
    torch._foreach_copy_(out, grads)
    multiply_and_check_(out, torch.zeros((), device=inv_scale.device), inv_scale)


def main() -> None:
    given = began(arguments(__doc__.splitlines()[0], rounds=15, threads=1), MODELS)
    inverse = torch.full((), 2.0**-16, device=given.device)
    rows: list[dict[str, Any]] = []
    for model in given.models:
        for format in (torch.float16, torch.bfloat16):
            grads = [torch.randn(s, device=given.device).to(format) for s in MODELS[model]()]
            out = [torch.empty_like(grad, dtype=torch.float32) for grad in grads]
            one, two = (
                partial(seconds, partial(way, grads, out, inverse), given.device)
                for way in (in_one_pass, in_two_passes)
            )
            one(), two()
            row = {
                "model": model,
                "format": str(format).removeprefix("torch."),
                "elements": sum(grad.numel() for grad in grads),
                **paired(one, two, given.rounds).row("one_pass", "two_passes"),
            }
            rows.append(row)
            print(row)
    where = describe(given.device)
    lines = [
        "# Half-precision gradients to divided float32 ones: one pass against two",
        "",
        f"{in_words(where)}. Median of paired, interleaved rounds, quartiles in brackets; the "
        "float32 memory is there already. By memory traffic alone the ratio is 6 / 14 = 0.43.",
        "",
        "| model | elements | format | one pass ms | cast and unscale ms | ratio |",
        "|---|--:|---|--:|--:|--:|",
    ]
    lines += [
        f"| {r['model']} | {r['elements'] / 1e6:.2f} M | {r['format']} | {r['one_pass_ms']:.2f} "
        f"| {r['two_passes_ms']:.2f} | {ratio_of(r, digits=2)} |"
        for r in rows
    ]
    data = {"where": where, "rows": rows}
    save(given.output, f"widen-{given.device}", data, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
