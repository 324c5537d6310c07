"""What is seen while runs train: a live display on a terminal, a line a run elsewhere."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gradscale.training import Record


def console(*, stderr: bool = False, no_color: bool = False) -> Console:
    """A console that honors `--no-color` and the variable NO_COLOR, and never guesses at markup."""
    plain = no_color or bool(os.environ.get("NO_COLOR"))
    screen = Console(stderr=stderr, no_color=plain, highlight=False, markup=False)
    if not screen.is_terminal:
        screen.width = 100
    return screen


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
        self.progress = Progress(
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.everything = self.progress.add_task("all runs", total=total, note="")
        self.current: TaskID | None = None

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def begin(self, label: str, steps: int) -> Callable[[Record], None]:
        """A run starts; call the result after each of its steps."""
        if self.current is not None:
            self.progress.remove_task(self.current)
        current = self.current = self.progress.add_task(label, total=steps, note="")
        self.skipped = 0

        def on_step(record: Record) -> None:
            self.skipped += record.skipped
            note = f"loss {record.loss:.3f}  scale {scale_text(record.scale)}"
            if self.skipped:
                note += f"  skipped {self.skipped}"
            done = record.step + 1
            self.progress.update(current, completed=done, note=note)
            self.progress.advance(self.everything)

        return on_step

    def skip(self, steps: int) -> None:
        """Count steps that an earlier session took."""
        self.progress.advance(self.everything, steps)

    def finish(self, label: str, metric: str, result: dict[str, Any]) -> None:
        """A run has ended: leave one line."""
        loss, value = float(result["loss"]), float(result["metric"])
        self.console.print(f"{label:<40} loss {loss:.4f}  {metric} {value:.4f}", style="dim")


def scale_text(scale: float) -> str:
    """A scale for people: powers of two as such.

    Example:
        >>> scale_text(65536.0), scale_text(1.0), scale_text(3000.0), scale_text(float("nan"))
        ('2^16', '1', '3e+03', 'nan')
    """
    if scale == 1:
        return "1"
    mantissa, exponent = math.frexp(scale)
    return f"2^{exponent - 1}" if mantissa == 0.5 else f"{scale:.3g}"
