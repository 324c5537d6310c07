"""Histograms of the rows that lost most, as they were stored, over what the format holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradscale.percent import percent
from gradscale.report.counting import fate
from gradscale.report.figures.style import (
    KEPT,
    LOST,
    OVER,
    SUBNORMAL,
    empty,
    in_our_style,
    new_figure,
    power_ticks,
    shortened,
)
from gradscale.report.histograms import Histogram, latest
from gradscale.report.ranges import FormatRange, ranges_of
from gradscale.report.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 6  # rows: as many as a page has room for
FAR_BELOW = 22
"""Octaves below the format that are drawn at most."""


@in_our_style
def histogram_figure(run: Run, rows: Sequence[str] | None = None, shift: int = 0) -> Figure:
    """One histogram a row, by the latest that were recorded.

    Args:
        run: one with histograms; without them the figure says so.
        rows: names of rows; without them those that lost most.
        shift: octaves by which the loss scale is moved from where it was.

    Raises:
        ValueError: if a row is not in the recording, or has no histogram.
    """
    found = latest(run.snapshots)
    chosen = _most_lost(run, found) if rows is None else [_row(run, name, found) for name in rows]
    figure, grid = new_figure(
        0.6 + 1.05 * max(1, len(chosen)), nrows=max(1, len(chosen)), squeeze=False
    )
    if not chosen:
        empty(grid[0, 0], "There are no histograms in this recording.")
        return figure
    spans = ranges_of({run.rows[row].info.format for row in chosen})
    # One range for all, so that they can be compared down the page.
    sight = _sight([(found[row], spans[run.rows[row].info.format]) for row in chosen], shift)
    for axes, row in zip(grid[:, 0], chosen, strict=True):
        span = spans[run.rows[row].info.format]
        moved = 0 if run.rows[row].info.kind == "activation" else shift
        _draw(axes, found[row], span, found[row].exponent + moved, sight)
        axes.set_title(shortened(run.rows[row].info.name, 60), loc="left", fontsize=7, pad=2)
    for axes in grid[:-1, 0]:
        axes.tick_params(labelbottom=False)
    grid[-1, 0].set_xlabel("stored magnitude")
    return figure


def _most_lost(run: Run, found: dict[int, Histogram]) -> list[int]:
    rows = [row for row in found if run.rows[row].alarming and found[row].octaves.counts]
    # Of equals the first in the backward pass: what comes later may follow from it.
    rows.sort(key=lambda row: (-run.rows[row].lost_share, run.rows[row].info.order))
    return rows[:SHOWN]


def _row(run: Run, name: str, found: dict[int, Histogram]) -> int:
    for row, story in enumerate(run.rows):
        if story.info.name == name and row in found:
            return row
    with_one = [run.rows[row].info.name for row in sorted(found)]
    raise ValueError(
        f"`histogram_figure(run, rows=[{name!r}])`: there is no histogram of such a row. Rows with "
        f"one: {', '.join(with_one[:5])}{' …' if len(with_one) > 5 else ''}."
    )


def _sight(stored: list[tuple[Histogram, FormatRange]], shift: int) -> tuple[int, int]:
    """The octaves from the lowest value or edge to the highest."""
    lows, highs = list[int](), list[int]()
    for it, span in stored:
        # What lies far below the format is lost wherever it lies.
        start = max(it.octaves.lowest + it.exponent, span["flush"] - FAR_BELOW)
        lows += [start + min(0, shift), span["flush"] - 5]
        highs += [
            it.octaves.lowest + it.exponent + len(it.octaves.counts) + max(0, shift),
            span["top"] + 5,
        ]
    return min(lows), max(highs)


def _draw(
    axes: Axes, it: Histogram, span: FormatRange, exponent: int, sight: tuple[int, int]
) -> None:
    places = [it.octaves.lowest + exponent + i for i in range(len(it.octaves.counts))]
    colors = [_color(place, span) for place in places]
    middles, counts, guessed = [place + 0.5 for place in places], it.octaves.counts, it.guessed
    axes.bar(middles[guessed:], counts[guessed:], width=0.92, color=colors[guessed:])
    # Pale: estimated, as nobody could count them.
    axes.bar(middles[:guessed], counts[:guessed], width=0.92, color=colors[:guessed], alpha=0.45)
    low, high = sight
    for start, end, color in (
        (low, span["flush"], LOST),
        (span["flush"], span["normal"], SUBNORMAL),
        (span["top"] + 1, high, OVER),
    ):
        axes.axvspan(start, end, color=color, alpha=0.12, linewidth=0)
    axes.set_xlim(low, high)
    power_ticks(axes.xaxis)
    axes.locator_params(axis="y", nbins=3)
    lost = fate(it, span, exponent)
    axes.text(
        0.995,
        0.92,
        f"{percent(lost.share)} lost at $2^{{{exponent}}}$ in {span['name']}",
        ha="right",
        va="top",
        fontsize=7,
        transform=axes.transAxes,
    )


def _color(place: int, span: FormatRange) -> str:
    if place < span["flush"]:
        return LOST
    if place < span["normal"]:
        return SUBNORMAL
    return OVER if place > span["top"] else KEPT
