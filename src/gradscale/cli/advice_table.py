"""An advice as a table: a line a format, and the layers that lose most."""

from __future__ import annotations

import math

from rich import box
from rich.table import Table

from gradscale.advice import Advice, ScalingEvidence, Verdict
from gradscale.advice.verdict_sentences import LEAST, left_of
from gradscale.cli.fitting import fewer, fitting
from gradscale.percent import percent

MOST_LAYERS = 8
_STYLES = {"safe": "green", "risky": "yellow", "unsafe": "red", "unknown": "red"}


COLUMNS = ("lost: none", "default", "one scale", "plan", "left at worst", "headroom")
# What a narrow screen does without, the first one first; advice.json has it all.
EXPENDABLE = ("headroom", "lost: none", "left at worst")


def advice_table(advice: Advice, width: int = 100) -> Table:
    """One line a format; where `width` is small, without the columns of `EXPENDABLE`."""
    return fitting((_advice_table(advice, names) for names in fewer(COLUMNS, EXPENDABLE)), width)


def _advice_table(advice: Advice, columns: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("format", "verdict", "scaling"):
        table.add_column(name, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for verdict in advice.verdicts:
        first, rest = _cells(verdict)[:3], _cells(verdict)[3:]
        texts: dict[str, str] = dict(zip(COLUMNS, rest, strict=True))
        table.add_row(*first, *(texts[name] for name in columns), style=_STYLES[verdict.level])
    return table


def _cells(verdict: Verdict) -> list[str]:
    scaling = {
        "none": "none needed",
        "default": "the default",
        "one scale": f"one, 2^{verdict.log2_scale}",
        "a plan": f"{len(verdict.scales)} scales",
    }[verdict.scaling]
    # Of a format that cannot be used, neither a scaling nor a cosine is advice.
    ran = verdict.level not in ("unsafe", "unknown")
    chosen = verdict.chosen
    return [
        verdict.format,
        verdict.level,
        scaling if ran else "–",
        *(lost(evidence) for evidence in verdict.evidence.values()),
        "–" if chosen is None or not ran else left_of(chosen),
        "–" if not math.isfinite(verdict.headroom) else f"{verdict.headroom:.0f} octaves",
    ]


def lost(evidence: ScalingEvidence | None) -> str:
    """The lost share of one way of scaling.

    Example:
        >>> lost(ScalingEvidence(0.25, 0.9, 0.8, "head", overflowed=False)), lost(None)
        ('25 %', '–')
    """
    if evidence is None:
        return "–"
    return "overflow" if evidence.overflowed else percent(evidence.lost_share, LEAST)


def layer_table(verdict: Verdict) -> Table | None:
    """The modules and parameters that lose most at the single scale; None if none loses any."""
    rows = [row for row in verdict.rows if row.flushed and not row.negligible][:MOST_LAYERS]
    if not rows:
        return None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"lost in {verdict.format} at 2^{verdict.log2_scale}", overflow="fold")
    for name in ("lost", "elements", "has", "needs"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        needs = f"2^{row.needs}"
        share = percent(row.lost_share, LEAST)
        table.add_row(row.name, share, f"{row.nonzero:,}", f"2^{row.exponent}", needs)
    return table
