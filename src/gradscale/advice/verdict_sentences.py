"""A verdict in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradscale.advice.evidence import Scaling, ScalingEvidence
from gradscale.advice.verdict import TIGHT, Verdict, magnitude_text
from gradscale.percent import percent

NAMES = {"fp16": "float16", "bf16": "bfloat16", "e5m2": "float8_e5m2", "e4m3": "float8_e4m3fn"}
MOST_ROWS = 5
_WITH: dict[Scaling, str] = {
    "none": "without scaling",
    "default": "at the default scale",
    "one scale": "at any one scale",
    "a plan": "even with a plan",
}
LEAST = 1e-5
"""Shares below are not told apart."""


def paragraph(verdict: Verdict, optimizer: str) -> list[str]:
    """What is said of one format, trained by an optimizer of this name."""
    return [
        f"{verdict.format}: {headline(verdict)}",
        *(
            f"  {line}"
            for line in (
                *_forward(verdict),
                *_scalings(verdict, optimizer),
                *_groups(verdict),
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
        return f"unsafe {_WITH[verdict.scaling]}, the best of all ways"
    needs = {
        "none": "needs no loss scaling",
        "default": "one loss scale is enough, the default",
        "one scale": f"one loss scale is enough, 2^{verdict.log2_scale}, but not the default",
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


def _scalings(verdict: Verdict, optimizer: str) -> list[str]:
    names: dict[Scaling, str] = {
        "none": "without scaling",
        "default": f"at the default scale, 2^{verdict.log2_default}",
        "one scale": f"at the best single scale, 2^{verdict.log2_scale}",
        "a plan": f"with a plan of {_scales(verdict.scales)}",
    }
    lines: list[str] = []
    for way, evidence in verdict.evidence.items():
        if evidence is not None:
            lines.append(f"{names[way]}: {_numbers(evidence)}")
            lines += [f"  {line}" for line in _updates(evidence, optimizer)]
        # What is more than needed is not told of.
        if way == verdict.scaling and verdict.level != "unsafe":
            break
    return lines


def _updates(evidence: ScalingEvidence, optimizer: str) -> list[str]:
    """What a lost gradient comes to under this optimizer."""
    lines: list[str] = []
    if evidence.frozen:
        lines.append(f"frozen, though {optimizer} would move it: {few(evidence.frozen)}")
    if evidence.spared:
        spared = few(evidence.spared)
        lines.append(f"nothing to {optimizer}, which hardly moves it in float32 either: {spared}")
    return lines


def _scales(scales: Sequence[int]) -> str:
    if len(scales) == 1:
        return f"one scale, 2^{scales[0]}"
    return f"{len(scales)} scales, 2^{scales[0]} to 2^{scales[-1]}" if scales else "no scale"


def _numbers(evidence: ScalingEvidence) -> str:
    if evidence.overflowed:
        return "overflows"
    lost = f"{percent(evidence.lost_share, LEAST)} lost"
    if evidence.clipped_share:
        lost += f", {percent(evidence.clipped_share, LEAST)} clipped"
    left = f"{left_of(evidence)} left of the update of {evidence.where}"
    return f"{lost}, cosine {evidence.cosine:.4f}, {left}"


def left_of(evidence: ScalingEvidence) -> str:
    """What is left of the worst update.

    Example:
        >>> left_of(ScalingEvidence(0.2, 0.999, 0.987, "head", overflowed=False))
        '99 %'
    """
    return percent(max(0.0, evidence.worst), 0.01)


def _groups(verdict: Verdict) -> list[str]:
    if verdict.level in ("unsafe", "unknown") or verdict.scaling != "a plan":
        return []
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
