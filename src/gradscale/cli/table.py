"""The table at the end of a comparison."""

from __future__ import annotations

from itertools import chain

from rich import box
from rich.table import Table
from rich.text import Text

from gradscale.cli.display import scale_text
from gradscale.cli.fitting import fewer, fitting
from gradscale.recipes import Recipe
from gradscale.training import Comparison, Spread, Summary

_EMULATED = (
    "Half precision is emulated on this machine (rounded operands, float32 products): its results "
    "are those of hardware that has the format, its times are not."
)
_DIVIDED = (
    "Dividing the loss by K is what gradient accumulation over K batches, a mean over K times more "
    "items or a loss weight of 1/K do to the backward pass. Gradients are multiplied by K before "
    "the optimizer, so in exact arithmetic nothing changes."
)
COLUMNS = ("lost %", "skipped", "scale", "ms")
# What a narrow screen does without, the first one first.
EXPENDABLE = ("ms", "scale", "lost %")


def comparison_table(
    comparison: Comparison, summaries: list[Summary], recipe: Recipe, width: int = 100
) -> Table:
    """One section a loss divisor, one line a row.

    Where `width` is small the gaps between columns close, skipped steps lose their reasons, and
    then the columns of `EXPENDABLE` go, until the rest fits.
    """
    # The first that fits: roomy, then tight with fewer and fewer columns.
    roomy = _table(comparison, summaries, recipe, COLUMNS, roomy=True)
    kept = fewer(COLUMNS, EXPENDABLE)
    tight = (_table(comparison, summaries, recipe, columns, roomy=False) for columns in kept)
    return fitting(chain([roomy], tight), width)


def _table(
    comparison: Comparison,
    summaries: list[Summary],
    recipe: Recipe,
    columns: tuple[str, ...],
    *,
    roomy: bool,
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, int(roomy)))
    table.add_column("", no_wrap=True)
    metric = recipe.metric_name + (" %" if recipe.metric_is_share else "")
    for name in ("test loss", metric, *columns):
        table.add_column(name, justify="right", no_wrap=True)
    divided = "loss divided by" if roomy else "loss /"
    for divisor in comparison.loss_divisors:
        table.add_section()
        title = "ordinary loss" if divisor == 1 else f"{divided} {divisor:g}"
        table.add_row(Text(title, style="bold"))
        for summary in summaries:
            if summary.loss_divisor == divisor:
                cells = _cells(summary, recipe) + _extras(summary, columns, roomy=roomy)
                table.add_row(*cells, style="red" if worse(summary) else "")
    return table


def worse(summary: Summary) -> bool:
    """Whether a row ended above float32 by over 10 % of its loss, and 2 standard deviations."""
    # Float32's own mean, over the same seeds.
    truth = summary.loss.mean - summary.versus.mean
    difference = summary.versus.mean
    # A NaN loss fails both comparisons, and is worse.
    return not (difference <= 0.1 * abs(truth) or difference <= 2 * summary.versus.sd)


def _cells(summary: Summary, recipe: Recipe) -> list[str]:
    return [
        f"{'✗' if worse(summary) else ' '} {summary.row.label.replace(',', '')}",
        spread(summary.loss, 3),
        spread(summary.metric, 1 if recipe.metric_is_share else 2, percent=recipe.metric_is_share),
    ]


def _extras(summary: Summary, columns: tuple[str, ...], *, roomy: bool) -> list[str]:
    texts = {
        "lost %": "–" if summary.lost_share is None else percentage(summary.lost_share.mean),
        "skipped": skips(summary, reasons=roomy),
        "scale": "–" if summary.row.policy == "none" else scales(summary.scales),
        "ms": "–" if summary.ms_per_step is None else milliseconds(summary.ms_per_step),
    }
    return [texts[name] for name in columns]


def spread(value: Spread, digits: int, *, percent: bool = False) -> str:
    """Mean and standard deviation, the latter left out for a single run.

    Example:
        >>> spread(Spread(0.9825, 0.0051), 1, percent=True), spread(Spread(2.5, 0.0), 2)
        ('98.2 ± 0.5', '2.50')
    """
    factor = 100.0 if percent else 1.0
    text = f"{value.mean * factor:.{digits}f}"
    if value.sd:
        text += f" ± {value.sd * factor:.{digits}f}"
    return text


def percentage(value: float) -> str:
    """A share in percent, with two significant places.

    Example:
        >>> percentage(0.7258), percentage(0.00008), percentage(0.0), percentage(1.0)
        ('73', '0.008', '0', '100')
    """
    # Two places would make 1e+02 of it.
    if 100 * value >= 99.5:
        return "100"
    return f"{100 * value:.1e}" if 0 < value < 1e-6 else f"{100 * value:.2g}"


def milliseconds(value: float) -> str:
    """Three significant places at least, and never an exponent above.

    Example:
        >>> milliseconds(1234.5), milliseconds(42.27), milliseconds(0.5)
        ('1234', '42.3', '0.5')
    """
    return f"{value:.0f}" if value >= 999.5 else f"{value:.3g}"


def skips(summary: Summary, *, reasons: bool = True) -> str:
    """How many steps were skipped, and with `reasons` why.

    Nothing skips a step where nobody scales.
    """
    if summary.row.policy == "none":
        return "–"
    if not summary.skipped:
        return "0"
    if not reasons:
        return str(sum(summary.skipped.values()))
    return ", ".join(f"{count} {reason}" for reason, count in sorted(summary.skipped.items()))


def scales(values: tuple[float, ...]) -> str:
    """The range of the final scales.

    Example:
        >>> scales((65536.0, 65536.0)), scales((32768.0, 65536.0))
        ('2^16', '2^15..16')
    """
    low, high = (scale_text(value) for value in (min(values), max(values)))
    if low == high:
        return low
    return f"{low}..{high.removeprefix('2^') if low.startswith('2^') else high}"


def caption(comparison: Comparison, summaries: list[Summary], *, emulated: bool) -> str:
    """What the table's numbers mean, and how they were measured."""
    steps = summaries[0].steps // comparison.seeds
    seeds = "1 seed" if comparison.seeds == 1 else f"mean ± sd of {comparison.seeds} seeds"
    lines = [
        f"{seeds}, {steps} steps each; test loss and metric in float32, from the trained weights.",
        "lost: gradient elements (module outputs and parameters) that are zero in this precision "
        "but not in a float32 pass over the same batch and weights; from 4 steps a run.",
        "skipped: optimizer steps, all seeds together. ms: median step of the fastest seed. What a "
        "narrow screen leaves out is in summary.json.",
    ]
    if emulated:
        lines.append(_EMULATED)
    if any(divisor != 1 for divisor in comparison.loss_divisors):
        lines.append(_DIVIDED)
    if any(worse(summary) for summary in summaries):
        lines.append("✗: test loss above float32's by over 10 % and 2 standard deviations.")
    return "\n".join(lines)
