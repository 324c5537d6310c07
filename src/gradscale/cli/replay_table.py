"""The table of a replay, and the words below it that say what it rests on."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from gradscale.cli.display import scale_text
from gradscale.cli.fitting import fewer, fitting
from gradscale.cli.table import percentage
from gradscale.doctor.number_text import counted
from gradscale.recording import Recording
from gradscale.replay import Replay

Found = Sequence[tuple[str, Replay]]


COLUMNS = ("scale", "last", "skipped", "lost %", "exact", "counterfactual")
# What a narrow screen does without, the first one first; `--json` has it all.
EXPENDABLE = ("last", "exact")


def replay_table(recording: Recording, found: Found, width: int = 100) -> Table:
    """The recorded run first, then a line a policy."""
    rows = list(_rows(recording, found))
    kept = list(fewer(COLUMNS, EXPENDABLE))
    # At the narrowest a policy goes over several lines, a setting each.
    broken = [(name.replace("(", "(\n  ").replace(", ", ",\n  "), *row) for name, *row in rows]
    narrowest = _replay_table(broken, kept[-1])
    return fitting([*(_replay_table(rows, columns) for columns in kept), narrowest], width)


def _replay_table(rows: Sequence[Sequence[str]], columns: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold", min_width=16)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name, *cells in rows:
        texts: dict[str, str] = dict(zip(COLUMNS, cells, strict=True))
        table.add_row(name, *(texts[column] for column in columns))
    return table


def _rows(recording: Recording, found: Found) -> Iterator[tuple[str, ...]]:
    steps = recording.steps
    scales = [step.scale for step in steps]
    # Without skipped steps: what overflowed is lost in another way.
    lost = [step.seen.lost_share for step in steps if step.seen is not None and not step.skipped]
    known = [share for share in lost if share is not None]
    yield (
        "as recorded",
        _range(min(scales), max(scales)),
        scale_text(scales[-1]),
        str(sum(step.skipped for step in steps)),
        percentage(statistics.fmean(known)) if known else "–",
        "",
        "",
    )
    for text, one in found:
        low, high, last = one.scales
        # Only skips: that a step would have been taken is predicted as often, and alarms nobody.
        guessed = sum(step.skipped and not step.certain for step in one.steps)
        other = one.first("counterfactual")
        yield (
            text,
            _range(low, high),
            scale_text(last),
            f"{one.skipped}" + (f" ({guessed} predicted)" if guessed else ""),
            "–" if one.lost_share is None else percentage(one.lost_share),
            "all steps" if one.exact else counted(one.count("exact"), "step"),
            "never" if other is None else f"from step {other}",
        )


def words(recording: Recording, found: Found) -> Iterator[str]:
    """What the numbers rest on, one line a fact; only what applies."""
    if all(one.exact for _, one in found):
        yield "Exact: every scale is the recorded one, so every step is as recorded, bit for bit."
    if any(one.count("same steps") for _, one in found):
        yield (
            "Other scales, same steps: every step was taken or skipped as recorded, so the weights "
            "differ by no more than the gradients that one of the scales flushed."
        )
    if any(one.count("counterfactual") for _, one in found):
        yield (
            "Counterfactual: a step would have been skipped that was not, or the other way round. "
            "From there on the weights would have been others, and the recorded gradients stand in "
            "for theirs."
        )
    if any(one.predicted for _, one in found):
        yield _prediction(recording)
    if any(one.lost_share is not None for _, one in found):
        steps = max(one.lost_steps for _, one in found)
        yield (
            f"Lost: mean of {steps} measured steps; at scales that were not the recorded ones, "
            "from the recorded histograms moved by octaves."
        )
    moved = [one.moved for _, one in found if one.moved]
    if moved:
        yield (
            f"The recorded scale was set by something else than the policy before {len(moved[0])} "
            f"steps, first before step {moved[0][0]} (`update(new_scale)`, or a layer-wise plan); "
            "every replay takes it over there."
        )


def _prediction(recording: Recording) -> str:
    if recording.measured:
        return (
            "Predicted: whether a scale above the recorded one overflows is told by the largest "
            "gradient inside the network, which a watch measured on "
            f"{len(recording.measured)} of {len(recording.steps)} steps; between them it is taken "
            "to follow the parameters' largest gradient."
        )
    return (
        "Predicted: whether a scale above the recorded one overflows is told by the largest "
        "gradient of the parameters alone, a proxy: inside the network gradients may be larger. "
        "Recorded with a watch, it would be measured."
    )


def _range(low: float, high: float) -> str:
    return scale_text(low) if low == high else f"{scale_text(low)} … {scale_text(high)}"
