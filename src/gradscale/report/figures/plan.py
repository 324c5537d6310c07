"""The groups of a plan on the network: which part is stored at which scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradscale.report.figures.style import LOST, empty, in_our_style, new_figure
from gradscale.report.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@in_our_style
def plan_figure(run: Run) -> Figure:
    """The latest plan; without one, what each row was last stored at.

    Args:
        run: one with rows or a network; without them the figure says so.
    """
    network = run.network
    height = 1.0 + 0.3 * (max(network.y, default=0.0) + 1)
    figure, axes = new_figure(min(8.0, height))
    if not network.names:
        empty(axes, "The recording names no part of the network.")
        return figure
    exponents = exponent_by_row(run)
    _edges(axes, run, exponents)
    _nodes(axes, run, exponents)
    axes.invert_yaxis()
    axes.set_axis_off()
    axes.margins(0.03, 0.25)
    axes.annotate(
        "loss", (network.x[0], network.y[0]), (0, 9), textcoords="offset points", ha="center"
    )
    return figure


def exponent_by_row(run: Run) -> dict[int, int]:
    """By row, the exponent that it is stored at under the latest plan, or was without one."""
    if run.plans:
        return {row: group.exponent for group in run.plans[-1][1].groups for row in group.rows}
    found: dict[int, int] = {}
    for row, story in enumerate(run.rows):
        if story.info.kind != "activation" and story.last is not None and story.last[0].seen:
            found[row] = story.last[0].seen.exponent[story.last[1]]
    return found


def _edges(axes: Axes, run: Run, exponents: dict[int, int]) -> None:
    network = run.network
    for source, target in network.edges:
        x, y = (network.x[source], network.x[target]), (network.y[source], network.y[target])
        if abs(y[0] - y[1]) > 1 and x[1] < x[0]:
            continue  # continues in the next band of the drawing
        ends = [exponents.get(network.row[node]) for node in (source, target)]
        differ = None not in ends and ends[0] != ends[1]
        bend = -0.25 if abs(x[1] - x[0]) > 1 else 0.0
        axes.annotate(
            "",
            (x[1], y[1]),
            (x[0], y[0]),
            arrowprops={
                "arrowstyle": "-",
                "color": LOST if differ else "#aab4be",
                "linewidth": 1.6 if differ else 0.7,
                "connectionstyle": f"arc3,rad={bend}",
            },
            zorder=1,
        )


def _nodes(axes: Axes, run: Run, exponents: dict[int, int]) -> None:
    from matplotlib import colormaps

    network = run.network
    levels = sorted({exponents[row] for row in network.row if row in exponents})
    colors = colormaps["viridis"]
    size = 34 if len(network.names) <= 150 else 14
    for place, level in enumerate(levels):
        at = [i for i, row in enumerate(network.row) if exponents.get(row) == level]
        axes.scatter(
            [network.x[i] for i in at],
            [network.y[i] for i in at],
            s=size,
            marker="s",
            color=colors(0.9 * place / max(1, len(levels) - 1)),
            edgecolors="#1b2733",
            linewidths=0.4,
            label=f"$2^{{{level}}}$",
            zorder=2,
        )
    unknown = [i for i, row in enumerate(network.row) if row not in exponents]
    if unknown:
        axes.scatter(
            [network.x[i] for i in unknown],
            [network.y[i] for i in unknown],
            s=size,
            facecolors="none",
            edgecolors="#8a949e",
            linewidths=0.8,
            label="not measured",
            zorder=2,
        )
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(0, 0),
        ncols=8,
        fontsize=7,
        handletextpad=0.2,
        frameon=False,
    )
