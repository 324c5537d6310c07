"""A verdict in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradscale.advice.evidence import ScalingEvidence
from gradscale.advice.verdict import TIGHT, Verdict, magnitude_text
from gradscale.percent import percent

NAMES = {"fp16": "float16", "bf16": "bfloat16", "e5m2": "float8_e5m2", "e4m3": "float8_e4m3fn"}
MOST_ROWS = 5
MUCH = 0.01  # of a module's gradients: worth its name
LEAST = 1e-5
"""Shares below are not told apart."""


def paragraph(verdict: Verdict) -> list[str]:
    """What is said of one format."""
    return [
        f"{verdict.format}: {headline(verdict)}",
        *(
            f"  {line}"
            for line in (
                *_forward(verdict),
                *_scalings(verdict),
                *_layers(verdict),
                *(str(function) for function in verdict.functions if function.kind != "linear"),
            )
        ),
    ]


def headline(verdict: Verdict) -> str:
    """The verdict in half a line."""
    if verdict.level == "unknown":
        return f"could not run: {verdict.note}"
    if verdict.hunt is not None:
        return "unsafe: the forward pass is not finite"
    if verdict.level == "unsafe":
        return "unsafe: no scaling saves its gradients"
    needs = {
        "none": "needs no loss scaling",
        "one scale": f"one loss scale is enough, 2^{verdict.log2_scale}",
        "a plan": f"one scale is not enough; {len(verdict.scales)} are",
    }
    return f"{verdict.level}, {needs[verdict.scaling]}"


def _forward(verdict: Verdict) -> list[str]:
    if verdict.hunt is not None:
        return str(verdict.hunt).splitlines()
    if verdict.level == "unknown" or verdict.headroom > TIGHT or math.isinf(verdict.headroom):
        return []
    largest = magnitude_text(verdict.activation.amax)
    return [
        f"activations reach {largest} in {verdict.activation.module}, {verdict.headroom:.1f} "
        "octaves below the largest number: they may overflow later in training"
    ]


def _scalings(verdict: Verdict) -> list[str]:
    ways = [("without scaling", verdict.none)]
    if verdict.scaling != "none":
        ways.append((f"at one scale, 2^{verdict.log2_scale}", verdict.one))
    if verdict.scaling == "a plan" or (verdict.scaling != "none" and len(verdict.scales) > 1):
        ways.append((f"with a plan of {_scales(verdict.scales)}", verdict.plan))
    return [f"{name}: {_numbers(evidence)}" for name, evidence in ways if evidence is not None]


def _scales(scales: Sequence[int]) -> str:
    if len(scales) == 1:
        return f"one scale, 2^{scales[0]}"
    return f"{len(scales)} scales, 2^{scales[0]} to 2^{scales[-1]}" if scales else "no scale"


def _numbers(evidence: ScalingEvidence) -> str:
    if evidence.overflowed and evidence.lost_share == 1.0:
        return "overflows"
    worst = f"worst module {evidence.where}: {evidence.worst:.3f}"
    tail = "; overflowed at times" if evidence.overflowed else ""
    return (
        f"{percent(evidence.lost_share, LEAST)} lost, cosine {evidence.cosine:.4f} ({worst}){tail}"
    )


def _layers(verdict: Verdict) -> list[str]:
    if verdict.level in ("unsafe", "unknown") or verdict.scaling == "none":
        return []
    return _losing(verdict) if verdict.scaling == "one scale" else _groups(verdict)


def _losing(verdict: Verdict) -> list[str]:
    """Modules that a single scale serves badly, though the model as a whole is well served."""
    modules = [row for row in verdict.rows if row.kind == "module" and row.lost_share > MUCH]
    named = ", ".join(
        f"{row.name} ({percent(row.lost_share, LEAST)})" for row in modules[:MOST_ROWS]
    )
    return [f"modules that lose most at it: {named}"] if modules else []


def _groups(verdict: Verdict) -> list[str]:
    lines = [
        f"2^{group.exponent} for {few(group.modules)}"
        for group in verdict.groups[:MOST_ROWS]
        if group.modules
    ]
    more = len(verdict.groups) - MOST_ROWS
    return lines + ([f"and {more} more groups"] if more > 0 else [])


def few(names: Sequence[str]) -> str:
    """Some names: all of them if they are few, else the first, the last, and how many.

    Example:
        >>> few(["a", "b"]), few([str(i) for i in range(9)])
        ('a, b', '0 … 8 (9 modules)')
    """
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)} modules)"
