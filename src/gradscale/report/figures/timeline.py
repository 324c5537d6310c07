"""The loss scale over the steps, with every skipped one, and the loss below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gradscale.report.figures.style import (
    RUNS,
    empty,
    in_our_style,
    new_figure,
    power_ticks,
    shortened,
)
from gradscale.report.run import Run
from gradscale.report.timeline import extremes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 4000  # about three a pixel, at `style.WIDTH` and `save.RESOLUTION`
LEAST_OCTAVES = 3.0


@in_our_style
def timeline_figure(runs: Sequence[Run]) -> Figure:
    """Scale, skipped steps and loss of one run or of several.

    Args:
        runs: at least one. Series that none of them recorded are left out.
    """
    with_loss = any(not np.isnan(run.timeline.loss).all() for run in runs)
    figure, grid = new_figure(
        3.4 if with_loss else 2.2, nrows=2 if with_loss else 1, sharex=True, squeeze=False
    )
    axes = grid[:, 0]
    if not any(len(run.timeline.step) for run in runs):
        empty(axes[0], "The recording holds no step yet.")
        return figure
    for index, run in enumerate(runs):
        _scale(axes[0], run, RUNS[index % len(RUNS)], index, len(runs))
        if with_loss:
            _loss(axes[1], run, RUNS[index % len(RUNS)])
    _spread(axes[0])
    power_ticks(axes[0].yaxis)
    axes[0].set_ylabel("loss scale")
    if with_loss:
        axes[1].set_ylabel("loss")
        if any(run.timeline.broken.any() for run in runs):
            axes[1].set_title("×: infinite or NaN", loc="right", fontsize=6, pad=6)
    axes[-1].set_xlabel("step")
    if any(run.timeline.skipped for run in runs):
        axes[0].text(1.0, -0.04, "skipped", fontsize=6, va="center", transform=axes[0].transAxes)
    if len(runs) > 1:
        axes[0].legend(fontsize=6, ncols=min(3, len(runs)), loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def _scale(axes: Axes, run: Run, color: str, index: int, count: int) -> None:
    line = run.timeline
    if len(line.step) and not np.isnan(line.scale).all():
        # Thinned here, too: a vector figure of a million points opens in no viewer.
        kept = extremes([line.scale], POINTS)
        axes.step(
            line.step[kept],
            line.scale[kept],
            where="post",
            color=color,
            linewidth=0.9,
            label=shortened(run.name, 30),
        )
    skipped = [step.step for step in line.skipped]
    # Ticks below the axis, a line a run, so that they hide nothing.
    top = -0.02 - 0.05 * index / max(1, count - 1) if count > 1 else -0.02
    axes.vlines(
        skipped,
        top - 0.04,
        top,
        transform=axes.get_xaxis_transform(),
        color=color,
        linewidth=0.6,
        clip_on=False,
    )


def _spread(axes: Axes) -> None:
    """Room for three whole exponents at least: a scale that never moved is one line, not many."""
    low, high = axes.get_ylim()
    if high - low < LEAST_OCTAVES:
        middle = (low + high) / 2
        axes.set_ylim(middle - LEAST_OCTAVES / 2, middle + LEAST_OCTAVES / 2)


def _loss(axes: Axes, run: Run, color: str) -> None:
    """The loss, broken where it was infinite or NaN: nobody knows a value there to pass through."""
    line = run.timeline
    told = np.isfinite(line.loss) | line.broken
    if not told.any():
        return
    steps, loss, broken = line.step[told], line.loss[told], line.broken[told]
    finite = np.where(broken, np.nan, loss)
    # With every break: a line through one would claim a value that there was not.
    kept = np.union1d(extremes([finite], POINTS), np.flatnonzero(broken))
    axes.plot(steps[kept], finite[kept], color=color, linewidth=0.8)
    # At the top, where the line is missing.
    axes.plot(
        steps[broken],
        np.ones(broken.sum()),
        "x",
        color=color,
        markersize=3.5,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
    )
