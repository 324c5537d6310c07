"""One figure a task: the score along the knob, float32 as a band over its seeds."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from summary import TRUTH, Found
from task import Task

# Okabe & Ito's colours, which any eye tells apart, and a grey for white and for black grounds;
# a dash and a marker each, for paper without colours and for lines that lie on each other.
GREY = "#7d7d7d"
LINES = {
    "torch": ("#d55e00", "-", "s", "torch's scaler"),
    "guarded": ("#009e73", "--", "^", "one scale that follows (Guarded)"),
    "layerwise": ("#0072b2", "-", "o", "layerwise=True"),
}
FORMATS = ("fp16", "e5m2", "e4m3")
STYLE = {
    "font.size": 8,
    "svg.fonttype": "path",
    "svg.hashsalt": "gradscale",
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def draw(task: Task, found: Found, path: Path) -> None:
    """Writes the figure as SVG with a transparent ground: it can be read in light and dark."""
    formats = [f for f in FORMATS if any(f"{f} {name}" in found.cells for name in LINES)]
    with rc_context(STYLE):
        figure = Figure(figsize=(2.4 * len(formats) + 0.6, 2.4), layout="constrained")
        axes = figure.subplots(1, len(formats), sharey=True, squeeze=False)[0]
        for panel, format in zip(axes, formats, strict=True):
            _panel(panel, task, found, format)
        axes[0].set_ylabel(task.score)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    path.write_text("\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n")


def _panel(panel: Axes, task: Task, found: Found, format: str) -> None:
    truth = found.cells[TRUTH]
    values = sorted(truth)
    panel.fill_between(
        values,
        [min(truth[v].scores) for v in values],
        [max(truth[v].scores) for v in values],
        color=GREY,
        alpha=0.35,
        linewidth=2,
        label="float32, all seeds",
    )
    panel.axhline(task.chance, color=GREY, linewidth=0.6, linestyle=":")
    for name, (colour, dash, marker, label) in LINES.items():
        cells = found.cells.get(f"{format} {name}", {})
        if cells:
            at = sorted(cells)
            panel.plot(
                at,
                [cells[v].score for v in at],
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=3.5,
                linewidth=1.2,
                label=label,
            )
    panel.set_title(format)
    panel.set_xlabel(task.knob)
    panel.set_xticks(values, [f"{v:g}" for v in values])
