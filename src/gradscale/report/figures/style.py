"""What the figures have in common: sizes, colors that any eye tells apart, powers of two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

P = ParamSpec("P")
R = TypeVar("R")
WIDTH = 6.75
"""Inches: two columns of a paper."""

NAME, MARGINS = 0.085, 0.7
"""Inches that a name takes, and those above and below a picture."""

# After Okabe and Ito: orange and blue are told apart by any eye, red and green are not.
LOST, SUBNORMAL, KEPT, OVER = "#d55e00", "#e6a817", "#2f78b7", "#5b2a86"
RUNS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07d00", "#56b4e9", "#5b3a8c", "#4d4d4d")
_SHARES = ("#f3f5f7", "#fde3c4", "#f8b46a", "#e25b2f", "#a12240", "#42092a")
SETTINGS: dict[str, object] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "gradscale",
}


def new_figure(height: float, **grid: Any) -> tuple[Figure, Any]:
    """A figure of the common width, and its axes; nothing is shown, no window is needed."""
    from matplotlib.figure import Figure

    # Not by pyplot, which keeps every figure it makes, and may look for a window.
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(**grid)


def settings() -> AbstractContextManager[None]:
    """Matplotlib's settings for our figures, while inside.

    Raises:
        ImportError: if matplotlib is not installed; the message says how to.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ImportError(
            "Figures are drawn with matplotlib, which is not installed. Install it with "
            '`pip install "gradscale[report]"`.'
        ) from error
    return rc_context(cast("dict[RcKeyType, object]", SETTINGS))


def in_our_style(draw: Callable[P, R]) -> Callable[P, R]:
    """A function that draws a whole figure under our settings."""

    @wraps(draw)
    def drawn(*arguments: P.args, **named: P.kwargs) -> R:
        with settings():
            return draw(*arguments, **named)

    return drawn


def share_colors() -> Colormap:
    """From nothing lost to everything lost; what was not measured is white."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("lost", _SHARES).with_extremes(bad="white")


def power_ticks(axis: Axis) -> None:
    """Label whole exponents as powers of two."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.set_major_formatter(FuncFormatter(_power))


def _power(value: float, place: int | None = None) -> str:
    return f"$2^{{{value:.0f}}}$"


def name_ticks(axes: Axes, names: Sequence[str], weights: Sequence[float], height: float) -> None:
    """Name the lines of a picture; where there is no room for all, the weightiest first.

    Args:
        axes: one line a name, from 0 at the top.
        names: of the lines.
        weights: what a reader looks for.
        height: of the figure, in inches.
    """
    # Lines that one name takes, of as many as the picture has room for.
    gap = math.ceil(NAME * len(names) / (height - MARGINS))
    # Greedy by weight: the line that lost most keeps its name, its neighbours may go without.
    places: list[int] = []
    for place in sorted(range(len(names)), key=lambda place: (-weights[place], place)):
        if all(abs(place - other) >= gap for other in places):
            places.append(place)
    places.sort()
    axes.set_yticks(places, [shortened(names[place]) for place in places], fontsize=5.5)


def shortened(name: str, length: int = 34) -> str:
    """A long name without its middle, as both ends of a module path say most.

    Example:
        >>> shortened("transformer.layers.11.attention.projection.weight", 24)
        'transform…jection.weight'
    """
    if len(name) <= length:
        return name
    tail = int(length * 0.6)
    return f"{name[: length - tail - 1]}…{name[-tail:]}"


def empty(axes: Axes, text: str) -> None:
    """Say in the middle of the axes why there is nothing in them."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#55636f")
