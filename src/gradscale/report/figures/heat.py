"""The heat map: lost share of every row over the measured steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradscale.percent import percent
from gradscale.report.figures.style import (
    OVER,
    empty,
    in_our_style,
    name_ticks,
    new_figure,
    share_colors,
)
from gradscale.report.histograms import evenly
from gradscale.report.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOWEST = 1e-6  # where the colors begin: less is as good as nothing
TALLEST = 8.5  # inches: a page of a paper, with its caption
LINE = 0.1
"""Inches: with so much, every row has room for its name."""
X_TICKS = 7
TICKS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@in_our_style
def heat_figure(run: Run) -> Figure:
    """Rows in the order of the backward pass, the loss at the top, against measured steps.

    Args:
        run: one with measured rows; without them the figure says so.
    """
    from matplotlib.colors import ListedColormap, LogNorm

    rows = [row for row in run.order if run.rows[row].alarming]
    height = min(TALLEST, 1.0 + LINE * max(10, len(rows)))
    figure, axes = new_figure(height)
    if not rows:
        empty(axes, "No gradients were measured in this run.")
        return figure
    flushed = np.stack([column.flushed[rows] for column in run.columns], axis=1)
    nonzero = np.stack([column.nonzero[rows] for column in run.columns], axis=1)
    seen = ~np.isnan(np.stack([column.worst[rows] for column in run.columns], axis=1))
    # Nothing lost is drawn as `LOWEST`: a logarithm has no place for 0.
    share = np.where(seen, np.maximum(flushed / np.maximum(1, nonzero), LOWEST), np.nan)
    picture = axes.imshow(
        share,
        aspect="auto",
        interpolation="nearest",
        cmap=share_colors(),
        norm=LogNorm(LOWEST, 1.0),
    )
    nonfinite = np.stack([column.nonfinite[rows] for column in run.columns], axis=1)
    if nonfinite.any():
        over = np.where(nonfinite > 0, 1.0, np.nan)
        axes.imshow(over, aspect="auto", interpolation="nearest", cmap=ListedColormap([OVER]))
        axes.set_title("violet: infinite or NaN", loc="left", fontsize=6)
    # The worst line of a stretch has its name there, whatever has to do without.
    worst = np.nanmax(np.where(seen, share, 0.0), axis=1)
    name_ticks(axes, [run.rows[row].info.name for row in rows], worst.tolist(), height)
    places = _ticks(len(run.columns), np.flatnonzero(nonfinite.any(axis=0)).tolist())
    axes.set_xticks(places, [f"{run.columns[place].first:,}" for place in places])
    axes.set_xlabel("step")
    bar = figure.colorbar(picture, ax=axes, pad=0.01, label="lost share")
    bar.set_ticks(list(TICKS), labels=[percent(tick) for tick in TICKS])
    bar.ax.minorticks_off()
    return figure


def _ticks(columns: int, bad: list[int]) -> list[int]:
    """Evenly spread columns to name, and the first ones that were not finite in any case."""
    told = [place for place in bad if place - 1 not in bad][:X_TICKS]
    gap = max(1, columns // (2 * X_TICKS))
    even = evenly(columns, X_TICKS)
    kept = [place for place in even if all(abs(place - one) > gap for one in told)]
    return sorted({*kept, *told})
