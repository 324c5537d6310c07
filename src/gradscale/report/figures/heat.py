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
from gradscale.report.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOWEST = 1e-6
TICKS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@in_our_style
def heat_figure(run: Run) -> Figure:
    """Rows in the order of the backward pass, the loss at the top, against measured steps.

    Args:
        run: one with measured rows; without them the figure says so.
    """
    from matplotlib.colors import ListedColormap, LogNorm

    rows = [row for row in run.order if run.rows[row].alarming]
    figure, axes = new_figure(min(8.0, 1.2 + 0.11 * max(8, len(rows))))
    if not rows:
        empty(axes, "No gradients were measured in this run.")
        return figure
    flushed = np.stack([column.flushed[rows] for column in run.columns], axis=1)
    nonzero = np.stack([column.nonzero[rows] for column in run.columns], axis=1)
    seen = ~np.isnan(np.stack([column.worst[rows] for column in run.columns], axis=1))
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
    name_ticks(axes, [run.rows[row].info.name for row in rows])
    places = np.unique(np.linspace(0, len(run.columns) - 1, min(7, len(run.columns))).round())
    axes.set_xticks(places, [f"{run.columns[int(place)].first:,}" for place in places])
    axes.set_xlabel("step")
    bar = figure.colorbar(picture, ax=axes, pad=0.01, label="lost share")
    bar.set_ticks(list(TICKS), labels=[percent(tick) for tick in TICKS])
    bar.ax.minorticks_off()
    return figure
