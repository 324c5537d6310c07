"""What is seen while runs train: a live display on a terminal, a line a run elsewhere."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from gradscale.cli.printable import printable
from gradscale.training import RunResult, StepRecord


class _Screen(Console):
    """A console on which no text can act, whatever file it was read from."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """What is printed, every part of it, just before it becomes characters and colors."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(printable(part.text), part.style)


def console(*, stderr: bool = False, no_color: bool = False) -> Console:
    """A console that honors `--no-color` and the variable NO_COLOR, and never guesses at markup."""
    plain = no_color or bool(os.environ.get("NO_COLOR"))
    screen = _Screen(stderr=stderr, highlight=False, markup=False)
    if flows(screen):
        screen.width = 100  # of tables: rich would take 80
    if not plain:
        return screen
    # `no_color` alone still writes bold, dim and the live display's cursor movements.
    return _Screen(
        stderr=stderr,
        no_color=True,
        color_system=None,
        force_terminal=False,
        width=screen.width,
        highlight=False,
        markup=False,
    )


def flows(screen: Console) -> bool:
    """Whether a long line stays one line: in a file or a pipe, for which nobody set a width."""
    return not (screen.is_terminal or os.environ.get("COLUMNS"))


class _Progress(Progress):
    """Progress bars, and below them a line about the latest step."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note, style="dim", no_wrap=True, overflow="ellipsis")


class Display:
    """Progress over several runs. Use it as a context manager.

    Args:
        console: where to draw; one that is not a terminal gets a line a finished run.
        total: steps of all runs.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self.skipped = 0
        self.progress = _Progress(
            # Only the label may wrap, and the bar shrink: steps and times always show.
            TextColumn("{task.description}", table_column=Column(min_width=16)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
            disable=not console.is_terminal,
        )
        self.everything = self.progress.add_task("all runs", total=total)
        self.current: TaskID | None = None

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def begin(self, label: str, steps: int) -> Callable[[StepRecord], None]:
        """A run starts; call the result after each of its steps."""
        if self.current is not None:
            self.progress.remove_task(self.current)
        current = self.current = self.progress.add_task(label, total=steps)
        self.skipped = 0
        self.progress.note = ""

        def on_step(record: StepRecord) -> None:
            self.skipped += record.skipped
            note = f"loss {record.loss:.3f}  scale {scale_text(record.scale)}"
            if self.skipped:
                note += f"  skipped {self.skipped}"
            self.progress.note = note
            self.progress.update(current, completed=record.step + 1)
            self.progress.advance(self.everything)

        return on_step

    def skip(self, steps: int) -> None:
        """Count steps of the current run that an earlier session took.

        The clocks start again, so that the time that remains is told by this session's speed.
        """
        # All of them: the bar of all runs goes on, too.
        for task in self.progress.tasks:
            done = int(task.completed) + steps
            self.progress.reset(task.id, total=task.total, completed=done)

    def finish(self, label: str, metric: str, result: RunResult) -> None:
        """A run has ended: leave one line."""
        loss, value = float(result["loss"]), float(result["metric"])
        # Printed, not logged: on a terminal it stays above the bars.
        self.console.print(f"{label:<40} loss {loss:.4f}  {metric} {value:.4f}", style="dim")


def scale_text(scale: float) -> str:
    """A scale for people: powers of two as such.

    Example:
        >>> scale_text(65536.0), scale_text(1.0), scale_text(3000.0), scale_text(float("nan"))
        ('2^16', '1', '3e+03', 'nan')
    """
    if scale == 1:
        return "1"
    # `frexp` gives a mantissa in [0.5, 1): a power of two has 0.5.
    mantissa, exponent = math.frexp(scale)
    return f"2^{exponent - 1}" if mantissa == 0.5 else f"{scale:.3g}"
