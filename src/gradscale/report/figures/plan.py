"""The groups of a plan on the network: which part is stored at which scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradscale.report.figures.style import LOST, empty, in_our_style, new_figure, shortened
from gradscale.report.network import Network
from gradscale.report.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVEL = 7
"""Columns up to which names stand level; beyond they are turned, and a line takes more height."""

NAME = 24
"""Letters of a name; both ends of a module path say most."""

TALLEST = 8.5


@in_our_style
def plan_figure(run: Run) -> Figure:
    """The latest plan; without one, what each row was last stored at.

    Args:
        run: one with rows or a network; without them the figure says so.
    """
    network = run.network
    turned = max(network.x, default=0.0) >= LEVEL
    lines = max(network.y, default=0.0) + 1
    height = 0.7 + (1.35 if turned else 0.55) * lines
    figure, axes = new_figure(min(TALLEST, height))
    if not network.names:
        empty(axes, "The recording names no part of the network.")
        return figure
    exponents = exponent_by_row(run)
    _edges(axes, run, exponents)
    _nodes(axes, run, exponents)
    # What does not fit is left out: a drawing of many lines shows the shape, the page the names.
    if height <= 2 * TALLEST:
        _names(axes, run.network, turned)
    axes.invert_yaxis()
    axes.set_axis_off()
    axes.set_xlim(-0.7, max(*network.x, 4.0) + 0.7)
    axes.set_ylim(max(network.y) + 0.95, -0.55)
    return figure


def exponent_by_row(run: Run) -> dict[int, int]:
    """By row, the exponent that it is stored at under the latest plan, or was without one."""
    if run.plans:
        return {row: group.exponent for group in run.plans[-1][1].groups for row in group.rows}
    found: dict[int, int] = {}
    for row, story in enumerate(run.rows):
        if story.info.kind != "activation" and story.last is not None:
            _, seen, place = story.last
            found[row] = seen.exponent[place]
    return found


def _edges(axes: Axes, run: Run, exponents: dict[int, int]) -> None:
    network = run.network
    for source, target in network.edges:
        x, y = (network.x[source], network.x[target]), (network.y[source], network.y[target])
        if abs(y[0] - y[1]) > 1 and x[1] < x[0]:
            continue  # continues in the next band of the drawing
        ends = [exponents.get(network.row[node]) for node in (source, target)]
        differ = None not in ends and ends[0] != ends[1]
        # Arcs go over what they pass, and names hang below: so neither crosses the other.
        axes.annotate(
            "",
            (x[1], y[1]),
            (x[0], y[0]),
            arrowprops={
                "arrowstyle": "-",
                "color": LOST if differ else "#aab4be",
                "linewidth": 1.6 if differ else 0.7,
                "connectionstyle": f"arc3,rad={_bend(x[1] - x[0], y[1] - y[0])}",
            },
            zorder=1,
        )


def _bend(across: float, down: float) -> float:
    """How far an edge leaves the straight line, as a share of its length."""
    if abs(across) <= 1:
        return 0.0
    # A long way gets no higher than a short one, or it would leave the drawing.
    return -min(0.3, 0.9 / abs(across)) if down == 0 else -0.12


def _names(axes: Axes, network: Network, turned: bool) -> None:
    for name, x, y in zip(network.names, network.x, network.y, strict=True):
        axes.annotate(
            shortened(name, NAME),
            (x, y),
            (0, -7),
            textcoords="offset points",
            ha="center",
            va="top",
            rotation=90 if turned else 0,
            fontsize=5.5,
            color="#33404c",
        )
    axes.annotate(
        "loss", (network.x[0], network.y[0]), (0, 7), textcoords="offset points", ha="center"
    )


def _nodes(axes: Axes, run: Run, exponents: dict[int, int]) -> None:
    from matplotlib import colormaps

    network = run.network
    levels = sorted({exponents[row] for row in network.row if row in exponents})
    colors = colormaps["viridis"]
    size = 34 if len(network.names) <= 150 else 14
    # A call a level, because a legend has an entry for each call.
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
    # Hollow, not left out: the network would seem to end there.
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
